"""A comparison that is stopped and killed, and gone on with, ends in the report of one that was left in peace."""

import contextlib
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulting import Child, Ended, command
from forked_fit import start_in
from tiny import overrides

from mhc_train.experiments import crew

SETTINGS = ("train.steps=12", "train.save_every=3", "train.eval_every=4", "train.log_every=3", "model.layers=1",
            "train.batch_tokens=128", "data.validation_tokens=128", "train.sample_tokens=2", "diagnostics.every=6",
            "connection=residual,mhc", "seed=1,2")  # fmt: skip
MEASURED = ("tokens_per_second", "data_wait", "relative_step_time", "peak_memory", "seconds")
RUN = re.compile(r"\d{8}-\d{6}-(\w+)-[0-9a-f]{6}")


class Stage:
    """A directory of one comparison, in forked processes that a test can stop."""

    def __init__(self, shared: Path, own: Path) -> None:
        own.mkdir()
        self.own, self.log = own, own / "log"
        self.typed = [*overrides(shared), f"runs_dir={own / 'runs'}", *SETTINGS]

    @property
    def path(self) -> Path | None:
        """The comparison's directory, once its ledger is there."""
        return next((file.parent for file in self.own.glob("runs/*-compare-*/ledger.json")), None)

    def begin(self) -> Child:
        """Start it, or go on with it."""

        def act() -> int:
            crew.start_fit = start_in(self.own)
            what = ["--resume", str(self.path)] if self.path else ["--no-estimate", *self.typed]
            return (
                command("compare", "--tune", "optim.lr=1e-3,1e-2", *what)
                if not self.path
                else command("compare", *what)
            )

        self.log.unlink(missing_ok=True)
        return Child(act, self.log)

    def saves(self) -> int:
        """Checkpoints that are there."""
        return len(list(self.own.glob("runs/*/checkpoints/step-*/manifest.json")))

    def jobs_killed(self) -> None:
        """Kill whatever trains."""
        pids = self.own / "pids"
        for line in pids.read_text().split() if pids.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)

    def report(self) -> Any:
        """The report, without what was measured and the names of runs."""
        assert self.path is not None
        text = (self.path / "report" / "report.json").read_text().replace(str(self.own), "OWN")
        return without_measured(json.loads(RUN.sub(r"\1", text)))


def without_measured(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: without_measured(value) for key, value in document.items() if key not in MEASURED}
    if isinstance(document, list):
        timed = [part for part in document if isinstance(part, dict) and part.get("budget") == "seconds"]
        return [without_measured(part) for part in document if part not in timed]
    return document


def wait_until(happened: Callable[[], bool], child: Child) -> None:
    """Until then, or the child's end, which may come first."""
    end = time.monotonic() + 100
    while not happened() and time.monotonic() < end:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)


def interrupted(stage: Stage, number: signal.Signals, happened: Callable[[], bool], jobs: bool) -> Ended:
    """Begin or go on, and get a signal then; `jobs`: those that train are killed, too."""
    child = stage.begin()
    wait_until(happened, child)
    child.send(number)
    if jobs:
        stage.jobs_killed()
    return child.wait()


@pytest.fixture(scope="module")
def peaceful(shared: Path) -> Stage:
    """One that nothing stopped."""
    stage = Stage(shared, shared / "peaceful")
    ended = stage.begin().wait()
    assert ended.code == 0, ended.said
    return stage


def test_stopped_and_killed_it_ends_in_the_same_report(shared: Path, tmp_path: Path, peaceful: Stage) -> None:
    stage = Stage(shared, tmp_path / "own")
    ended = interrupted(stage, signal.SIGTERM, lambda: stage.saves() >= 1, jobs=False)
    assert ended.code == 75 and f"mhc-train compare --resume {stage.path}" in ended.said
    saves = stage.saves()
    assert interrupted(stage, signal.SIGKILL, lambda: stage.saves() > saves + 3, jobs=True).code == -signal.SIGKILL
    saves = stage.saves()
    # A job that lives on is waited for.
    assert interrupted(stage, signal.SIGKILL, lambda: stage.saves() > saves + 5, jobs=False).code == -signal.SIGKILL
    ended = stage.begin().wait()
    assert ended.code == 0, ended.said
    assert stage.report() == peaceful.report()
    assert {row["key"] for row in stage.report()["tuning"]} == {"optim.lr"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_at_random_moments(seed: int, shared: Path, tmp_path: Path, peaceful: Stage) -> None:
    stage, draw = Stage(shared, tmp_path / "own"), random.Random(seed)
    for _ in range(6):
        until = time.monotonic() + draw.uniform(0.1, 8)
        number = draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
        ended = interrupted(stage, number, lambda until=until: time.monotonic() > until, draw.random() < 0.3)
        assert ended.code in (0, 1, 75, 130, -number), ended.said
    ended = stage.begin().wait()
    if ended.code:  # a job that was killed while the comparison watched has failed, and is tried again as asked
        ended = Child(lambda: command("compare", "--retry-failed", "--resume", str(stage.path)), stage.log).wait()
    assert ended.code == 0, ended.said
    assert stage.report() == peaceful.report()
