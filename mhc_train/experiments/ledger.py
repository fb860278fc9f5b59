"""A ledger: jobs and where each of them stands, in a directory of its own, true whatever is killed when."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mhc_train.console import say
from mhc_train.errors import CheckpointError, ConfigError, Interrupted, MhcTrainError, NumericsError, Stopped
from mhc_train.files import storage_errors, write_json, write_text
from mhc_train.runs import GO_ON, environment, make_exclusively
from mhc_train.stop_signals import ended_by_signals

SCHEMA_VERSION = 1
LASTING = (NumericsError.exit_code, ConfigError.exit_code)
"""Exit codes of failures that another attempt would end with, too."""


@dataclass
class Job:
    """One run and where it stands."""

    number: int
    overrides: list[str]
    state: str = "waiting"
    """waiting | running | done | failed | stopped."""
    run: str | None = None
    """Its run directory, named before the process starts."""
    exit_code: int | None = None
    error: str | None = None
    """Why it failed, where no run of its own can say so."""
    seconds: float = 0.0
    """Of its processes, as far as somebody saw them end."""
    val_loss: float | None = None
    """The last validation loss of its run."""


@dataclass
class Ledger:
    """The directory of several jobs, and its ledger.json in memory: of a sweep, or of what is derived from one."""

    path: Path
    config_name: str
    config_dir: Path | None
    jobs: list[Job]
    concurrent: int = 1
    """The most jobs that have run at once."""
    signal: str | None = None
    """What ended this process's part of it; not in the ledger."""
    kind = "sweep"

    @property
    def going_on(self) -> str:
        """The command that goes on with it."""
        return f"{GO_ON[self.kind]} {self.path}"

    @property
    def decisive(self) -> list[Job]:
        """The jobs that must be done for the whole to be."""
        return self.jobs

    @property
    def stopped(self) -> bool:
        """Whether a signal, or a run's own time limit, has left jobs to go on with."""
        return bool(self.in_state("stopped") or (self.signal and self.in_state("waiting")))

    def document(self) -> dict[str, Any]:
        """The ledger's content, which is what `fit -m --json` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": self.kind,
            "sweep": str(self.path),
            "config_name": self.config_name,
            "config_dir": str(self.config_dir) if self.config_dir else None,
            "concurrent": self.concurrent,
            "jobs": [asdict(job) for job in self.jobs],
        }

    def create(self, typed: Sequence[str]) -> None:
        """Make the directory, with what was typed and every job waiting.

        Raises:
            StorageError: the directory cannot be made.
        """
        make_exclusively(self.path)
        write_text(self.path / "overrides.txt", "".join(f"{override}\n" for override in typed))
        write_json(self.path / "environment.json", environment())
        self.save()

    def save(self) -> None:
        """Write the ledger, whole or not at all."""
        write_json(self.path / "ledger.json", self.document())

    def title(self, job: Job) -> str:
        """The overrides that tell a job from the others; all of them if nothing does."""
        shared = set.intersection(*(set(other.overrides) for other in self.jobs))
        return " ".join([text for text in job.overrides if text not in shared] or job.overrides)

    def in_state(self, *states: str) -> list[Job]:
        """The jobs in one of these states, in order."""
        return [job for job in self.jobs if job.state in states]

    def left(self, retry_failed: bool) -> list[Job]:
        """The jobs to train when it is gone on with, in order: those not done, of failed ones only if asked."""
        return self.in_state("waiting", "stopped", *(["failed"] if retry_failed else []))


def read_ledger(path: Path, kind: str) -> tuple[Ledger, dict[str, Any]]:
    """The ledger of a directory, and its document with whatever else it holds.

    Raises:
        CheckpointError: there is no ledger, or one that this mhc-train cannot read.
        ConfigError: it is of another kind, or was begun in another working directory, and its runs would not be found.
    """
    if not (path / "ledger.json").is_file():
        raise CheckpointError(
            f"{path} is no {kind}: it has no ledger.json. A run goes on with `mhc-train fit --resume {path}`."
        )
    with readable(path):
        document = json.loads((path / "ledger.json").read_text())
        jobs = [Job(**job) for job in document["jobs"]]
        begun, config_dir = Path(document["sweep"]), document["config_dir"]
        ledger = Ledger(begun, document["config_name"], Path(config_dir) if config_dir else None, jobs)
        ledger.concurrent = document.get("concurrent", 1)
        found = document.get("kind", "sweep")
        command = GO_ON[found]
    if found != kind:
        raise ConfigError(f"{path} is a {found}. Type `{command} {path}`.")
    if begun.resolve() != path.resolve():
        raise ConfigError(
            f"{path} was begun as {begun}, and its runs are named likewise. Go to the directory that it was begun in."
        )
    return ledger, document


def kind_of(path: Path) -> str:
    """Whether a ledger is a sweep's or a comparison's.

    Raises:
        CheckpointError: this mhc-train cannot read it.
    """
    with readable(path):
        kind: str = json.loads((path / "ledger.json").read_text()).get("kind", "sweep")
        return kind


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a ledger lacks into a `CheckpointError` that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / 'ledger.json'} is not a ledger of this mhc-train: {error!r}.") from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[int]:
    """Hold a ledger's lock; a job inherits it, and so keeps others out even where it outlives who started it.

    Raises:
        Interrupted: a stop signal ended the wait for it.
    """
    with storage_errors(path / "lock"):
        lock = (path / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process still works on {path}, perhaps a job whose command was killed: waiting for its end.")
            with ended_by_signals(lambda name: Interrupted(f"{name} ended the wait; nothing was begun.")):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


class JobError(MhcTrainError):
    """A run's process failed; this one ends with the same exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def raise_if_stopped(ledger: Ledger) -> None:
    """Say how to go on with what a signal, or a run's own time limit, has stopped.

    Raises:
        Stopped: there are jobs left.
        Interrupted: so there are, and a second signal ended one of them before it could save.
    """
    if ledger.stopped:
        by = f" by {ledger.signal}" if ledger.signal else ""
        twice = Interrupted.exit_code in [job.exit_code for job in ledger.in_state("stopped")]
        error = Interrupted if twice else Stopped
        raise error(f"Stopped{by}: {_done(ledger)}. Go on with `{ledger.going_on}`.")


def raise_if_failed(ledger: Ledger) -> None:
    """Say which jobs have failed.

    Raises:
        JobError: with the exit code of the first.
    """
    failed = [job for job in ledger.decisive if job.state == "failed"]
    if not failed:
        return
    names, left = "; ".join(_named(ledger, job) for job in failed), ledger.in_state("waiting")
    not_started = f" {len(left)} not started: `{ledger.going_on}` goes on with them." if left else ""
    lasting = all(job.exit_code in LASTING for job in failed)
    retry = "" if lasting else f" `{ledger.going_on} --retry-failed` tries failed jobs again."
    raise JobError(f"{_done(ledger)}, {len(failed)} failed: {names}.{not_started}{retry}", failed[0].exit_code or 1)


def _named(ledger: Ledger, job: Job) -> str:
    return ledger.title(job) + (f" ({job.error})" if job.error else "")


def _done(ledger: Ledger) -> str:
    return f"{len(ledger.in_state('done'))} of {len(ledger.jobs)} jobs are done"
