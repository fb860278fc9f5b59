"""A sweep: every combination of values is a job in a ledger, to be gone on with wherever it was killed."""

from collections.abc import Sequence
from pathlib import Path

from mhc_train.experiments.crew import taken_up
from mhc_train.experiments.jobs import check, multiply
from mhc_train.experiments.ledger import Job, Ledger, read_ledger
from mhc_train.runs import new_run_path


def plan_sweep(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Ledger:
    """A new sweep with all its jobs, checked; nothing is made yet.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    runs = multiply(overrides, config_dir)
    configs = check(runs, config_name, config_dir)
    names = {config.name for config in configs}
    name = f"{names.pop()}-sweep" if len(names) == 1 else "sweep"
    jobs = [Job(number, run) for number, run in enumerate(runs)]
    return Ledger(new_run_path(Path(configs[0].runs_dir), name), config_name, config_dir, jobs)


def create_sweep(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Path:
    """Make the directory of a sweep, with every job waiting in its ledger.

    Raises:
        ConfigError: with the problems of all jobs.
        StorageError: the directory cannot be made.
    """
    sweep = plan_sweep(overrides, config_name, config_dir)
    sweep.create(overrides)
    return sweep.path


def read_sweep(path: Path) -> Ledger:
    """The sweep in a directory; raises what `read_ledger` does."""
    return read_ledger(path, "sweep")[0]


def run_sweep(path: Path, fail_fast: bool = False, retry_failed: bool = False, at_once: int = 1) -> Ledger:
    """Train the jobs that are not done, each in a process of its own; finished ones are never run again.

    Args:
        path: the sweep's directory.
        fail_fast: start no other job once one has failed.
        retry_failed: failed jobs, too.
        at_once: jobs that run at the same time.

    Raises:
        CheckpointError: it is no sweep.
        ConfigError: with the problems of all jobs that are left.
    """
    with taken_up(path, read_sweep, retry_failed, at_once, fail_fast) as (sweep, crew):
        crew.carry_out(sweep.left(retry_failed))
    return sweep
