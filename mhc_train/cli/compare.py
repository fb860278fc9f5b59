"""`mhc-train compare`: train the arms of a comparison, or take finished runs, and report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhc_train.cli.options import ConfigDir, ConfigName, Json, complete_override

if TYPE_CHECKING:
    from mhc_train.runs import Run

BULKY = ("curves", "last", "courses", "samples")


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...|OVERRIDES...]",
            help="Finished run directories, or Hydra overrides, with sweeps for what differs between the arms.",
            autocompletion=complete_override,
            show_default=False,
        ),
    ] = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Directory of the report; without it, a new one beside the runs.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare connections under identical conditions: same backbone weights, same tokens in the same order.

    Without a sweep the arms are residual, hc and mhc. Runs that differ in their seed alone form one arm.

    Examples:

    mhc-train compare experiment=quickstart

    mhc-train compare connection=residual,mhc 'seed=range(1,4)' model=small train.steps=2000

    mhc-train compare connection=mhc connection.streams=2,4,8

    mhc-train compare runs/20260101-120000-residual-0a1b2c runs/20260101-121500-mhc-3d4e5f
    """
    given = arguments or []
    if given and not any("=" in text for text in given):
        runs = [Path(text) for text in given]
        directory = output or _directory(runs)
    else:
        directory, runs = _train(given, config_name, config_dir)
        directory = output or directory
    _report(runs, directory, json)


def _directory(runs: list[Path]) -> Path:
    """A directory of its own beside the runs, so that no report overwrites another."""
    from mhc_train.runs import find_run

    for run in runs:
        find_run(run)
    names = [str(run) for run in runs]
    comparison = _open_comparison(runs[0].resolve().parent, names, [])
    comparison.set_status("done", runs=names)
    return comparison.report


def _open_comparison(runs_dir: Path, content: list[Any], overrides: list[str]) -> "Run":
    """Make a comparison's run directory and record what is compared."""
    from omegaconf import OmegaConf

    from mhc_train.runs import create_run, new_run_path

    path = new_run_path(runs_dir, "compare")
    comparison = create_run(path, OmegaConf.to_yaml(OmegaConf.create({"runs": content})), overrides)
    comparison.set_status("running", kind="comparison")
    return comparison


def _report(runs: list[Path], directory: Path, json: bool) -> None:
    # Imported after the training: SciPy and Matplotlib would keep it waiting for seconds.
    from mhc_train.cli.output import print_json
    from mhc_train.report.comparison import compare_runs
    from mhc_train.report.render import write_report

    document = compare_runs(runs)
    page = write_report(document, directory)
    if json:
        arms = [{key: value for key, value in arm.items() if key not in BULKY} for arm in document["arms"]]
        print_json(document | {"arms": arms, "report": str(page)})
    else:
        _print_summary(document, page)


def _train(overrides: list[str], config_name: str, config_dir: Path | None) -> tuple[Path, list[Path]]:
    """Train every arm; returns the comparison's report directory and the runs."""
    from mhc_train.console import say
    from mhc_train.errors import ConfigError
    from mhc_train.training.arms import plan_arms, train_arm

    mixed = [text for text in overrides if "=" not in text]
    if mixed:
        raise ConfigError(
            f"{mixed[0]}: neither KEY=VALUE nor, beside overrides, a run. Give runs or overrides, not both."
        )
    planned = plan_arms(overrides, config_name, config_dir)
    say(f"{len(planned)} runs, one after another: " + "; ".join(" ".join(run) for run, _ in planned))
    comparison = _open_comparison(Path(planned[0][1].runs_dir), [run for run, _ in planned], overrides)
    try:
        runs = [train_arm(run, config, config_name, config_dir, comparison.path.name) for run, config in planned]
    except Exception as error:
        comparison.set_status("failed", error=str(error))
        raise
    comparison.set_status("done", runs=[str(run) for run in runs])
    return comparison.report, runs


def _print_summary(document: dict[str, Any], page: Path) -> None:
    from mhc_train.cli.output import number, print_table

    rows = []
    for arm in document["arms"]:
        last = arm["last"]
        gains = [row["forward_gain"]["max"] for row in last["composite"]["forward"]] if last else []
        gain = None if not gains or None in gains else max(gains)
        rows.append(
            (
                arm["name"],
                f"{arm['params'] / 1e6:.2f} M",
                number(arm["val_loss"], 4),
                number(arm["val_bpb"], 4),
                f"{arm['tokens_per_second']:,.0f}",
                number(arm["relative_step_time"], 2),
                f"{arm['peak_memory'] / 2**20:,.0f} MiB",
                number(gain, 3),
            )
        )
    columns = ("arm", "params", "val loss", "bits/byte", "tokens/s", "step time", "peak memory", "composite gain (max)")
    print_table("Comparison", columns, rows)
    for reason in document["reasons"]:
        print(f"Not comparable: {reason}.")
    for row in document["differences"]:
        mean = "unknown" if row["mean"] is None else f"{row['mean']:+.4f}"
        print(f"{row['b']} - {row['a']}: {mean} validation loss; {row['verdict']}.")
    print(f"Report: {page}")
