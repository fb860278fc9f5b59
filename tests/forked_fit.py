"""Trainings that a test's own process forks in the place of `mhc-train fit`: nothing is imported anew for each."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from faulting import Child, command

from mhc_train.experiments import crew
from mhc_train.experiments.jobs import Forwarding
from mhc_train.stop_signals import SIGNALS


class ForkedFit:
    """`mhc-train fit ARGUMENTS` in a forked process, as a crew sees it."""

    def __init__(self, act: Callable[[], int], log: Path) -> None:
        self.child = Child(act, log)
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.code is None:
            found, status = os.waitpid(self.child.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.child.pid, number)

    def wait(self) -> None:
        while self.poll() is None:
            time.sleep(0.01)


def start_in(directory: Path) -> Callable[..., ForkedFit]:
    """What takes the place of `start_fit`; `directory` gets the messages, and `pids`, a line for each process."""

    def start(
        arguments: Sequence[str],
        environment: Mapping[str, str],
        signals: Forwarding,
        inherited: Sequence[int] = (),
        log: Path | None = None,
    ) -> ForkedFit:
        def act() -> int:
            os.setsid()
            for number in SIGNALS:  # as a program finds them
                signal.signal(number, signal.SIG_DFL)
            os.environ.update(environment)
            jaxtyping.config.update("jaxtyping_disable", True)
            return command("fit", *arguments)

        child = ForkedFit(act, log or directory / "fit.log")
        with (directory / "pids").open("a") as pids:
            pids.write(f"{child.child.pid}\n")
        popen: Any = child
        signals.to(popen)
        return child

    return start


def fork_jobs(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let jobs be forked; where there may be a GPU, which a forked process could not use, they stay as they are."""
    if not torch.cuda.is_available():
        directory.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(crew, "start_fit", start_in(directory))
