"""`mhc-train fit --multirun`: train every job of a sweep, or go on with one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mhc_train.experiments.ledger import Ledger


def sweep(
    overrides: Sequence[str],
    config_name: str,
    config_dir: Path | None,
    cfg: str | None,
    dry_run: bool,
    resume: str | None,
    fail_fast: bool,
    retry_failed: bool,
    at_once: int,
    json: bool,
) -> None:
    """Train the jobs of a new sweep, or those that are left of a given one, and print where each of them stands."""
    from mhc_train.cli.output import print_json
    from mhc_train.console import say
    from mhc_train.errors import ConfigError
    from mhc_train.experiments.ledger import raise_if_failed, raise_if_stopped
    from mhc_train.experiments.sweep import create_sweep, read_sweep, run_sweep

    if resume == "auto":
        raise ConfigError("--resume auto finds runs. A sweep goes on with `mhc-train fit -m --resume SWEEP`.")
    given = Path(resume) if resume else None
    if given and overrides:
        raise ConfigError(f"{overrides[0]}: a sweep goes on as it was begun. Leave overrides out, or begin another.")
    if given and (config_dir or config_name != "config"):
        raise ConfigError("A sweep goes on as it was begun. Leave -cn and -cd out, or begin another.")
    if cfg:
        raise ConfigError("--cfg job prints one configuration. Leave out -m, and give every key one value.")
    if dry_run:
        _print_plan(overrides, config_name, config_dir, given, json)
        return
    path = read_sweep(given).path if given else create_sweep(overrides, config_name, config_dir)
    say(f"Sweep {path}")
    result = run_sweep(path, fail_fast, retry_failed, at_once)
    if json:
        print_json(result.document())
    else:
        _print_jobs(f"Sweep {path}", result)
    raise_if_stopped(result)
    raise_if_failed(result)


def _print_plan(
    overrides: Sequence[str], config_name: str, config_dir: Path | None, resume: Path | None, json: bool
) -> None:
    """The jobs of a new or a given sweep, checked; nothing is made or started."""
    from mhc_train.cli.output import print_json
    from mhc_train.experiments.jobs import fit_arguments
    from mhc_train.experiments.ledger import SCHEMA_VERSION
    from mhc_train.experiments.sweep import plan_sweep, read_sweep

    planned = read_sweep(resume) if resume else plan_sweep(overrides, config_name, config_dir)
    if not json:
        _print_jobs(f"{len(planned.jobs)} jobs", planned)
        return
    rows: list[dict[str, Any]] = []
    for job in planned.jobs:
        command = ["mhc-train", "fit", *fit_arguments(job.overrides, planned.config_name, planned.config_dir)]
        rows.append({"number": job.number, "overrides": job.overrides, "state": job.state, "command": command})
    print_json({"schema_version": SCHEMA_VERSION, "jobs": rows})


def _print_jobs(title: str, sweep: "Ledger") -> None:
    """A table of what differs between the jobs, and what became of each."""
    from mhc_train.cli.output import number, print_table

    rows = [
        (sweep.title(job), job.state, number(job.val_loss, 4), f"{job.seconds:,.0f}", job.run or "-")
        for job in sweep.jobs
    ]
    print_table(title, ("job", "state", "val loss", "seconds", "run"), rows)
