"""A sweep: jobs in a ledger, trained one after another, to be gone on with wherever it was killed."""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mhc_train.checkpoints import complete_checkpoints
from mhc_train.config.compose import compose
from mhc_train.console import say
from mhc_train.errors import CheckpointError, ConfigError, Stopped
from mhc_train.files import read_json_lines, storage_errors, write_json, write_text
from mhc_train.runs import Run, environment, make_exclusively, new_run_path
from mhc_train.training.jobs import Forwarding, JobError, check, fit_arguments, multiply, run_fit

SCHEMA_VERSION = 1
RESUMABLE = 75  # the exit code of a run that saved and stopped


@dataclass
class Job:
    """One run of a sweep and where it stands."""

    number: int
    overrides: list[str]
    state: str = "waiting"
    """waiting | running | done | failed | stopped."""
    run: str | None = None
    """Its run directory, named before the process starts."""
    exit_code: int | None = None
    seconds: float = 0.0
    """Of its processes, as far as the sweep saw them end."""
    val_loss: float | None = None
    """The last validation loss of its run."""


@dataclass
class Sweep:
    """A sweep's directory, and its ledger.json in memory."""

    path: Path
    config_name: str
    config_dir: Path | None
    jobs: list[Job]
    signal: str | None = None
    """What ended this process's part of it; not in the ledger."""

    @property
    def ledger(self) -> Path:
        """Every job and its state."""
        return self.path / "ledger.json"

    def document(self) -> dict[str, Any]:
        """The ledger's content, which is what `--json` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "sweep": str(self.path),
            "config_name": self.config_name,
            "config_dir": str(self.config_dir) if self.config_dir else None,
            "jobs": [asdict(job) for job in self.jobs],
        }

    def save(self) -> None:
        """Write the ledger, whole or not at all."""
        write_json(self.ledger, self.document())

    def title(self, job: Job) -> str:
        """The overrides that tell a job from the others; all of them if nothing does."""
        shared = set.intersection(*(set(other.overrides) for other in self.jobs))
        return " ".join([text for text in job.overrides if text not in shared] or job.overrides)

    def in_state(self, *states: str) -> list[Job]:
        """The jobs in one of these states, in order."""
        return [job for job in self.jobs if job.state in states]


def plan_sweep(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Sweep:
    """A new sweep with all its jobs, checked; nothing is made yet.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    runs = multiply(overrides, config_dir)
    configs = check(runs, config_name, config_dir)
    names = {config.name for config in configs}
    name = f"{names.pop()}-sweep" if len(names) == 1 else "sweep"
    jobs = [Job(number, run) for number, run in enumerate(runs)]
    return Sweep(new_run_path(Path(configs[0].runs_dir), name), config_name, config_dir, jobs)


def create_sweep(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Path:
    """Make the directory of a sweep, with every job waiting in its ledger.

    Raises:
        ConfigError: with the problems of all jobs.
        StorageError: the directory cannot be made.
    """
    sweep = plan_sweep(overrides, config_name, config_dir)
    make_exclusively(sweep.path)
    write_text(sweep.path / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    write_json(sweep.path / "environment.json", environment())
    sweep.save()
    return sweep.path


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory.

    Raises:
        CheckpointError: there is no ledger, or one that this mhc-train cannot read.
        ConfigError: it was begun in another working directory, and its runs would not be found.
    """
    if not (path / "ledger.json").is_file():
        raise CheckpointError(
            f"{path} is no sweep: it has no ledger.json. A run goes on with `mhc-train fit --resume {path}`."
        )
    try:
        document = json.loads((path / "ledger.json").read_text())
        jobs = [Job(**job) for job in document["jobs"]]
        begun, config_dir = Path(document["sweep"]), document["config_dir"]
        sweep = Sweep(begun, document["config_name"], Path(config_dir) if config_dir else None, jobs)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'ledger.json'} is not a ledger of this mhc-train: {error!r}.") from error
    if begun.resolve() != path.resolve():
        raise ConfigError(
            f"{path} was begun as {begun}, and its runs are named likewise. Go to the directory that it was begun in."
        )
    return sweep


def run_sweep(path: Path, fail_fast: bool = False, retry_failed: bool = False) -> Sweep:
    """Train the jobs that are not done, each in a process of its own; finished ones are never run again.

    Args:
        path: the sweep's directory.
        fail_fast: start no other job once one has failed.
        retry_failed: failed jobs, too.

    Raises:
        CheckpointError: it is no sweep.
        ConfigError: with the problems of all jobs that are left.
    """
    read_sweep(path)  # before a lock is made in whatever directory it is
    with _alone(path) as lock, Forwarding() as signals:
        sweep = read_sweep(path)
        for job in sweep.in_state("running"):
            _settle(job)
        sweep.save()
        left = sweep.in_state("waiting", "stopped", *(["failed"] if retry_failed else []))
        check([job.overrides for job in left], sweep.config_name, sweep.config_dir)
        for job in left:
            if signals.received:
                break
            _run(sweep, job, signals, lock)
            if job.state == "stopped" or (job.state == "failed" and fail_fast):
                break
        sweep.signal = signals.received
    return sweep


def raise_unless_done(sweep: Sweep) -> None:
    """Say how a sweep ended that is not done.

    Raises:
        Stopped: by a signal; there are jobs left.
        JobError: jobs failed; with the exit code of the first.
    """
    left, failed = sweep.in_state("waiting", "stopped"), sweep.in_state("failed")
    done = f"{len(sweep.in_state('done'))} of {len(sweep.jobs)} jobs are done"
    command = f"mhc-train fit -m --resume {sweep.path}"
    if sweep.in_state("stopped") or (sweep.signal and left):
        raise Stopped(f"Stopped{f' by {sweep.signal}' if sweep.signal else ''}: {done}. Go on with `{command}`.")
    if failed:
        names = "; ".join(map(sweep.title, failed))
        not_started = f" {len(left)} not started: `{command}` goes on with them." if left else ""
        raise JobError(
            f"{done}, {len(failed)} failed: {names}.{not_started} `{command} --retry-failed` tries failed jobs again.",
            failed[0].exit_code or 1,
        )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Hold a sweep's lock; a job inherits it, and so keeps others out even where it outlives its sweep."""
    with storage_errors(path / "lock"):
        lock = (path / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process still works on {path}, perhaps a job whose sweep was killed: waiting for its end.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _run(sweep: Sweep, job: Job, signals: Forwarding, lock: int) -> None:
    arguments = _arguments(sweep, job)
    job.state, job.exit_code = "running", None
    sweep.save()  # with the run's name: whatever becomes of this process, the next one finds the run
    say(f"\nJob {job.number + 1} of {len(sweep.jobs)}: {sweep.title(job)}")
    started = time.monotonic()
    job.exit_code = run_fit(arguments, sweep.path.name, signals, [lock])
    job.seconds += time.monotonic() - started
    job.state = _outcome(job, stopped_by=signals.received)
    _look(job)
    sweep.save()


def _outcome(job: Job, stopped_by: str | None) -> str:
    """The state that a process leaves its job in."""
    assert job.exit_code is not None
    if job.exit_code == 0 and _status(job) == "done":
        return "done"
    killed = stopped_by is not None and job.exit_code > 128  # before it could save
    return "stopped" if job.exit_code == RESUMABLE or killed else "failed"


def _status(job: Job) -> str | None:
    """What the job's run says of itself, if there is one."""
    return Run(Path(job.run)).status().get("status") if job.run else None


def _arguments(sweep: Sweep, job: Job) -> list[str]:
    """What to type after `fit`: go on from the run's last checkpoint, or start in a new run directory."""
    if job.run and complete_checkpoints(Run(Path(job.run)).checkpoints):
        return ["--resume", job.run]
    config = compose(job.overrides, sweep.config_name, sweep.config_dir)
    job.run = str(new_run_path(Path(config.runs_dir), config.name))
    return ["--run-directory", job.run, *fit_arguments(job.overrides, sweep.config_name, sweep.config_dir)]


def _settle(job: Job) -> None:
    """Note what became of a job whose sweep was killed meanwhile: its run's own files know."""
    _look(job)
    status = _status(job)
    job.state = status if status in ("done", "failed") else "stopped" if job.run else "waiting"
    job.exit_code = 0 if job.state == "done" else None


def _look(job: Job) -> None:
    """Note what a job's process has left: its run directory, if it came to that, and the last validation loss."""
    if job.run is None or not Path(job.run).exists():
        job.run = None
        return
    losses = [line["val_loss"] for line in read_json_lines(Run(Path(job.run)).metrics) if "val_loss" in line]
    job.val_loss = losses[-1] if losses else None
