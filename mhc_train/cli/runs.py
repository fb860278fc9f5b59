"""`mhc-train runs`: what every run, comparison and sweep has come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mhc_train.cli.options import Json

if TYPE_CHECKING:
    from mhc_train.report.listing import Entry

SCHEMA_VERSION = 1
KEYS = (
    "name", "state", "arm", "streams", "seed", "step", "tokens", "train_loss", "val_loss", "forward_gain",
    "backward_gain", "begun",
)  # fmt: skip
COLUMNS = (
    "run", "state", "arm", "streams", "seed", "steps", "tokens", "train loss", "val loss", "fwd gain", "bwd gain",
    "age",
)  # fmt: skip
OPTIONAL = ("tokens", "streams", "train loss", "bwd gain", "seed", "age", "fwd gain", "arm")
"""What is left out where there is no room, in this order."""
UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def runs(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIRECTORY|RUN...]",
            help="Directories of runs; single runs; or comparisons and sweeps, which are listed with their runs. "
            "Without any: runs/.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help="Only these: running, done, failed, stopped, starting, dead (it says running, and no process is), "
            "broken (a file cannot be read). Repeatable.",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort", help=f"Smallest first, by {', '.join(KEYS)}; without it, newest first.", show_default=False
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    json: Json = False,
) -> None:
    """List runs: where each stands, its last losses, and the composite gains of its last measurement.

    Gains are the largest over depth and tokens. Rows of comparisons and sweeps say how many runs are done.

    Examples:

    mhc-train runs

    mhc-train runs --state done --sort val_loss

    mhc-train runs runs/20260101-120000-compare-0a1b2c --json
    """
    from dataclasses import asdict

    from mhc_train.cli.output import print_json
    from mhc_train.report.listing import STATES, listed

    _check("--state", state or [], STATES)
    _check("--sort", [sort] if sort else [], KEYS)
    places = paths or [Path("runs")]
    found = [entry for entry in listed(places) if not state or entry.state in state]
    if sort:
        found = _sorted(found, sort)
    if reverse:
        found.reverse()
    if json:
        print_json({"schema_version": SCHEMA_VERSION, "runs": [asdict(entry) for entry in found]})
    elif found:
        _print(found)
    else:
        named = f" that is {' or '.join(state)}" if state else ""
        print(f"No run{named} in {', '.join(map(str, places))}. `mhc-train fit` and `mhc-train compare` make them.")


def _check(option: str, given: list[str], known: tuple[str, ...]) -> None:
    from mhc_train.errors import ConfigError

    for name in given:
        if name not in known:
            raise ConfigError(f"{option} {name}: there is no such one. Type {', '.join(known[:-1])} or {known[-1]}.")


def _sorted(entries: "list[Entry]", key: str) -> "list[Entry]":
    """By a key; entries without it come last, as they came."""
    known = [entry for entry in entries if getattr(entry, key) is not None]
    return sorted(known, key=lambda entry: getattr(entry, key)) + [e for e in entries if getattr(e, key) is None]


def _print(entries: "list[Entry]") -> None:
    from mhc_train.cli.output import print_table

    left_out = print_table("Runs", COLUMNS, [_cells(entry) for entry in entries], left=3, optional=OPTIONAL)
    if left_out:
        print(f"No room for {', '.join(left_out)}: a wider terminal has it, and so has --json.")
    for entry in entries:
        if entry.problem:
            print(f"{entry.name}: {entry.problem}.")
        if entry.go_on:
            print(f"{entry.name}: goes on with `{entry.go_on}`.")


def _cells(entry: "Entry") -> list[str]:
    from mhc_train.cli.output import number

    return [
        entry.name,
        entry.state,
        entry.arm or (entry.kind if entry.kind != "run" else "-"),
        _count(entry.streams),
        "-" if entry.seed is None else str(entry.seed),
        _progress(entry),
        _count(entry.tokens),
        number(entry.train_loss, 4),
        number(entry.val_loss, 4),
        *(_gain(entry, gain) for gain in (entry.forward_gain, entry.backward_gain)),
        _age(entry),
    ]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _progress(entry: "Entry") -> str:
    if entry.jobs is not None:
        return f"{entry.jobs.get('done', 0)}/{sum(entry.jobs.values())} runs"
    return "-" if entry.step is None else f"{entry.step}/{'-' if entry.steps is None else entry.steps}"


def _gain(entry: "Entry", gain: float | None) -> str:
    from mhc_train.cli.output import number

    return "not finite" if entry.measured is not None and gain is None else number(gain)


def _age(entry: "Entry") -> str:
    import datetime

    seconds = (datetime.datetime.now() - datetime.datetime.fromisoformat(entry.begun)).total_seconds()
    return next((f"{seconds / size:.0f} {unit}" for size, unit in UNITS if seconds >= size), "now")
