"""`mhc-train compare`: plan and train the arms of a comparison, or take finished runs, and report."""

import contextlib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mhc_train.cli.options import AtOnce, ConfigDir, ConfigName, Json, complete_override

if TYPE_CHECKING:
    from mhc_train.report.condition import ComparisonCondition
    from mhc_train.training.comparison import Asked, Comparison

BULKY = ("curves", "courses", "last", "samples")
DETECT = "0.5%"


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...|OVERRIDES...]",
            help="Run directories, and comparisons or sweeps for their finished runs; or Hydra overrides, with sweeps "
            "for what differs between the arms.",
            autocompletion=complete_override,
            show_default=False,
        ),
    ] = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and what it will cost; make and train nothing.")
    ] = False,
    measured: Annotated[
        bool, typer.Option("--estimate/--no-estimate", help="Whether to estimate the time by a few steps of each arm.")
    ] = True,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="COMPARISON", help="Go on with a comparison where it stopped.", show_default=False
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: try failed runs again, too.")
    ] = False,
    at_once: AtOnce = 1,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            "--tune",
            metavar="KEY=VALUES",
            help="Let each arm choose its own value first, on a seed that is not compared. Repeatable.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY",
            help="A key that the arms differ in on purpose; what is swept or tuned is known. Repeatable.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ARM", help="The reference arm; the first without it.", show_default=False),
    ] = None,
    detect: Annotated[
        str, typer.Option("--detect", help="The relative difference of loss that there should be seeds enough for.")
    ] = DETECT,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="CONDITION",
            help="Exit with code 6 if this holds of the comparison. Repeatable; docs/comparing.md has all.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Directory of the report; without it, in the comparison's.", show_default=False
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show the report in the browser.")] = False,
    json: Json = False,
) -> None:
    """Compare connections under identical conditions: same backbone weights, same tokens in the same order.

    Without a sweep the arms are residual, hc and mhc. Runs that differ in their seed alone form one arm.

    Examples:

    mhc-train compare experiment=quickstart

    mhc-train compare --dry-run connection=residual,mhc 'seed=range(1,6)' model=small train.steps=2000

    mhc-train compare connection=residual,mhc 'seed=range(1,4)' 'data.seed=${seed}' model=small

    mhc-train compare connection=residual,mhc 'seed=range(1,4)' --tune optim.lr=1e-3,2e-3,4e-3

    mhc-train compare connection=mhc connection.streams=2,4,8 --jobs 2

    mhc-train compare --resume runs/20260101-120000-compare-0a1b2c

    mhc-train compare runs/20260101-120000-residual-0a1b2c runs/20260101-121500-mhc-3d4e5f --against residual
    """
    from mhc_train.errors import ConfigError
    from mhc_train.training.comparison import Asked

    given, end = arguments or [], End(output, open_page, json)
    conditions = _conditions(fail_on or [])
    asked = Asked(tuple(tune or ()), tuple(vary or ()), against, _share(detect), tuple(fail_on or ()))
    if resume is None and retry_failed:
        raise ConfigError("--retry-failed is for a comparison that was begun. Type --resume COMPARISON, too.")
    if resume is None and given and not any("=" in text for text in given):
        if tune or dry_run or at_once > 1:
            raise ConfigError(
                "--tune, --dry-run and --jobs are for trainings: runs that are there are read as they are."
            )
        document, page = _of_directories(list(map(Path, given)), asked, output)
        _show(document, page, end)
        _fail(document, conditions)
        return
    comparison = _begun(resume, given, asked) if resume else _planned(given, config_name, config_dir, asked, measured)
    _print_plan(comparison, json, dry_run)
    if not dry_run:
        if resume is None:
            comparison.create(given)
        _train(comparison.path, retry_failed, at_once, end, conditions or _conditions(comparison.fail_on))


class End(NamedTuple):
    """What is wanted at the end."""

    directory: Path | None
    """Of the report, where one is named."""
    open_page: bool
    json: bool


def _conditions(texts: list[str]) -> "list[ComparisonCondition]":
    """Parsed before anything is trained: a mistyped one should not cost hours."""
    if not texts:
        return []
    from mhc_train.report.condition import parse_comparison

    return [parse_comparison(text) for text in texts]


def _share(text: str) -> float:
    """A share, typed as 0.5% or 0.005."""
    from mhc_train.errors import ConfigError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"--detect {text}: type a share of the loss, such as {DETECT}.")
    return share


def _of_directories(paths: list[Path], asked: "Asked", directory: Path | None) -> tuple[dict[str, Any], Path]:
    from mhc_train.training.reporting import new_directory, of_directories, write

    material = of_directories(paths, asked)
    return write(material, directory or new_directory(material.runs))


def _planned(
    overrides: list[str], config_name: str, config_dir: Path | None, asked: "Asked", measured: bool
) -> "Comparison":
    from mhc_train.errors import ConfigError
    from mhc_train.training.comparison import estimate_costs, plan_comparison

    mixed = [text for text in overrides if "=" not in text]
    if mixed:
        raise ConfigError(
            f"{mixed[0]}: neither KEY=VALUE nor, beside overrides, a run. Give runs or overrides, not both."
        )
    comparison = plan_comparison(overrides, config_name, config_dir, asked)
    estimate_costs(comparison, measured)
    return comparison


def _begun(path: Path, overrides: list[str], asked: "Asked") -> "Comparison":
    from mhc_train.errors import ConfigError
    from mhc_train.training.comparison import Asked, read_comparison

    if overrides or asked != Asked(fail_on=asked.fail_on):
        raise ConfigError(
            "A comparison goes on as it was begun. Leave out overrides, --tune, --vary, --against and --detect, or "
            "begin another."
        )
    return read_comparison(path)


def _train(path: Path, retry_failed: bool, at_once: int, end: End, conditions: "list[ComparisonCondition]") -> None:
    """Train what is left, and report what there is, before anything that went wrong ends the command."""
    from mhc_train.console import say
    from mhc_train.training.comparison import run_comparison
    from mhc_train.training.sweep import raise_if_failed, raise_if_stopped

    say(f"Comparison {path}")
    comparison = run_comparison(path, retry_failed, at_once)
    raise_if_stopped(comparison)
    # Imported after the training: SciPy and Matplotlib would keep it waiting for seconds.
    from mhc_train.training.reporting import report

    written = report(comparison, end.directory)
    if written is None:
        say("No run has finished: there is nothing to report.")
    else:
        _show(*written, end)
    raise_if_failed(comparison)
    if written is not None:
        _fail(written[0], conditions)


def _show(document: dict[str, Any], page: Path, end: End) -> None:
    """The document or its summary, and the page where it is asked for."""
    from mhc_train.cli.output import print_json

    if end.json:
        arms = [{key: value for key, value in arm.items() if key not in BULKY} for arm in document["arms"]]
        print_json(document | {"arms": arms, "report": str(page)})
    else:
        _print_summary(document, page)
    if end.open_page:
        with contextlib.suppress(Exception):  # a machine without a browser has its report all the same
            webbrowser.open(page.resolve().as_uri())


def _fail(document: dict[str, Any], conditions: "list[ComparisonCondition]") -> None:
    """Exit with code 6 if a condition holds."""
    from mhc_train.errors import VerdictError

    if found := [place for condition in conditions for place in condition.violations(document)]:
        raise VerdictError("\n".join(found))


def _print_plan(comparison: "Comparison", json: bool, dry_run: bool) -> None:
    """The arms and what they cost; as JSON, with every job's command, where that is all that is asked for."""
    from mhc_train.cli.output import duration, number, print_json, print_table
    from mhc_train.console import say
    from mhc_train.training.forecast import forecast, in_words

    document = forecast(comparison)
    if json and dry_run:
        print_json(document)
    if json:
        say("\n".join(in_words(document)))
        return
    rows = [
        (
            arm["name"],
            str(arm["runs"]),
            f"{arm['parameters']:,}",
            f"{arm['flops_per_token'] / 1e6:,.1f}",
            number(arm["seconds_per_step"]),
            duration(arm["seconds_per_run"]),
            duration(arm["seconds"]),
        )
        for arm in document["arms"]
    ]
    columns = ("arm", "runs", "parameters", "MFLOP a token", "seconds a step", "a run", "all")
    print_table("Plan", columns, rows)
    for line in in_words(document):
        print(line)


def _print_summary(document: dict[str, Any], page: Path) -> None:
    """The arms in numbers, then in words what may be said, and what must be."""
    from mhc_train.cli.output import number, print_table
    from mhc_train.report.readings import largest

    rows = []
    for arm in document["arms"]:
        last = arm["last"]
        memory = arm["peak_memory"]
        rows.append(
            (
                arm["name"],
                "-" if arm["params"] is None else f"{arm['params'] / 1e6:.2f} M",
                number(arm["val_loss"], 4),
                number(arm["val_bpb"], 4),
                number(arm["tokens_per_second"], 0),
                number(arm["relative_step_time"], 2),
                "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
                number(largest(last["composite"]["forward"], "forward_gain") if last else None),
            )
        )
    columns = ("arm", "params", "val loss", "bits/byte", "tokens/s", "step time", "peak memory", "composite gain (max)")
    print_table("Comparison", columns, rows)
    for line in _remarks(document):
        print(line)
    for row in document["differences"]:
        mean = "unknown" if row["mean"] is None else f"{row['mean']:+.4f}"
        print(f"{row['b']} - {row['a']}: {mean} validation loss; {row['verdict']}.")
    print(f"Report: {page}")


def _remarks(document: dict[str, Any]) -> list[str]:
    """What keeps the numbers from being what they seem."""
    edges = [row for row in document["tuning"] if row["edge"]]
    return [
        *(f"Not comparable: {reason}." for reason in document["reasons"]),
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
