"""Runs for the tests of faults: begun and resumed as a queue does, and compared bit by bit with one left in peace."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
from faulting import Ended, command, forked
from tiny import overrides

from mhc_train.checkpoints import load_checkpoint
from mhc_train.files import read_json_lines
from mhc_train.training.unfinished import newest_first

STEPS = 12
SETTINGS = (f"train.steps={STEPS}", "train.save_every=3", "train.eval_every=4", "diagnostics.every=7", "model.layers=1",
            "train.batch_tokens=128", "data.validation_tokens=128", "diagnostics.tokens=32", "train.keep_checkpoints=3",
            "diagnostics.watch_every=4", "diagnostics.watch_tokens=24", "train.sample_tokens=2")  # fmt: skip
TIMINGS = ("tokens_per_second", "data_wait")


class Place:
    """A directory of runs of one configuration; the corpus and what is made of it are shared."""

    def __init__(self, shared: Path, own: Path, *settings: str) -> None:
        self.runs, self.log = own / "runs", own / "log"
        own.mkdir(parents=True, exist_ok=True)
        self.settings = [*overrides(shared), f"runs_dir={self.runs}", *SETTINGS, *settings]

    def fit(self, *arguments: str) -> int:
        """Begin, or go on, as a job that is queued again and again; in a child, where shapes need no checks."""
        jaxtyping.config.update("jaxtyping_disable", True)
        return command("fit", *self.settings, *arguments, "--resume", "auto")

    def job(self, prepare: Callable[[], Any] = lambda: None, *arguments: str) -> Ended:
        """`fit` in a child, after `prepare`."""

        def act() -> int:
            prepare()
            return self.fit(*arguments)

        self.log.unlink(missing_ok=True)
        return forked(act, self.log)

    @property
    def run(self) -> Path:
        """The newest run: one that was killed before its first save is begun anew."""
        return newest_first(self.runs)[0].path

    @property
    def status(self) -> dict[str, Any]:
        """What is known of it."""
        found: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return found

    @property
    def saved(self) -> int:
        """The newest good checkpoint's step; -1 if there is none."""
        return int(load_checkpoint(self.run).state["step"]) if list(self.run.glob("checkpoints/step-*")) else -1

    def lines(self) -> list[dict[str, Any]]:
        """The metrics but for timings."""
        lines = read_json_lines(self.run / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def differences(one: Place, other: Place) -> str | None:
    """What two runs that are done do not have in common, bit by bit, timings left out."""
    if (one.status["status"], other.status["status"]) != ("done", "done"):
        return f"status: {one.status}"
    if one.lines() != other.lines():
        return f"metrics.jsonl: {one.lines()}"
    for name in ("diagnostics/measurements.jsonl", "diagnostics/watch.jsonl", "samples.json"):
        if (one.run / name).read_bytes() != (other.run / name).read_bytes():
            return name
    found, expected = load_checkpoint(one.run), load_checkpoint(other.run)
    for name in ("model", "optimizer", "random"):
        tensors, wanted = found.tensors(name), expected.tensors(name)
        if tensors.keys() != wanted.keys() or not all(tensors[key].equal(wanted[key]) for key in wanted):
            return name
    if found.state["reported"] != expected.state["reported"]:  # it was stopped amid its last validation
        return None if later(found.state) == later(expected.state) else f"state: {found.state}"
    return None if found.state == expected.state else f"state: {found.state}"


def later(state: dict[str, Any]) -> dict[str, Any]:
    """What a state is whether or not its own step's line is written."""
    return {key: value for key, value in state.items() if key not in ("reported", "window", "spike")}


def stopped_after(said: str) -> int | None:
    """The step that a training says it has saved."""
    found = re.search(r"after step (\d+) of", said)
    return int(found[1]) if found else None


def replace(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put what `make` makes of it in something's place, in a child."""
    setattr(module, name, make(getattr(module, name)))


def at_call(number: int, act: Callable[[], Any]) -> Callable[[Any], Any]:
    """For `replace`: does `act` at the beginning of the call of that number, counted from 1."""
    count = 0

    def make(genuine: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                act()
            return genuine(*arguments, **options)

        return call

    return make


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """No file of a directory is changed inside."""
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    yield
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
