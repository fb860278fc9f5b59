"""`mhc-train bench`: what connections cost on this machine, measured side by side."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mhc_train.cli.options import ConfigDir, ConfigName, Json, Overrides

LONGEST = 7 * 24 * 3600
"""Seconds that a benchmark may be told to take."""


def bench(
    overrides: Overrides = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            help="A connection to measure, an option of conf/connection or overrides: mhc, 'mhc connection.streams=8'. "
            "Repeatable; without any: hc, mhc, mhc_single_pass and the configuration's own.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every option of conf/connection.")] = False,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=1.0,
            help="How long it may take once all models are built; three rounds are taken in any case.",
        ),
    ] = 60.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Directory for bench.json, bench.md and bench.svg; without it, one in runs/.",
            show_default=False,
        ),
    ] = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Measure what hyper-connections cost here: step time and memory beside the plain residual's, in about a minute.

    Each connection has a process of its own; they take training steps in turns, on random tokens: no text is read. Then
    reading, writing and crossing are timed by themselves, beside a copy.

    Examples:

    mhc-train bench

    mhc-train bench model=small train.micro_batch=4 --seconds 120

    mhc-train bench --arm mhc --arm 'mhc connection.streams=2'

    mhc-train bench model=1b train=gpu --all --json
    """
    from mhc_train.bench.arms import check_devices, plan
    from mhc_train.bench.turns import bench as measure
    from mhc_train.cli.output import print_json
    from mhc_train.config.compose import compose
    from mhc_train.errors import ConfigError
    from mhc_train.runs import new_run_path

    if not seconds <= LONGEST:  # or no number
        raise ConfigError(f"--seconds {seconds:g}: type a number from 1 to {LONGEST}, a week.")
    arms = plan(overrides or [], arm or [], every, config_name, config_dir)
    check_devices(arms)
    runs_dir = Path(compose(overrides or [], config_name, config_dir).runs_dir)
    with _made(output or new_run_path(runs_dir, "bench"), asked_for=output is not None) as directory:
        document = measure(arms, seconds)
        written = _write(document, directory)
    if json:
        print_json(document)
    else:
        _print(document, written)


@contextlib.contextmanager
def _made(directory: Path, asked_for: bool) -> Iterator[Path]:
    """Makes it before anything is measured, so that nothing is measured in vain; one made here is not left empty."""
    from mhc_train.files import make_output, storage_errors

    there = directory.exists()
    if asked_for:
        make_output(directory)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        yield directory
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it is not empty
                directory.rmdir()


def _write(document: dict[str, Any], directory: Path) -> list[Path]:
    from mhc_train.report.cost import write

    return write(document, directory)


def _print(document: dict[str, Any], written: list[Path]) -> None:
    from mhc_train.cli.output import print_table
    from mhc_train.report import cost

    print_table("What connections cost", cost.ARMS, cost.arm_rows(document), optional=("CPU time", "quartiles"))
    operators = cost.operator_rows(document)
    if operators:
        print_table("Operators by themselves", cost.OPERATORS, operators, left=3)
    for line in cost.remarks(document):
        print(line)
    print(f"Written: {', '.join(map(str, written))}")
