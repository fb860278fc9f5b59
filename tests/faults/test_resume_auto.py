"""What `--resume auto` goes on with: the newest unfinished run of the very configuration, and never two at once."""

import signal
import time
from pathlib import Path

from faulted_runs import STEPS, Place, at_call, replace, stopped_after, unchanged
from faulting import Child
from test_signals import die, heard, stop

from mhc_train.training import session
from mhc_train.training.unfinished import newest_first


def stopped_at(place: Place, step: int, *arguments: str) -> Path:
    """A run that was stopped after a step."""
    ended = place.job(lambda: replace(session, "take_step", at_call(step, stop)), *arguments)
    assert ended.code == 75 and stopped_after(ended.said) == step, ended.said
    return place.run


def test_it_begins_goes_on_and_leaves_alone(shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)
    run = stopped_at(place, 4)
    ended = place.job()
    assert ended.code == 0 and f"Resuming {run} at step 4" in ended.said
    with unchanged(run):
        ended = place.job()
    assert ended.code == 0 and f"{run} is done: {STEPS} steps" in ended.said
    assert len(newest_first(place.runs)) == 1
    ended = place.job(lambda: None, f"train.steps={STEPS + 1}")
    assert ended.code == 0 and f"Resuming {run} at step {STEPS}" in ended.said and place.saved == STEPS + 1


def test_another_configuration_and_an_unusable_run_are_passed_over(shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)
    other = stopped_at(place, 2, "seed=1")
    time.sleep(1.1)  # directories are named by the second
    older = stopped_at(place, 5)
    time.sleep(1.1)
    ended = place.job(lambda: replace(session, "take_step", at_call(1, die)), "seed=2")
    assert ended.code == -signal.SIGKILL
    with unchanged(other):
        ended = place.job()
    assert ended.code == 0 and f"Resuming {older} at step 5" in ended.said
    unusable = place.run
    ended = place.job(lambda: None, "seed=2")
    assert ended.code == 0 and f"{unusable}: no checkpoint here" in ended.said
    assert "a new one begins" in ended.said and len(newest_first(place.runs)) == 4


def test_runs_that_were_moved_are_found(shared: Path, tmp_path: Path) -> None:
    run = stopped_at(Place(shared, tmp_path / "here"), 3)
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "runs").rename(tmp_path / "there" / "runs")
    ended = Place(shared, tmp_path / "there").job()
    assert ended.code == 0 and f"there/runs/{run.name} at step 3" in ended.said


def test_two_at_once_are_refused(shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)
    run = stopped_at(place, 3)
    place.log.unlink()
    first = Child(
        lambda: (replace(session, "take_step", at_call(2, lambda: time.sleep(60))), place.fit())[1], place.log
    )
    heard(first, "Restored")
    second = Place(shared, tmp_path / "second")
    second.settings[second.settings.index(f"runs_dir={second.runs}")] = f"runs_dir={place.runs}"
    with unchanged(run / "checkpoints"):
        ended = second.job()
    assert ended.code == 4 and f"{run}: another process is training here" in ended.said, ended.said
    first.send(signal.SIGTERM)
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL  # and with it goes the lock
    assert place.job().code == 0 and place.saved == STEPS
