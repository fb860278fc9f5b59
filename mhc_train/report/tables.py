"""A comparison in tables: results, laws, the residual path in numbers, configurations, samples, commands."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from mhc_train.report.page import Cell, Table
from mhc_train.report.readings import NOT_DECLARED, NOT_MEASURED, PATH_NUMBERS, evidence, path_number
from mhc_train.report.words import (
    MINUS,
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

Measured = Sequence[tuple[str, dict[str, Any] | None]]
"""Names, and what was measured of each residual path."""


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
    return Table(caption, [name for name, _ in measured], known, arms=True)


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
