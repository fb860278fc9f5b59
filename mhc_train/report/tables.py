"""A comparison in tables: results, laws, the residual path in numbers, configurations, samples, commands."""

import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mhc_train.report.page import Cell, Table
from mhc_train.report.readings import (
    NOT_DECLARED,
    NOT_MEASURED,
    PATH_NUMBERS,
    Document,
    evidence,
    final_losses,
    path_number,
    uneven,
)
from mhc_train.report.words import (
    MINUS,
    Number,
    budget_of,
    chance,
    count,
    counted,
    duration,
    law_name,
    listed,
    loss,
    many,
    memory,
    named,
    number,
    percent,
    rate,
    short,
    signed,
    times,
    verdict_of,
)

Measured = Sequence[tuple[str, dict[str, Any] | None]]
"""Names, and what was measured of each residual path."""
COLUMNS = 8
"""Arms that can stand beside each other in a table; more stand below each other."""
FAILED = "failed"
MOST = 100
"""Pairs that a table of differences lists."""
SECTIONS = {"model": "model", "optimizer": "optim", "batch": "train.batch_tokens"}
"""Of requirements that are configuration, the keys; of those, what was varied on purpose need not agree."""
WITHIN = ("training tokens in order", "backbone weights at the start")
"""Requirements that follow the seed."""


def requirements(document: Document) -> Table:
    """What must agree between runs, whether it does, and who has what where it does not."""
    rows = [
        (
            Cell(row["name"], "bears on losses" if row["decisive"] else "bears on the reading only"),
            [
                Cell(row["state"], state=row["state"]),
                Cell("" if row["state"] == "same" else row["matters"]),
                Cell("; ".join(f"{named(value['runs'])}: {value['value']}" for value in row["values"])),
            ],
        )
        for row in document["requirements"]
    ]
    return Table("What must agree between runs", ["state", "if it differs", "values"], rows)


def agreement(document: Document) -> dict[str, str]:
    """What was found the same in all runs of what decides about losses, what within each seed only, and what limits
    the reading without deciding."""
    rows = document["requirements"]
    by_seed = WITHIN if len(document["seeds"]) > 1 else ()
    decisive = [row["name"] for row in rows if row["decisive"]]
    limits = [f"{row['name']} ({row['state']}: {row['matters']})" for row in rows if row["state"] != "same"]
    return {
        "decided": listed([_but_for(name, document["varied"]) for name in decisive if name not in by_seed]),
        "within": listed([name for name in decisive if name in by_seed]),
        "limits": listed(limits),
    }


def _but_for(name: str, varied: Sequence[str]) -> str:
    section = SECTIONS.get(name)
    free = [key for key in varied if section and f"{key}.".startswith(f"{section}.")]
    return f"{name} (but for {listed(free)})" if free else name


def unfinished(document: Document) -> Table | None:
    """Runs that did not finish and planned ones that left nothing; None if there are none."""
    rows = [
        (Cell(f"{arm['name']}, seed {run['seed']}", run["run"]), [Cell(_step(run["step"])), Cell(_value(run["error"]))])
        for arm in document["arms"]
        for run in arm["failed"]
    ]
    rows += [(Cell(shlex.join(run["overrides"])), [Cell("no run"), Cell(run["error"])]) for run in document["lost"]]
    return Table("Runs without a result", ["got to", "why"], rows) if rows else None


def _step(step: int | None) -> str:
    return "before the first step" if step is None else f"step {step}"


def tuning(document: Document) -> Table | None:
    """What was tried for each arm, and what was chosen; None if nothing was."""
    rows = [
        (
            Cell(" ".join(row["arm"]) or "defaults", row["key"]),
            [
                Cell("; ".join(f"{value}: {loss(found)}" for value, found in row["losses"].items())),
                Cell(str(row["chosen"]), "at the edge of what was tried" if row["edge"] else "", _edge(row)),
                Cell(str(row["seed"])),
            ],
        )
        for row in document["tuning"]
    ]
    columns = ["validation losses", "chosen", "seed"]
    return Table("Tuning: every arm tried the same values", columns, rows) if rows else None


def _edge(row: dict[str, Any]) -> str:
    return "warn" if row["edge"] else ""


def costs(document: Document) -> Table:
    """What a training takes, an arm a column."""
    arms = document["arms"]
    counts = {arm["peak_memory_counted"] for arm in arms}
    counted_memory = str(arms[0]["peak_memory_counted"]) if len(counts) == 1 else "see the run's status.json"
    shared = f"; {document['concurrent']} runs at once: no measurement" if document["concurrent"] > 1 else ""
    medians = "median of logged steps, then of seeds"
    rows = [
        _row("parameters", "", arms, lambda arm: count(arm["params"])),
        _row("of them in the residual path", "", arms, lambda arm: counted(arm["parameters"].get("path", 0))),
        _row("FLOPs per token", "forward and backward", arms, lambda arm: count(arm["flops_per_token"])),
        _row("tokens per second", f"{medians}{shared}", arms, lambda arm: rate(arm["tokens_per_second"])),
        _row("step time", f"over {document['reference']}'s, {medians}{shared}", arms, _step_time),
        _row("training time", f"without validation, median over seeds{shared}", arms, _training_time),
        _row("peak memory", f"{counted_memory}, largest of all seeds", arms, lambda arm: memory(arm["peak_memory"])),
    ]
    return oriented(Table("Size, speed and memory", [arm["name"] for arm in arms], rows, arms=True))


def _training_time(arm: Document) -> str:
    return duration(arm["seconds"])


def _step_time(arm: Document) -> str:
    return times(arm["relative_step_time"])


def results(document: Document) -> Table:
    """The numbers that a training ends with, an arm a column."""
    arms = document["arms"]
    mean = f"mean over {'the seeds of each arm' if uneven(document) else 'seeds'}"
    rows = [
        _row("validation loss", f"nats per token, {mean}", arms, _mean_loss),
        _row("bits per byte", f"validation, {mean}", arms, lambda arm: _ended(arm, arm["val_bpb"])),
        _row("training loss", f"last logged, {mean}", arms, lambda arm: _ended(arm, arm["train_loss"])),
        _row("seeds", "", arms, lambda arm: listed(list(map(str, arm["seeds"]))) or FAILED),
        _row("steps", "", arms, lambda arm: _value(arm["steps"])),
        _row("training tokens", "", arms, lambda arm: count(arm["tokens"])),
    ]
    if any(len(arm["seeds"]) > 1 for arm in arms):
        spread = _row("standard deviation", "of the validation loss over seeds", arms, _deviation)
        rows[1:1] = [spread, *(_by_seed(arms, seed) for seed in document["seeds"])]
    return oriented(Table("Losses at the end of training", [arm["name"] for arm in arms], rows, arms=True))


def _ended(arm: Document, value: Number) -> str:
    """A final loss, of an arm of which some run may have come to its end."""
    return loss(value) if arm["runs"] else FAILED


def _mean_loss(arm: Document) -> str:
    """The mean over the seeds that have a loss, and how many they are where not all do."""
    known, seeds = final_losses(arm), len(arm["seeds"])
    mean = _ended(arm, statistics.fmean(known.values()) if known else None)
    return f"{mean} ({len(known)} of {many(seeds, 'seed')})" if 0 < len(known) < seeds else mean


def _deviation(arm: Document) -> str:
    known = final_losses(arm).values()
    return loss(statistics.stdev(known)) if len(known) > 1 else "fewer than two losses"


def stability(document: Document) -> Table:
    """How smoothly each arm trained."""
    arms = document["arms"]
    threshold = short(arms[0]["spikes"]["threshold"])
    rows = [
        _row(
            "stretches with a loss spike",
            f"between logged steps, above {threshold} standard deviations",
            arms,
            lambda arm: str(arm["spikes"]["steps"]),
        ),
        _row("worst spike", "standard deviations", arms, lambda arm: _known(arm["spikes"]["worst"])),
        _row(
            "gradient norm", "median of logged steps", arms, lambda arm: _known((arm["grad_norm"] or {}).get("median"))
        ),
        _row("largest gradient norm", "of logged steps", arms, lambda arm: _known((arm["grad_norm"] or {}).get("max"))),
        _row("skipped updates", "not finite", arms, lambda arm: str(arm["skipped"])),
        _row("runs that did not finish", "", arms, lambda arm: str(len(arm["failed"]))),
    ]
    return oriented(Table("Training stability, all seeds", [arm["name"] for arm in arms], rows, arms=True))


def _known(value: Number) -> str:
    return "not logged" if value is None else number(value, 3)


def _row(name: str, detail: str, arms: list[Document], cell: Callable[[Document], str]) -> tuple[Cell, list[Cell]]:
    return Cell(name, detail), [Cell(cell(arm)) for arm in arms]


def _by_seed(arms: list[Document], seed: int) -> tuple[Cell, list[Cell]]:
    return _row("validation loss", f"seed {seed}", arms, lambda arm: _of_seed(arm, seed))


def _of_seed(arm: Document, seed: int) -> str:
    if seed in arm["seeds"]:
        return loss(arm["val_loss_by_seed"][str(seed)])
    return FAILED if any(run["seed"] == seed for run in arm["failed"]) else "no run"


def differences(document: Document, family: str) -> Table:
    """Differences of validation loss within a family of pairs, with what can be said of chance; the surest first
    where there are too many to list."""
    found = [row for row in document["differences"] if row["family"] == family]
    shown = sorted(found, key=_surest)[:MOST] if len(found) > MOST else found
    to = f" with {document['reference']}" if family == "reference" else " between the other arms"
    caption = f"Differences of validation loss{to}, paired by seed"
    caption += f": the {MOST} surest of {len(found)}, all in report.json" if len(found) > MOST else ""
    columns = [
        "difference",
        "verdict",
        "95 % interval",
        "p, corrected",
        "over seed noise",
        f"to see {_detect(found) or 'more'}",
    ]
    return Table(caption, columns, [_difference(row, document["comparable"]) for row in shown])


def _surest(row: Document) -> tuple[float, float]:
    return (2.0 if row["p_corrected"] is None else row["p_corrected"], -abs(row["mean"] or 0.0))


def _detect(rows: list[Document]) -> str:
    """The difference that power is stated for; empty where it is stated of none."""
    return next((f"{100 * row['power']['detect']:g} %" for row in rows if row["power"]), "")


def _difference(row: Document, comparable: bool) -> tuple[Cell, list[Cell]]:
    interval = " to ".join(map(signed, row["interval"])) if row["interval"] else "none"
    cells = [
        Cell(signed(row["mean"]), percent(row["relative"])),
        Cell(verdict_of(row) if comparable else "not comparable"),
        Cell(interval),
        Cell(chance(row["p_corrected"]), f"alone {chance(row['p_value'])}" if row["p_value"] is not None else ""),
        Cell("none" if row["effect"] is None else number(row["effect"], 2)),
        Cell(_more_seeds(row["power"])),
    ]
    return Cell(f"{row['b']} {MINUS} {row['a']}", f"{many(len(row['seeds']), 'common seed')}"), cells


def _more_seeds(power: Document | None) -> str:
    if power is None:
        return "not known"
    least = "at least " if power["capped"] else ""
    return f"{least}{many(power['more'], 'more seed')}" if power["more"] > 0 else "seeds suffice"


def budgets(document: Document) -> Table | None:
    """Validation loss at equal tokens, FLOPs and time; None where there is nothing to compare."""
    names, rows = [arm["name"] for arm in document["arms"]], document["budgets"]
    if len(names) < 2 or not rows:
        return None
    paired = uneven(document)
    drawn = [
        (Cell(budget_of(row), row["caveat"] or ""), [_at_budget(row, name, paired) for name in names]) for row in rows
    ]
    return oriented(Table("Validation loss at equal budgets, interpolated", names, drawn, arms=True))


def _at_budget(row: Document, arm: str, paired: bool) -> Cell:
    """The mean loss, and the difference from the reference; `paired` says over how many seeds where means do not."""
    found = next((each for each in row["differences"] if each["b"] == arm), None)
    text = "none" if row["losses"][arm] is None else loss(row["losses"][arm])
    if found is None:
        return Cell(text)
    over = f" over {many(len(found['seeds']), 'common seed')}" if paired else ""
    return Cell(text, f"{signed(found['mean'])}{over}; {found['verdict']}")


def scorecard(document: Document) -> Table | None:
    """Laws by arms, at each seed's last measurement; None if none was measured."""
    arms = document["arms"]
    meanings = {row["law"]: row["meaning"] for arm in arms for row in arm["laws"]}
    rows = [
        (Cell(law_name(law), meaning), [_score(arm["laws"], law) for arm in arms]) for law, meaning in meanings.items()
    ]
    caption = "Conservation scorecard: the laws of the residual path at the last measurement"
    return oriented(Table(caption, [arm["name"] for arm in arms], rows, arms=True)) if rows else None


def _score(laws: list[Document], law: str) -> Cell:
    """The worst verdict over seeds, and how many of them share it where not all do."""
    row = next((row for row in laws if row["law"] == law), None)
    if row is None:
        return Cell(NOT_DECLARED if laws else NOT_MEASURED)
    cell, verdicts = law_cell(row), list(row["verdicts"].values())
    agree = verdicts.count(row["verdict"])
    if agree == len(verdicts):
        return cell
    return replace(cell, detail="; ".join(filter(None, [f"{agree} of {len(verdicts)} seeds", cell.detail])))


def brief(table: Table) -> Table:
    """The scorecard with the evidence of warnings and failures only."""
    rows = [
        (head, [cell if cell.state in ("warn", "fail") else replace(cell, detail="") for cell in cells])
        for head, cells in table.rows
    ]
    return replace(table, rows=rows)


def oriented(table: Table) -> Table:
    """Arms as columns, or as rows where they are too many to stand beside each other."""
    if len(table.columns) <= COLUMNS:
        return table
    heads = [head for head, _ in table.rows]
    rows = [(Cell(name), [cells[place] for _, cells in table.rows]) for place, name in enumerate(table.columns)]
    details = [head.detail for head in heads]
    return Table(table.caption, [head.text for head in heads], rows, details=details, across=True)


def laws_table(caption: str, measured: Measured) -> Table | None:
    """Laws by models; None if none was measured."""
    laws = {name: measurement["laws"] for name, measurement in measured if measurement}
    if not laws:
        return None
    meanings = {row["law"]: row["meaning"] for rows in laws.values() for row in rows}
    rows = [
        (Cell(law_name(law), meaning), [_law_of(laws.get(name, []), law) for name, _ in measured])
        for law, meaning in meanings.items()
    ]
    return Table(caption, [name for name, _ in measured], rows, arms=True)


def _law_of(laws: list[dict[str, Any]], law: str) -> Cell:
    row = next((row for row in laws if row["law"] == law), None)
    return law_cell(row) if row else Cell(NOT_DECLARED if laws else NOT_MEASURED)


def law_cell(row: dict[str, Any]) -> Cell:
    """A verdict with its evidence."""
    return Cell(row["verdict"], evidence(row), row["verdict"].replace(" ", "-"))


def path_numbers(caption: str, measured: Measured) -> Table | None:
    """A dozen numbers that sum up each residual path, as far as they are known; None if none was measured."""
    if not any(measurement for _, measurement in measured):
        return None
    rows = [
        (Cell(name, detail), [Cell(path_number(measurement, read)) for _, measurement in measured])
        for name, detail, read in PATH_NUMBERS
    ]
    known = [(head, cells) for head, cells in rows if any(cell.text != NOT_MEASURED for cell in cells)]
    return oriented(Table(caption, [name for name, _ in measured], known, arms=True))


def config_differences(document: dict[str, Any]) -> Table:
    """The configuration keys in which arms differ."""
    names = [arm["name"] for arm in document["arms"]]
    rows = [
        (Cell(key), [Cell(_value(values[name])) for name in names])
        for key, values in document["configuration"]["different"].items()
    ]
    return oriented(Table("Keys that differ between arms", names, rows, arms=True))


def keys(caption: str, values: dict[str, Any]) -> Table:
    """Keys and values under a caption."""
    return Table(caption, ["value"], [(Cell(key), [Cell(_value(value))]) for key, value in values.items()])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "none" if value is None else str(value)


def environment_rows(environment: dict[str, Any]) -> dict[str, Any]:
    """The environment with its git state in words."""
    git = environment.get("git")
    state = None if not git else f"{git['commit']} ({'clean' if git['clean'] else 'with uncommitted changes'})"
    return {key: value for key, value in environment.items() if key != "git"} | {"git": state}


def samples(arms: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """For every prompt, what each arm made of it."""
    count = max((len(arm["samples"]) for arm in arms), default=0)
    return [
        [{"arm": arm["name"]} | arm["samples"][number] for arm in arms if number < len(arm["samples"])]
        for number in range(count)
    ]


def commands(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What to type to make the runs again; None where no overrides were recorded."""
    return [
        {"arm": arm["name"], "run": run, "command": f"mhc-train fit {shlex.join(overrides)}" if overrides else None}
        for arm in document["arms"]
        for run, overrides in zip(arm["runs"], arm["overrides"], strict=True)
    ]


def report_command(document: Document) -> str:
    """What to type to make the report again from all its runs, also those that failed."""
    runs = [run for arm in document["arms"] for run in (*arm["runs"], *(run["run"] for run in arm["failed"]))]
    options = ["--against", document["reference"]] if len(document["arms"]) > 1 else []
    options += [text for key in document["varied"] for text in ("--vary", key)]
    detect = _detect(document["differences"]).replace(" ", "")
    options += ["--detect", detect] if detect else []
    return f"mhc-train compare {shlex.join([*runs, *options])}"


def untold(document: Document) -> str:
    """What that command cannot know of, because no run's own files say it."""
    parts = [f"{many(len(document['lost']), 'planned run')} that left nothing"] if document["lost"] else []
    parts += ["the tuning"] if document["tuning"] else []
    parts += [f"that {document['concurrent']} runs shared the machine"] if document["concurrent"] > 1 else []
    return listed(parts)
