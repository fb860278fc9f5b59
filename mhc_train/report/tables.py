"""A comparison in tables: results, laws, the residual path in numbers, configurations, samples, commands."""

import shlex
from collections.abc import Callable
from typing import Any

from mhc_train.report.page import Cell, Table
from mhc_train.report.readings import largest
from mhc_train.report.words import (
    MINUS,
    Number,
    count,
    counted,
    law_name,
    listed,
    loss,
    memory,
    number,
    rate,
    signed,
    times,
)


def requirements(document: dict[str, Any]) -> Table:
    """What must agree between runs, and whether it does."""
    rows = [
        (
            Cell(row["name"]),
            [
                Cell(row["state"], state=row["state"]),
                Cell("" if row["state"] == "same" else row["matters"]),
                Cell("losses" if row["decisive"] else "reading only"),
            ],
        )
        for row in document["requirements"]
    ]
    return Table("What must agree between runs", ["state", "if it differs", "bears on"], rows)


def agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was found the same of all that decides about losses, and what limits the reading without deciding."""
    limits = [f"{row['name']} ({row['state']}: {row['matters']})" for row in rows if row["state"] != "same"]
    return {"decided": listed([row["name"] for row in rows if row["decisive"]]), "limits": listed(limits)}


def results(document: dict[str, Any]) -> Table:
    """The numbers that a training ends with, an arm a column."""
    arms = document["arms"]
    counts = [arm["peak_memory_counted"] for arm in arms]
    counted_memory = str(counts[0]) if len(set(counts)) == 1 else "see the run's status.json"
    rows = [
        _row("validation loss", "nats per token, mean over seeds", arms, lambda arm: loss(arm["val_loss"])),
        _row("bits per byte", "validation, mean over seeds", arms, lambda arm: loss(arm["val_bpb"])),
        _row("training loss", "last logged, mean over seeds", arms, lambda arm: loss(arm["train_loss"])),
        _row("seeds", "", arms, lambda arm: listed(list(map(str, arm["seeds"])))),
        _row("steps", "", arms, lambda arm: str(arm["steps"])),
        _row("training tokens", "", arms, lambda arm: count(arm["tokens"])),
        _row("parameters", "", arms, lambda arm: counted(arm["params"])),
        _row("of them in the residual path", "", arms, lambda arm: counted(arm["parameters"].get("path", 0))),
        _row("FLOPs per token", "forward and backward", arms, lambda arm: counted(arm["flops_per_token"])),
        _row("tokens per second", "median of logged steps", arms, lambda arm: rate(arm["tokens_per_second"])),
        _row("step time", f"relative to {arms[0]['name']}", arms, lambda arm: times(arm["relative_step_time"])),
        _row("peak memory", counted_memory, arms, lambda arm: memory(arm["peak_memory"])),
    ]
    if any(len(arm["seeds"]) > 1 for arm in arms):
        rows[1:1] = [_by_seed(arms, seed) for seed in document["seeds"]]
    return Table("Loss, size, speed and memory", [arm["name"] for arm in arms], rows, arms=True)


def _row(
    name: str, detail: str, arms: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]
) -> tuple[Cell, list[Cell]]:
    return Cell(name, detail), [Cell(cell(arm)) for arm in arms]


def _by_seed(arms: list[dict[str, Any]], seed: int) -> tuple[Cell, list[Cell]]:
    values = [arm["val_loss_by_seed"] for arm in arms]
    cells = [Cell(loss(table[str(seed)]) if str(seed) in table else "no run") for table in values]
    return Cell("validation loss", f"seed {seed}"), cells


def differences(document: dict[str, Any]) -> Table:
    """Differences of validation loss between arms, with what can be said of chance."""
    rows = [
        (
            Cell(f"{row['b']} {MINUS} {row['a']}"),
            [
                Cell(signed(row["mean"])),
                Cell(_verdict(row) if document["comparable"] else "not comparable"),
                Cell(" to ".join(map(signed, row["interval"])) if row["interval"] else "none"),
                Cell("none" if row["p_value"] is None else number(row["p_value"], 2)),
                Cell(str(len(row["seeds"]))),
            ],
        )
        for row in document["differences"]
    ]
    columns = ["mean", "verdict", "95 % interval", "p", "seeds"]
    return Table("Differences of validation loss, paired by seed", columns, rows)


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['b']} is {row['verdict']}" if row["verdict"] in ("lower", "higher") else row["verdict"]


def laws_table(document: dict[str, Any]) -> Table | None:
    """Laws by arms, at the last measurement."""
    judged = {arm["name"]: arm["measurements"][-1]["laws"] for arm in document["arms"] if arm["measurements"]}
    if not judged:
        return None
    order = dict.fromkeys(row["law"] for laws in judged.values() for row in laws)
    meanings = {row["law"]: row["meaning"] for laws in judged.values() for row in laws}
    rows = [
        (Cell(law_name(law), meanings[law]), [_law_of(judged.get(arm["name"], []), law) for arm in document["arms"]])
        for law in order
    ]
    return Table(
        "Laws of the residual path at the last measurement", [arm["name"] for arm in document["arms"]], rows, True
    )


def _law_of(laws: list[dict[str, Any]], law: str) -> Cell:
    row = next((row for row in laws if row["law"] == law), None)
    return law_cell(row) if row else Cell("not measured")


def law_cell(row: dict[str, Any]) -> Cell:
    """A verdict with its evidence."""
    evidence, declared = row["evidence"], row["declared"]
    parts = []
    if evidence:
        parts.append(f"{evidence['measure'].replace('_', ' ')} {number(evidence['value'])} at {row['worst']}")
    elif row["verdict"] == "fail":
        parts.append("not finite anywhere")
    if declared:
        parts.append(_declared(declared))
    return Cell(row["verdict"], "; ".join(parts), row["verdict"].replace(" ", "-"))  # fmt: skip


def _declared(declared: dict[str, Any]) -> str:
    tolerance, span = declared["tolerance"], declared["logit_range"]
    text = f"declared to {number(tolerance, 1)}" if tolerance else "declared exact"
    return text if span is None else f"{text} while logits span at most {number(span, 1)}"


def path_numbers(document: dict[str, Any]) -> Table | None:
    """A dozen numbers that sum up each residual path; None if none was measured."""
    arms = document["arms"]
    if not any(arm["measurements"] for arm in arms):
        return None
    rows = [(Cell(name, detail), [Cell(_measured(arm, read)) for arm in arms]) for name, detail, read in PATH_NUMBERS]
    return Table("The residual path in numbers, at the last measurement", [arm["name"] for arm in arms], rows, True)


def _measured(arm: dict[str, Any], read: Callable[[dict[str, Any]], Number]) -> str:
    if not arm["measurements"]:
        return "not measured"
    measurement = arm["measurements"][-1]
    value = read(measurement)
    # One stream has no differences and no cosine: that is no numerical failure.
    return "one stream" if value is None and measurement["streams"] == 1 else number(value)


def _composite(way: str, measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: largest(measurement["composite"][way], measure)


def _sublayers(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: largest(measurement["sublayers"], measure)


def _whole(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: measurement["composite"]["forward"][-1][measure]["median"]


def _last(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: measurement["sublayers"][-1][measure]["median"]


PATH_NUMBERS: tuple[tuple[str, str, Callable[[dict[str, Any]], Number]], ...] = (
    ("streams", "", lambda measurement: measurement["streams"]),
    ("composite forward gain", "largest over depth and tokens", _composite("forward", "forward_gain")),
    ("composite backward gain", "largest over depth and tokens", _composite("backward", "backward_gain")),
    ("composite log mass", "largest |log column sum|, sees leaks too", _composite("forward", "log_mass")),
    ("composite difference gain", "whole depth, median token; 0 is collapse", _whole("difference_gain")),
    ("composite effective rank", "whole depth, median token", _whole("effective_rank")),
    ("sublayer forward gain", "largest over sublayers and tokens", _sublayers("forward_gain")),
    ("sublayer backward gain", "largest over sublayers and tokens", _sublayers("backward_gain")),
    ("energy gain of mixing", "largest over sublayers and tokens", _sublayers("energy_gain")),
    ("share of energy in stream differences", "before the last sublayer, median token", _last("stream_difference")),
    ("effective streams", "before the last sublayer, median token", _last("effective_streams")),
    ("cosine between streams", "before the last sublayer, median token", _last("stream_cosine")),
)  # fmt: skip


def config_differences(document: dict[str, Any]) -> Table:
    """The configuration keys in which arms differ."""
    names = [arm["name"] for arm in document["arms"]]
    rows = [
        (Cell(key), [Cell(_value(values[name])) for name in names])
        for key, values in document["configuration"]["different"].items()
    ]
    return Table("Keys that differ between arms", names, rows, arms=True)


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
