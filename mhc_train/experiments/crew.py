"""Carries out the jobs of a ledger, one or several at a time, each in a process of its own."""

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from mhc_train.checkpoints import complete_checkpoints
from mhc_train.config.compose import compose
from mhc_train.console import say
from mhc_train.experiments.jobs import Forwarding, check, exit_code, fit_arguments, start_fit
from mhc_train.experiments.ledger import Job, Ledger, alone
from mhc_train.files import read_json_lines
from mhc_train.runs import Run, new_run_path

L = TypeVar("L", bound=Ledger)

RESUMABLE = 75  # the exit code of a run that saved and stopped
POLL = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Worker:
    """A job whose process runs."""

    job: Job
    child: subprocess.Popen[bytes]
    started: float
    """By the monotonic clock."""


@dataclass
class Crew:
    """Starts the jobs of a ledger; it alone writes what becomes of them."""

    ledger: Ledger
    signals: Forwarding
    lock: int
    """File descriptor of the ledger's lock, which every job keeps open, too."""
    size: int = 1
    """Jobs at once."""
    fail_fast: bool = False
    """Begin no other job once one has failed."""
    halted: bool = False
    """Whether a job was stopped, or has failed where that ends all."""
    workers: dict[int, Worker] = field(default_factory=dict)
    """By their place, from 0 on."""

    @property
    def ending(self) -> bool:
        """Whether no other job may begin."""
        return self.halted or self.signals.received is not None

    def carry_out(self, jobs: Sequence[Job]) -> None:
        """Train these jobs, in order, until all have ended or no other may begin."""
        left = deque(jobs)
        try:
            while self.workers or (left and not self.ending):
                while left and len(self.workers) < self.size and not self.ending:
                    self._begin(left.popleft())
                time.sleep(POLL)
                self._collect()
        finally:
            self._dismiss()
        self.ledger.signal = self.signals.received

    def _begin(self, job: Job) -> None:
        place = min(set(range(self.size)) - self.workers.keys())
        arguments = _arguments(self.ledger, job)
        job.state, job.exit_code, job.error = "running", None, None
        self.ledger.concurrent = max(self.ledger.concurrent, len(self.workers) + 1)
        self.ledger.save()  # with the run's name: whatever becomes of this process, the next one finds the run
        log = self._log(job)
        title = f"Job {job.number + 1} of {len(self.ledger.jobs)}: {self.ledger.title(job)}"
        say(f"{title}; its messages: {log}" if log else f"\n{title}")
        child = start_fit(arguments, self._environment(place), self.signals, [self.lock], log)
        self.workers[place] = Worker(job, child, time.monotonic())

    def _log(self, job: Job) -> Path | None:
        """Where a job's messages go while others write theirs."""
        return self.ledger.path / f"job-{job.number:03d}.log" if self.size > 1 else None

    def _environment(self, place: int) -> dict[str, str]:
        """The tracker's name for runs that belong together, and a GPU of its own for every place, in turn."""
        devices = cuda_devices() if self.size > 1 else []
        own = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
        return {"WANDB_RUN_GROUP": self.ledger.path.name} | own

    def _collect(self) -> None:
        """Note what became of the processes that have ended."""
        for place, worker in list(self.workers.items()):
            code = exit_code(worker.child)
            if code is None:
                continue
            del self.workers[place]
            job = worker.job
            job.exit_code, job.seconds = code, job.seconds + time.monotonic() - worker.started
            job.state = _outcome(job, code, self.signals.received)
            self.halted |= job.state == "stopped" or (job.state == "failed" and self.fail_fast)
            if job.state == "failed":
                _record_failure(job, code)
            _read_run(job)
            self.ledger.save()
            loss = f", validation loss {job.val_loss:.4f}" if job.state == "done" and job.val_loss is not None else ""
            say(f"Job {job.number + 1} of {len(self.ledger.jobs)}: {job.state}{loss}.")

    def _dismiss(self) -> None:
        """Let no process go on alone where this one cannot, for want of space to write what becomes of it."""
        for worker in self.workers.values():
            worker.child.send_signal(signal.SIGTERM)
        for worker in self.workers.values():
            worker.child.wait()


@contextlib.contextmanager
def taken_up(
    path: Path, read: Callable[[Path], L], retry_failed: bool, at_once: int, fail_fast: bool = False
) -> Iterator[tuple[L, Crew]]:
    """A ledger, with its lock held and whatever was killed settled, and the crew that can carry out its jobs.

    Args:
        path: its directory.
        read: reads it, of whichever kind it is.
        retry_failed: whether failed jobs are to be trained, too.
        at_once: jobs that run at the same time.
        fail_fast: begin no other job once one has failed.

    Raises:
        CheckpointError: there is no such ledger.
        ConfigError: with the problems of all jobs that are left.
    """
    read(path)  # before a lock is made in whatever directory it is
    with Forwarding() as signals, alone(path) as lock:
        ledger = read(path)
        settle(ledger)
        check([job.overrides for job in ledger.left(retry_failed)], ledger.config_name, ledger.config_dir)
        yield ledger, Crew(ledger, signals, lock, at_once, fail_fast)


def cuda_devices() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    return [name for name in visible.split(",") if name]


def settle(ledger: Ledger) -> None:
    """Note what became of jobs whose ledger was left by a process that was killed: their runs' own files know."""
    for job in ledger.in_state("running"):
        _read_run(job)
        status = run_status(job)
        job.state = status if status in ("done", "failed") else "stopped" if job.run else "waiting"
        job.exit_code = 0 if job.state == "done" else _exit_code(job)
    ledger.save()


def run_status(job: Job) -> str | None:
    """What the job's run says of itself, if there is one."""
    return Run(Path(job.run)).status().get("status") if job.run else None


def _exit_code(job: Job) -> int | None:
    """The exit code that a job's failed run ended with, as it says itself."""
    return Run(Path(job.run)).status().get("exit_code") if job.run and run_status(job) == "failed" else None


def _outcome(job: Job, code: int, stopped_by: str | None) -> str:
    """The state that a process leaves its job in."""
    if code == 0 and run_status(job) == "done":
        return "done"
    killed = stopped_by is not None and code > 128  # before it could save
    return "stopped" if code == RESUMABLE or killed else "failed"


def _arguments(ledger: Ledger, job: Job) -> list[str]:
    """What to type after `fit`: go on from the run's last checkpoint, or start in a new run directory."""
    if job.run and complete_checkpoints(Run(Path(job.run)).checkpoints):
        return ["--resume", job.run]
    config = compose(job.overrides, ledger.config_name, ledger.config_dir)
    job.run = str(new_run_path(Path(config.runs_dir), config.name))
    return ["--run-directory", job.run, *fit_arguments(job.overrides, ledger.config_name, ledger.config_dir)]


def _record_failure(job: Job, code: int) -> None:
    """Let a run say that it failed whose process could not: killed, for want of memory perhaps."""
    if job.run and Path(job.run).exists() and run_status(job) != "failed":
        Run(Path(job.run)).set_status("failed", error=f"its process ended with exit code {code}", exit_code=code)


def _read_run(job: Job) -> None:
    """Note what a job's process has left: its run directory, if it came to that, and the last validation loss."""
    if job.run is None or not Path(job.run).exists():
        job.run = None
        return
    losses = [line["val_loss"] for line in read_json_lines(Run(Path(job.run)).metrics) if "val_loss" in line]
    job.val_loss = losses[-1] if losses else None
