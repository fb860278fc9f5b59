"""A disk that is full, or a file that may not grow: what was there stays, and the message says what is needed."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulted_runs import STEPS, Place, at_call, differences, replace, stopped_after
from test_kills import snapshot

from mhc_train.checkpoints import Keep, load_checkpoint, write_checkpoint, writing
from mhc_train.errors import StorageError
from mhc_train.ranks import Ranks
from mhc_train.training import saving, session
from mhc_train.training.saving import Saver


def no_file_beyond(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes: writing then fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


SMALL, AMPLE = 90_000, 10_000_000
"""Smaller than the tensors of a model, larger than everything else of a run; larger than anything."""


def full_from(number: int, room_again: int | None = None) -> Callable[[], None]:
    """From the save of that number on there is no room, until the save of the other number."""

    def prepare() -> None:
        replace(writing, "_begin", at_call(number, lambda: no_file_beyond(SMALL)))
        if room_again is not None:
            replace(writing, "_begin", at_call(room_again, lambda: no_file_beyond(AMPLE)))

    return prepare


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_save_without_room_stops_the_training(background: str, shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)
    ended = place.job(full_from(2), f"train.async_save={background}")
    assert ended.code == 7, ended.said
    assert "File too large" in ended.said and "Free some space" in ended.said
    assert "The checkpoint takes " in ended.said and " bytes; " in ended.said and " are free" in ended.said
    assert place.saved == 3 and place.status["status"] == "failed"
    assert not list((place.run / "checkpoints").glob(".*"))
    assert place.job().code == 0
    assert differences(place, straight) is None


def test_a_training_that_goes_on_saves_again_when_there_is_room(shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)
    ended = place.job(full_from(2, room_again=3), "train.on_save_error=continue")
    assert ended.code == 0, ended.said
    assert ended.said.count("The training goes on, as train.on_save_error=continue asks") == 1
    assert differences(place, straight) is None
    steps = sorted(int(path.name[5:]) for path in (place.run / "checkpoints").glob("step-*"))
    assert steps == [3, 9, 12]


def test_the_last_save_must_succeed(shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)
    ended = place.job(full_from(2), "train.on_save_error=continue")
    assert ended.code == 7 and ended.said.count("The training goes on") == 2, ended.said
    assert place.saved == 3
    assert [line["step"] for line in place.lines()][-1] == STEPS  # what was measured is known all the same
    assert place.job().code == 0
    assert differences(place, straight) is None


def test_metrics_that_cannot_be_written_stop_the_training(shared: Path, tmp_path: Path, straight: Place) -> None:
    place = Place(shared, tmp_path)

    def without_room(genuine: Callable[..., None]) -> Callable[..., None]:
        def append(path: Path, document: Any) -> None:
            if path.name == "metrics.jsonl" and document["step"] == 8:
                no_file_beyond(path.stat().st_size + 40)  # amid a line
            try:
                genuine(path, document)
            finally:
                no_file_beyond(AMPLE)

        return append

    ended = place.job(lambda: replace(session, "append_json_line", without_room))
    assert ended.code == 7 and f"cannot write {place.run / 'metrics.jsonl'}: File too large" in ended.said, ended.said
    assert not (place.run / "metrics.jsonl").read_text().endswith("\n")
    assert [line["step"] for line in place.lines()] == [0, 2, 4, 6] and place.saved == 6
    assert place.job().code == 0
    assert differences(place, straight) is None


def test_a_run_directory_that_cannot_be_written_is_said(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, where a directory should be")
    ended = Place(shared, tmp_path).job()
    assert ended.code == 7 and "cannot write" in ended.said and "runs_dir=DIR" in ended.said, ended.said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs an administrator's rights")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("sharded", [False, True])
def test_a_disk_that_fills_up(sharded: bool, small_disk: Path) -> None:
    directory = small_disk / "checkpoints"
    saved = 0
    with pytest.raises(StorageError) as refused:
        for saved in range(1, 50):
            write_checkpoint(directory, snapshot(saved, sharded), Keep(99))
    assert "No space left on device" in str(refused.value) and refused.value.exit_code == 7
    assert f"takes {snapshot(1, sharded).bytes:,} bytes" in str(refused.value)
    found = load_checkpoint(small_disk)
    assert saved > 2 and found.state["step"] == saved - 1
    assert found.tensors("model")["final_norm.weight"].eq(saved - 1).all()
    assert not list(directory.glob(".*"))
    shutil.rmtree(directory / "step-00000001")
    saver = Saver(directory, Keep(1), Ranks(), background=True)
    saver.start(snapshot(saved, sharded))
    assert saver.wait() is None and load_checkpoint(small_disk).state["step"] == saved
    assert sorted(path.name for path in directory.iterdir()) == ["latest", f"step-{saved:08d}"]


def test_a_stop_after_a_save_that_failed_saves_that_step(shared: Path, tmp_path: Path) -> None:
    """Where a full disk is only to be said, what ends the training is still saved, at the same step too."""
    place = Place(shared, tmp_path)

    def full_once(genuine: Callable[..., Any]) -> Callable[..., Any]:
        calls = iter((True,))

        def write(*arguments: Any) -> Any:
            if next(calls, False):
                os.kill(os.getpid(), signal.SIGTERM)
                raise StorageError("cannot write: the disk is full.")
            return genuine(*arguments)

        return write

    arguments = ("train.on_save_error=continue", "train.async_save=false")
    ended = place.job(lambda: replace(saving, "write_checkpoint", full_once), *arguments)
    assert ended.code == 75 and "The training goes on" in ended.said, ended.said
    assert place.saved == stopped_after(ended.said) == 3
