"""A comparison in tables: results, laws, the residual path in numbers, configurations, samples, commands."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mhc_train.report.page import Cell, Table
from mhc_train.report.readings import NOT_DECLARED, NOT_MEASURED, PATH_NUMBERS, Document, evidence, path_number
from mhc_train.report.words import (
    MINUS,
    Number,
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
)

Measured = Sequence[tuple[str, dict[str, Any] | None]]
"""Names, and what was measured of each residual path."""
COLUMNS = 8
"""Arms that can stand beside each other in a table; more stand below each other."""
MOST = 100
"""Pairs that a table of differences lists."""


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


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was found the same of all that decides about losses, and what limits the reading without deciding."""
    limits = [f"{row['name']} ({row['state']}: {row['matters']})" for row in rows if row["state"] != "same"]
    return {"decided": listed([row["name"] for row in rows if row["decisive"]]), "limits": listed(limits)}


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
    rows = [
        _row("parameters", "", arms, lambda arm: count(arm["params"])),
        _row("of them in the residual path", "", arms, lambda arm: counted(arm["parameters"].get("path", 0))),
        _row("FLOPs per token", "forward and backward", arms, lambda arm: count(arm["flops_per_token"])),
        _row("tokens per second", f"median of logged steps{shared}", arms, lambda arm: rate(arm["tokens_per_second"])),
        _row("step time", f"relative to {document['reference']}", arms, lambda arm: times(arm["relative_step_time"])),
        _row("training time", "median over seeds, without validation", arms, lambda arm: duration(arm["seconds"])),
        _row("peak memory", counted_memory, arms, lambda arm: memory(arm["peak_memory"])),
    ]
    return oriented(Table("Size, speed and memory", [arm["name"] for arm in arms], rows, arms=True))


def results(document: Document) -> Table:
    """The numbers that a training ends with, an arm a column."""
    arms = document["arms"]
    rows = [
        _row("validation loss", "nats per token, mean over seeds", arms, lambda arm: loss(arm["val_loss"])),
        _row("bits per byte", "validation, mean over seeds", arms, lambda arm: loss(arm["val_bpb"])),
        _row("training loss", "last logged, mean over seeds", arms, lambda arm: loss(arm["train_loss"])),
        _row("seeds", "", arms, lambda arm: listed(list(map(str, arm["seeds"])))),
        _row("steps", "", arms, lambda arm: _value(arm["steps"])),
        _row("training tokens", "", arms, lambda arm: count(arm["tokens"])),
    ]
    if any(len(arm["seeds"]) > 1 for arm in arms):
        spread = _row(
            "standard deviation", "of the validation loss over seeds", arms, lambda arm: _sd(arm["val_loss_sd"])
        )
        rows[1:1] = [spread, *(_by_seed(arms, seed) for seed in document["seeds"])]
    return oriented(Table("Losses at the end of training", [arm["name"] for arm in arms], rows, arms=True))


def _sd(value: Number) -> str:
    return "of one seed there is none" if value is None else loss(value)


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
    values = [arm["val_loss_by_seed"] for arm in arms]
    cells = [Cell(loss(table[str(seed)]) if str(seed) in table else "no run") for table in values]
    return Cell("validation loss", f"seed {seed}"), cells


def differences(document: Document, family: str) -> Table:
    """Differences of validation loss within a family of pairs, with what can be said of chance; the surest first
    where there are too many to list."""
    found = [row for row in document["differences"] if row["family"] == family]
    shown = sorted(found, key=_surest)[:MOST] if len(found) > MOST else found
    to = f" with {document['reference']}" if family == "reference" else " between the other arms"
    caption = f"Differences of validation loss{to}, paired by seed"
    caption += f": the {MOST} surest of {len(found)}, all in report.json" if len(found) > MOST else ""
    columns = ["difference", "verdict", "95 % interval", "p, corrected", "over seed noise", f"to see {_detect(found)}"]
    return Table(caption, columns, [_difference(row, document["comparable"]) for row in shown])


def _surest(row: Document) -> tuple[float, float]:
    return (2.0 if row["p_corrected"] is None else row["p_corrected"], -abs(row["mean"] or 0.0))


def _detect(rows: list[Document]) -> str:
    known = [row["power"]["detect"] for row in rows if row["power"]]
    return f"{100 * known[0]:g} %" if known else "more"


def _difference(row: Document, comparable: bool) -> tuple[Cell, list[Cell]]:
    interval = " to ".join(map(signed, row["interval"])) if row["interval"] else "none"
    cells = [
        Cell(signed(row["mean"]), percent(row["relative"])),
        Cell(_verdict(row) if comparable else "not comparable"),
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


def _verdict(row: Document) -> str:
    return f"{row['b']} is {row['verdict']}" if row["verdict"] in ("lower", "higher") else row["verdict"]


def budgets(document: Document) -> Table | None:
    """Validation loss at equal tokens, FLOPs and time; None where there is nothing to compare."""
    arms, rows = [arm["name"] for arm in document["arms"]], document["budgets"]
    if len(arms) < 2 or not rows:
        return None
    drawn = [(Cell(_budget(row), row["caveat"] or ""), [_at_budget(row, name) for name in arms]) for row in rows]
    return oriented(Table("Validation loss at equal budgets, interpolated", arms, drawn, arms=True))


def _budget(row: Document) -> str:
    writers = {"tokens": lambda amount: f"{counted(amount)} tokens", "flops": lambda amount: f"{counted(amount)} FLOPs"}
    return f"equal {writers.get(row['budget'], duration)(row['amount'])}"


def _at_budget(row: Document, name: str) -> Cell:
    found = next((each for each in row["differences"] if each["b"] == name), None)
    value = row["losses"][name]
    return Cell(
        "none" if value is None else loss(value), f"{signed(found['mean'])}; {found['verdict']}" if found else ""
    )


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
    fits = [
        {"arm": arm["name"], "run": run, "command": f"mhc-train fit {shlex.join(overrides)}" if overrides else None}
        for arm in document["arms"]
        for run, overrides in zip(arm["runs"], arm["overrides"], strict=True)
    ]
    runs = [fit["run"] for fit in fits]
    return [*fits, {"arm": None, "run": None, "command": f"mhc-train compare {shlex.join(runs)}"}]
