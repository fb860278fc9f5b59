"""`mhc-train compare`: plan and train the arms of a comparison, or take finished runs, and report."""

import contextlib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhc_train.cli.options import AtOnce, ConfigDir, ConfigName, Json, complete_override

if TYPE_CHECKING:
    from mhc_train.experiments.comparison import Comparison, Options

BULKY = ("curves", "courses", "last", "samples")


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...|OVERRIDES...]",
            help="Run directories, and comparisons or sweeps for their runs; or Hydra overrides, with sweeps "
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
        str | None,
        typer.Option(
            "--detect",
            metavar="SHARE",
            help="The difference of loss that there should be seeds enough for, such as 1%.",
            show_default=False,
        ),
    ] = None,
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
    from mhc_train.experiments.comparison import Options
    from mhc_train.files import make_output

    given, conditions = arguments or [], fail_on or []
    options = Options(tuple(tune or ()), tuple(vary or ()), against, _share(detect), tuple(conditions))
    if resume is None and retry_failed:
        raise ConfigError("--retry-failed is for a comparison that was begun. Type --resume COMPARISON, too.")
    if resume is None and given and not any("=" in text for text in given):
        if tune or dry_run or at_once > 1:
            raise ConfigError(
                "--tune, --dry-run and --jobs are for trainings: runs that are there are read as they are."
            )
        _compare_runs(list(map(Path, given)), options, output, open_page, json)
        return
    if resume:
        comparison = _begun(resume, given, config_name, config_dir, options)
    else:
        comparison = _planned(given, config_name, config_dir, options, measured)
    _print_plan(comparison, json, dry_run)
    if not dry_run:
        if output:
            make_output(output)
        if resume is None:
            comparison.create(given)
        _train(comparison.path, retry_failed, at_once, output, open_page, json, conditions or comparison.fail_on)


def _share(text: str | None) -> float:
    """A share, typed as 1% or 0.01."""
    from mhc_train.errors import ConfigError
    from mhc_train.report.collect import DETECT

    if text is None:
        return DETECT
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"--detect {text}: type a share of the loss, such as 1%.")
    return share


def _compare_runs(paths: list[Path], options: "Options", output: Path | None, open_page: bool, json: bool) -> None:
    """Report on runs that are there; all are read before anything is made."""
    from mhc_train.experiments.reporting import new_directory, of_directories, write
    from mhc_train.experiments.verdict import raise_if_held
    from mhc_train.files import make_output

    material = of_directories(paths, options)
    if output:
        make_output(output)
    document, page = write(material, output or new_directory(material.runs))
    _show(document, page, open_page, json)
    raise_if_held(options.fail_on, document)


def _planned(
    overrides: list[str], config_name: str, config_dir: Path | None, options: "Options", measured: bool
) -> "Comparison":
    from mhc_train.errors import ConfigError
    from mhc_train.experiments.comparison import estimate_costs, plan_comparison

    mixed = [text for text in overrides if "=" not in text]
    if mixed:
        raise ConfigError(
            f"{mixed[0]}: neither KEY=VALUE nor, beside overrides, a run. Give runs or overrides, not both."
        )
    comparison = plan_comparison(overrides, config_name, config_dir, options)
    estimate_costs(comparison, measured)
    return comparison


def _begun(
    path: Path, overrides: list[str], config_name: str, config_dir: Path | None, options: "Options"
) -> "Comparison":
    from mhc_train.errors import ConfigError
    from mhc_train.experiments.comparison import Options, read_comparison
    from mhc_train.experiments.verdict import check_conditions

    if overrides or config_dir or config_name != "config" or options != Options(fail_on=options.fail_on):
        raise ConfigError(
            "A comparison goes on as it was begun. Leave out overrides, -cn, -cd, --tune, --vary, --against and "
            "--detect, or begin another."
        )
    comparison = read_comparison(path)
    check_conditions(options.fail_on, [arm.name for arm in comparison.arms])
    return comparison


def _train(
    path: Path,
    retry_failed: bool,
    at_once: int,
    output: Path | None,
    open_page: bool,
    json: bool,
    conditions: list[str],
) -> None:
    """Train what is left, and show what there is, before anything that went wrong ends the command."""
    from mhc_train.cli.output import print_json
    from mhc_train.console import say
    from mhc_train.experiments.conclusion import conduct, raise_if_amiss

    say(f"Comparison {path}")
    comparison, written = conduct(path, retry_failed, at_once, output)
    if written is not None:
        _show(*written, open_page, json)
    elif json:
        print_json(comparison.document())
    elif not comparison.stopped:
        say("No run has finished: there is nothing to report.")
    raise_if_amiss(comparison, written, conditions)


def _show(document: dict[str, Any], page: Path, open_page: bool, json: bool) -> None:
    """The document or its summary, and the page where it is asked for."""
    from mhc_train.cli.output import print_json
    from mhc_train.report.outcome import print_outcome

    if json:
        arms = [{key: value for key, value in arm.items() if key not in BULKY} for arm in document["arms"]]
        print_json(document | {"arms": arms, "report": str(page)})
    else:
        print_outcome(document, page)
    if open_page:
        with contextlib.suppress(Exception):  # a machine without a browser has its report all the same
            webbrowser.open(page.resolve().as_uri())


def _print_plan(comparison: "Comparison", json: bool, dry_run: bool) -> None:
    """The arms and what they cost; as JSON, with every job's command, where that is all that is asked for."""
    from mhc_train.cli.output import print_json, print_table
    from mhc_train.console import say
    from mhc_train.experiments.forecast import COLUMNS, OPTIONAL, forecast, in_words, rows

    document = forecast(comparison)
    if json and dry_run:
        print_json(document)
    if json:
        say("\n".join(in_words(document)))
        return
    print_table("Plan", COLUMNS, rows(document), optional=OPTIONAL)
    for line in in_words(document):
        print(line)
