"""A save that is killed at any of its file-system calls leaves the checkpoint before it, or the new one, whole."""

import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.distributed.checkpoint  # noqa: F401  # before any fork, since it takes seconds
from faulting import DEAD, FATES, Sweeps, calls_of, cut, killed_at

from mhc_train.checkpoints import (
    Checkpoint,
    Keep,
    Snapshot,
    load_checkpoint,
    reading,
    set_aside,
    verify,
    write_checkpoint,
)
from mhc_train.checkpoints.writing import _git_state
from mhc_train.config.compose import from_dict
from mhc_train.errors import CheckpointError
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ConnectionConfig, ModelConfig
from mhc_train.training.saving import Saver

MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16, document_mask=True)
CONFIG = Config(model=MODEL)
T = TypeVar("T")


@functools.cache
def model() -> Transformer:
    return Transformer(MODEL, ConnectionConfig(), 32)


def snapshot(step: int, sharded: bool) -> Snapshot:
    """Every value is the step's."""
    weights = {name: torch.full_like(value, step) for name, value in model().state_dict().items()}
    optimizer = {f"exp_avg/{name}": torch.full_like(value, -step) for name, value in model().named_parameters()}
    random_states = {"rank0/cpu": torch.full((9,), step, dtype=torch.uint8)}
    return Snapshot(CONFIG, 32, {"step": step}, f'{{"step": {step}}}', weights, optimizer, random_states, sharded)


@dataclass(frozen=True)
class Scene:
    """What a directory holds before the save that is killed, and that save."""

    before: int
    """The newest step that is saved and whole."""
    step: int
    """The step that is saved."""
    keep: Keep
    damaged: bool = False
    """Whether there is a damaged checkpoint of that step."""
    sharded: bool = False
    background: bool = False

    def prepare(self, run: Path) -> None:
        """Older checkpoints, one that was set aside, and what killed saves and removals have left."""
        directory = run / "checkpoints"
        for step in (1, 2, 3):
            write_checkpoint(directory, snapshot(step, self.sharded), Keep(9))
        shutil.copytree(directory / "step-00000003", directory / "step-00000004.superseded")
        shutil.copytree(directory / "step-00000003", directory / ".step-00000004.77")
        shutil.copytree(directory / "step-00000001", directory / ".step-00000000.removed")
        (directory / ".step-00000004.77" / "manifest.json").unlink()
        (directory / ".latest.0123456789ab.tmp").write_text("step-0000")
        if self.damaged:
            cut(lambda size: size - 1)(directory / "step-00000003" / "state.json")

    def save(self, run: Path) -> None:
        """As a training does."""
        saver = Saver(run / "checkpoints", self.keep, Ranks(), self.background)
        saver.start(snapshot(self.step, self.sharded))
        failure = saver.wait()
        if failure is not None:
            raise failure


SCENES = {
    "save and keep one": Scene(3, 4, Keep(1)),
    "save over a damaged one": Scene(2, 3, Keep(1), damaged=True),
    "save in the background": Scene(3, 4, Keep(2), background=True),
    "save in shards": Scene(3, 4, Keep(1), sharded=True),
}


def trouble(scene: Scene, run: Path) -> str | None:
    """What is wrong after a kill: with what is found, or with going on from there."""
    try:
        found = load_checkpoint(run)
    except CheckpointError as error:
        return f"nothing can be loaded: {error}"
    step = found.state["step"]
    if step not in (scene.before, scene.step):
        return f"step {step} is loaded"
    if (wrong := differences(found, snapshot(step, scene.sharded))) is not None:
        return wrong
    # A resumed training takes what is later away, and saves the steps that follow.
    set_aside(run / "checkpoints", after=step)
    for later in (step + 1, step + 2):
        write_checkpoint(run / "checkpoints", snapshot(later, scene.sharded), scene.keep)
    return untidy(run / "checkpoints", scene.keep.last, step + 2)


def differences(found: Checkpoint, expected: Snapshot) -> str | None:
    for name in ("model", "optimizer", "random"):
        tensors, wanted = found.tensors(name), getattr(expected, name)
        if tensors.keys() != wanted.keys() or not all(tensors[key].equal(wanted[key]) for key in wanted):
            return f"{name} is not what was saved"
    same = found.config == expected.config and found.tokenizer.read_text() == expected.tokenizer_json
    return None if same and found.state == expected.state else "its documents are not what was saved"


def untidy(directory: Path, kept: int, newest: int) -> str | None:
    expected = [f"step-{step:08d}" for step in range(newest - kept + 1, newest + 1)]
    names = sorted(path.name for path in directory.iterdir())
    if names != ["latest", *expected] or (directory / "latest").read_text() != f"{expected[-1]}\n":
        return f"left after the next saves: {names}"
    return next((f"{name}: {verify(directory / name)}" for name in expected if verify(directory / name)), None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the real disk, since `Disk` knows what would have reached it; a configuration is read once."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(reading, "from_dict", lambda document: known(json.dumps(document)))


@functools.cache
def known(document: str) -> Config:
    return from_dict(json.loads(document))


Case = tuple[int, str]


class Stage:
    """A scene, ready to be played again and again."""

    def __init__(self, scene: Scene, place: Path) -> None:
        _git_state()  # once, here, for all children
        self.scene, self.place = scene, place
        scene.prepare(place / "prepared")
        self.calls = self._with_run(lambda run: calls_of(lambda: scene.save(run), place / "dry"))

    def cases(self) -> Iterator[Case]:
        for number, call in enumerate(self.calls):
            yield from ((number, fate) for fate in FATES if fate != "torn" or call == "write to file")

    def play(self, case: Case) -> str | None:
        return self._with_run(lambda run: self._play(case, run))

    def _play(self, case: Case, run: Path) -> str | None:
        number, fate = case
        ended = killed_at(lambda: self.scene.save(run), number, fate, self.place / "log")
        what = f"{fate} at call {number}, {self.calls[number]}"
        if ended.code != DEAD:
            return f"{what}: it ended with {ended.code}: {ended.said}"
        wrong = trouble(self.scene, run)
        return f"{what}: {wrong}" if wrong else None

    def _with_run(self, act: Callable[[Path], T]) -> T:
        run = self.place / "run"
        shutil.copytree(self.place / "prepared", run)
        try:
            return act(run)
        finally:
            shutil.rmtree(run)


@pytest.mark.parametrize("name", SCENES)
def test_a_save_killed_at_a_few_of_its_calls(name: str, tmp_path: Path) -> None:
    stage = Stage(SCENES[name], tmp_path)
    cases = list(stage.cases())
    assert len(cases) > 150 and {fate for _, fate in cases} == set(FATES)
    found = [stage.play(case) for case in random.Random(name).sample(cases, 6)]
    assert not [text for text in found if text]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
def test_a_save_killed_at_every_call(name: str, tmp_path: Path, sweeps: Sweeps) -> None:
    stage = Stage(SCENES[name], tmp_path)
    cases = list(stage.cases())
    failures = [text for text in map(stage.play, cases) if text]
    sweeps.record(f"killed: {name}", len(cases), failures, calls=len(stage.calls))
