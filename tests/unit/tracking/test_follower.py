"""Following a run's files: whole steps, in order, each once, however writing and reading interleave."""

import random
import threading
from pathlib import Path

from tracked import measured, new_run, write_measurement, write_metrics

from mhc_train.files import append_json_line
from mhc_train.runs import Run
from mhc_train.tracking.curves import measurement, watched
from mhc_train.tracking.follower import Follower, Step


def test_a_step_is_delivered_when_it_is_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    follower = Follower(run)
    assert list(follower.steps(over=False)) == []
    write_metrics(run, 0)
    assert list(follower.steps(over=False)) == []  # its measurement may follow
    write_measurement(run, 0)
    assert list(follower.steps(over=False)) == []
    write_metrics(run, 10)
    ((step, values, drawn),) = follower.steps(over=False)
    assert step == 0 and values["train_loss"] == 1.0 and values["forward_gain/layers.0"] == 0.0
    assert drawn == {"": measured(0)}
    assert list(follower.steps(over=True)) == [(10, {"tokens": 100, "train_loss": 1 / 11}, {})]
    assert list(follower.steps(over=True)) == []


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_metrics(run, 2)
    line = run.metrics.read_bytes()
    follower = Follower(run)
    for end in range(len(line)):
        run.metrics.write_bytes(line[:end])
        assert list(follower.steps(over=True)) == []
    run.metrics.write_bytes(line)
    assert [step.number for step in follower.steps(over=True)] == [2]


def test_a_measurement_between_two_logged_steps_is_a_step_of_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_metrics(run, 0)
    write_measurement(run, 4)
    write_metrics(run, 5)
    write_measurement(run, 5)
    found = [(step.number, len(step.values)) for step in Follower(run).steps(over=True)]
    assert found == [(0, 2), (4, 8), (5, 10)]


def test_order_and_wholeness_while_both_files_grow(tmp_path: Path) -> None:
    run, draw = new_run(tmp_path), random.Random(1)
    expected: dict[int, set[str]] = {}

    def write() -> None:
        for step in range(1500):
            if draw.random() < 0.3:
                append_json_line(run.watch, measured(step))
                expected.setdefault(step, set()).add("watch/energy/layers.0")
            if draw.random() < 0.7:
                write_metrics(run, step)
                expected.setdefault(step, set()).add("train_loss")
            if draw.random() < 0.4:
                write_measurement(run, step)
                expected.setdefault(step, set()).add("energy/layers.0")

    writer = threading.Thread(target=write)
    writer.start()
    follower, found, over = Follower(run), list[Step](), False
    while not over:
        over = not writer.is_alive()
        found += follower.steps(over)
    writer.join()
    assert [step.number for step in found] == list(expected)
    names = {"train_loss", "energy/layers.0", "watch/energy/layers.0"}
    assert all(step.values.keys() & names == expected[step.number] for step in found)


def test_curves_leave_out_what_could_not_be_measured(tmp_path: Path) -> None:
    gain = {"max": None, "median": 1.5}
    row = dict.fromkeys(
        ("forward_gain", "backward_gain", "energy_gain", "gradient_energy_gain", "difference_gain"), gain
    )
    composite = {"forward": [{"forward_gain": {"max": 3.0}}, row], "backward": [{"backward_gain": {"max": 4.0}}]}
    line = {"step": 1, "sublayers": [row | {"name": "a", "energy_out": {"mean": 2.0}}], "composite": composite}
    expected = {"energy/a": 2.0, "composite/backward_gain": 4.0, "composite/difference_gain": 1.5}
    assert measurement(line) == expected
    assert watched(line) == {f"watch/{name}": value for name, value in expected.items()}
