"""Stop signals and kills at any moment: nothing is lost, and what is resumed ends as if nothing had stopped it."""

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # before any fork, since it takes seconds
from faulted_runs import STEPS, Place, at_call, differences, replace, stopped_after
from faulting import Child, Ended, Sweeps

from mhc_train import runs
from mhc_train.checkpoints import writing
from mhc_train.data import loader
from mhc_train.training import running, saving, session
from mhc_train.training.session import Session

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def seconds(straight: Place, shared: Path) -> float:
    """That such a run takes, when the corpus is there."""
    started = time.monotonic()
    assert Place(shared, shared / "timed").job().code == 0
    return time.monotonic() - started


def wrongly_ended(place: Place, ended: Ended, number: signal.Signals) -> str | None:
    """What is wrong with how a job ended after a signal."""
    if ended.code == 0 or ended.code == -number == -signal.SIGKILL:
        return None
    if ended.code == 75:
        step, name = stopped_after(ended.said), number.name
        good = place.saved == step and f"Stopped by {name}" in ended.said and place.status["status"] == "stopped"
        return None if good else f"saved at {place.saved}, {place.status}: {ended.said}"
    # Before there is a run, and after all of it is written, a signal does what it does to any program.
    before = "\nDevice " not in ended.said
    after = bool(list(place.runs.glob("*/samples.json")))
    if ended.code in (130, -number) and (before or after):
        return None
    return f"{number.name}: it ended with {ended.code}: {ended.said}"


def story(place: Place, straight: Place, seconds: float, numbers: list[signal.Signals], draw: random.Random) -> str:
    """A job that is queued until it is done, and gets these signals at random moments; '' or what is wrong."""
    for number in numbers:
        place.log.unlink(missing_ok=True)
        child = Child(place.fit, place.log)
        time.sleep(draw.random() * seconds)
        child.send(number)
        ended = child.wait()
        if wrong := wrongly_ended(place, ended, number):
            return wrong
        if ended.code == 0:
            break
    ended = place.job()
    return differences(place, straight) or "" if ended.code == 0 else f"the last: {ended}"


def stories(
    shared: Path, own: Path, straight: Place, seconds: float, plots: list[list[signal.Signals]], seed: int
) -> list[str]:
    """All that is wrong with several."""
    draw = random.Random(seed)
    found = []
    for number, signals in enumerate(plots):
        wrong = story(Place(shared, own / str(number)), straight, seconds, signals, draw)
        found += [f"{[signal.name for signal in signals]}: {wrong}"] if wrong else []
    return found


def test_some_signals_at_random_moments(shared: Path, tmp_path: Path, straight: Place, seconds: float) -> None:
    plots = [[signal.SIGTERM, signal.SIGINT], [signal.SIGUSR1], [signal.SIGKILL, signal.SIGTERM], [signal.SIGKILL]]
    assert stories(shared, tmp_path, straight, seconds, plots, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stop signals", "kills"])
def test_signals_at_random_moments(
    kind: str, shared: Path, tmp_path: Path, straight: Place, seconds: float, sweeps: Sweeps
) -> None:
    draw = random.Random(1)
    among = STOPPING if kind == "stop signals" else (signal.SIGKILL,)
    plots = [[draw.choice(among) for _ in range(draw.randint(1, 3))] for _ in range(50 if among is STOPPING else 20)]
    failures = stories(shared, tmp_path, straight, seconds, plots, seed=2)
    sweeps.record(f"runs with {kind} at random moments", len(plots), failures, signals=sum(map(len, plots)))


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


Moment = tuple[Any, str, int]
MOMENTS: dict[str, Moment] = {
    "building the model": (running, "lay_out", 1),
    "waiting for text": (loader.Batches, "wait", 3),
    "a step": (session, "take_step", 5),
    "the last step": (session, "take_step", STEPS),
    "a validation": (session, "validation_loss", 2),
    "the last validation": (session, "validation_loss", 4),
    "a measurement": (session, "measure", 2),
    "the first save": (saving, "write_checkpoint", 1),
    "the last save": (saving, "write_checkpoint", 4),
    "writing a line": (session, "append_json_line", 3),
    "settling a step": (Session, "settle", 7),
    "sampling": (running, "continuation", 2),
}


SAMPLE = ("a step", "the last validation", "the first save")


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_a_signal_amid(name: str, shared: Path, tmp_path: Path, straight: Place) -> None:
    place, (owner, attribute, number) = Place(shared, tmp_path), MOMENTS[name]
    ended = place.job(lambda: replace(owner, attribute, at_call(number, stop)))
    assert "SIGTERM: stopping" in ended.said
    assert ended.code == (0 if name in ("the last save", "sampling") else 75), ended.said
    assert wrongly_ended(place, ended, signal.SIGTERM) is None
    assert place.job().code == 0
    assert differences(place, straight) is None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_after_a_stop_amid_a_validation(shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)
    assert place.job(lambda: replace(session, "validation_loss", at_call(2, stop))).code == 75
    assert place.saved == 4 and [line["step"] for line in place.lines()] == [0, 2]
    ended = place.job(lambda: replace(session, "take_step", at_call(2, die)))
    assert ended.code == -signal.SIGKILL and [line["step"] for line in place.lines()] == [0, 2, 4]
    assert place.job().code == 0
    assert differences(place, straight) is None


AFTER_THE_LAST_SAVE: dict[str, Moment] = {
    "before sampling": (running, "_sample", 1),
    "before the status says done": (runs.Run, "set_status", 3),
}


@pytest.mark.parametrize("name", AFTER_THE_LAST_SAVE)
def test_a_kill_between_the_last_save_and_the_end(name: str, shared: Path, tmp_path: Path, straight: Place) -> None:
    place, (owner, attribute, number) = Place(shared, tmp_path), AFTER_THE_LAST_SAVE[name]
    ended = place.job(lambda: replace(owner, attribute, at_call(number, die)))
    assert ended.code == -signal.SIGKILL and place.saved == STEPS
    ended = place.job()
    assert ended.code == 0, ended.said
    assert differences(place, straight) is None


@pytest.mark.slow
def test_a_signal_while_a_model_is_compiled(shared: Path, tmp_path: Path) -> None:
    def compile_in_python(act: Callable[[], None]) -> None:
        def backend(graph: Any, inputs: Any) -> Any:
            act()
            return graph.forward

        replace(torch, "compile", lambda genuine: functools.partial(genuine, backend=backend))

    settings = ("train.compile=true", "train.steps=4")
    left, stopped = Place(shared, tmp_path / "left", *settings), Place(shared, tmp_path / "stopped", *settings)
    ended = left.job(lambda: compile_in_python(lambda: None))
    assert ended.code == 0, ended.said
    once = iter([stop])
    ended = stopped.job(lambda: compile_in_python(lambda: next(once, lambda: None)()))
    assert ended.code == 75 and "SIGTERM: stopping" in ended.said, ended.said
    assert stopped.job(lambda: compile_in_python(lambda: None)).code == 0
    assert differences(stopped, left) is None


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_second_signal_ends_at_once_even_amid_a_save(background: str, shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path, f"train.async_save={background}")

    def slow_second_save() -> None:
        replace(writing, "_complete", at_call(2, lambda: (stop(), time.sleep(60))))

    place.log.unlink(missing_ok=True)
    child = Child(lambda: (slow_second_save(), place.fit())[1], place.log)
    heard(child, "SIGTERM: stopping")
    child.send(signal.SIGINT)
    started = time.monotonic()
    ended = child.wait()
    assert ended.code == 130 and "Interrupted twice" in ended.said, ended.said
    assert time.monotonic() - started < 30  # of the 60 that the save would have gone on for
    assert place.saved == 3
    assert place.job().code == 0 and place.saved == STEPS


def heard(child: Child, text: str) -> None:
    """Wait until a child has said something."""
    limit = time.monotonic() + 60
    while not (child.log.exists() and text in child.log.read_text()):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_time_limit(shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)
    limit = ("train.time_limit=60", "train.time_margin=0")
    ended = place.job(lambda: replace(session, "take_step", at_call(4, an_hour_passes)), *limit)
    assert ended.code == 75 and "Stopped by the time limit" in ended.said, ended.said
    assert place.saved == stopped_after(ended.said) and place.status["status"] == "stopped"
    assert place.job().code == 0
    assert differences(place, straight) is None


def an_hour_passes() -> None:
    """By the clock that time limits go by, whatever else the machine is busy with."""
    replace(time, "monotonic", lambda genuine: lambda: genuine() + 3600)
