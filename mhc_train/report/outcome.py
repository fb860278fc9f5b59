"""A comparison on a terminal: its arms in numbers, then in words what may be said, and what must be."""

from pathlib import Path
from typing import Any

from mhc_train.report.readings import worst_gain
from mhc_train.report.summary import difference_lines
from mhc_train.tables import count, number, print_table

COLUMNS = ("arm", "params", "val loss", "bits/byte", "tokens/s", "step time", "peak memory", "composite gain (max)")


def print_outcome(document: dict[str, Any], page: Path) -> None:
    """Print what a comparison came to, and where its report is."""
    print_table("Comparison", COLUMNS, [_row(arm) for arm in document["arms"]])
    for line in _remarks(document):
        print(line)
    for line in difference_lines(document):
        print(f"{line}.")
    print(f"Report: {page}")


def _row(arm: dict[str, Any]) -> tuple[str, ...]:
    memory = arm["peak_memory"]
    return (
        arm["name"],
        "-" if arm["params"] is None else f"{arm['params'] / 1e6:.2f} M",
        number(arm["val_loss"], 4),
        number(arm["val_bpb"], 4),
        count(arm["tokens_per_second"]),
        number(arm["relative_step_time"], 2),
        "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
        number(worst_gain(arm, "forward")),
    )


def _remarks(document: dict[str, Any]) -> list[str]:
    """What keeps the numbers from being what they seem."""
    edges = [row for row in document["tuning"] if row["edge"]]
    return [
        *(f"Not comparable: {reason}." for reason in document["reasons"]),
        *["A key that is meant to differ is named by --vary KEY."] * bool(document["reasons"]),
        *(f"{row['name']}: no run; {row['error']}." for row in document["lost"]),
        *(
            f"{arm['name']}, seed {run['seed']}: failed at step {run['step']}: {run['error']}"
            for arm in document["arms"]
            for run in arm["failed"]
        ),
        *(
            f"{row['name']}: {row['key']}={row['chosen']} is at the edge of what was tried; one beyond may be better."
            for row in edges
        ),
        *(
            [f"{document['concurrent']} runs shared the machine: speeds are no measurements."]
            * (document["concurrent"] > 1)
        ),
    ]
