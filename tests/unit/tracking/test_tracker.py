"""A tracker whose service refuses, hangs or dies: the training never notices, and what can arrive arrives once."""

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tracked import Server, measured, new_run, write_measurement, write_metrics

from mhc_train.files import append_json_line, read_json_lines
from mhc_train.runs import Run
from mhc_train.schema import TrackerConfig
from mhc_train.stop_signals import SIGNALS
from mhc_train.tracking.record import load_record
from mhc_train.tracking.tracker import LONGEST_PAUSE, SendingTracker, Tracker, growing_pauses, open_tracker

BOUND = 30.0
"""Seconds that anything here may take: long, and far from for ever."""

PATIENCE = {True: ("tracker.timeout=1",), False: ()}
"""How long a call may take, by whether one is to hang: a slow machine must not look like a hanging service."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def quickly() -> Iterator[float]:
    return itertools.repeat(0.01)


def wait_for(condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < BOUND
        time.sleep(0.02)


def track(run: Run, steps: range, timeout: float = BOUND) -> SendingTracker:
    """A tracker whose training writes these steps and is over."""
    tracker = SendingTracker(run, timeout, quickly)
    write_metrics(run, *steps)
    tracker.finish()
    return tracker


def steps(lines: list[dict[str, Any]]) -> list[int]:
    return [line["step"] for line in lines]


def test_everything_arrives_once_in_order_while_the_training_runs(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    tracker = SendingTracker(run, BOUND)
    write_metrics(run, 0)
    write_measurement(run, 0)
    write_metrics(run, 1, 2)
    wait_for(lambda: len(server.received(run)) > 0)  # long before the end
    for number in SIGNALS:  # as a scheduler sends them to every process of a job
        assert tracker._process is not None
        tracker._process.send_signal(number)
    assert server.received(run)[0].keys() > {"train_loss", "tokens", "forward_gain/layers.0"}
    tracker.finish()
    assert steps(server.received(run)) == [0, 1, 2] and server.calls() == ["init", "log", "log", "log", "finish"]
    assert server.received(run)[1:] == read_json_lines(run.metrics)[1:]
    assert load_record(run).step == 2
    assert json.loads((server.home / "configuration.json").read_text())["tracker"]["timeout"] == 20
    assert capsys.readouterr().err == "W&B: online.\n"


def test_after_failures_every_step_arrives_once_in_order(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run, script = new_run(tmp_path), ["init refuse", "log refuse", "log refuse", "init refuse"]
    server.script(*script)
    tracker = SendingTracker(run, BOUND, quickly)
    write_metrics(run, *range(30))
    wait_for(lambda: server.calls().count("init") > len(script))
    write_metrics(run, *range(30, 40))
    tracker.finish()
    assert server.received(run) == read_json_lines(run.metrics) and len(server.received(run)) == 40
    err = capsys.readouterr().err
    assert err.count("(init refused)") == err.count("(log refused)") == 1
    assert err.count("W&B: online") == 1 and "not confirmed" not in err


def test_more_than_any_queue_would_hold_is_sent_when_the_service_is_back(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path, *PATIENCE[True])
    server.script("log hang")
    tracker = SendingTracker(run, BOUND, quickly)
    write_metrics(run, *range(10))
    wait_for(lambda: "log" in server.calls())
    with run.metrics.open("a") as stream:
        stream.writelines(json.dumps({"step": step, "train_loss": 0.5}) + "\n" for step in range(10, 500))
    tracker.finish()
    assert server.received(run) == read_json_lines(run.metrics) and len(server.received(run)) == 500


@pytest.mark.parametrize("fault", ["log refuse", "finish hang"])
def test_a_service_that_is_gone_for_good_costs_a_bounded_end_and_one_message(
    fault: str, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, *PATIENCE["hang" in fault])
    server.script(f"always {fault}")
    started = time.monotonic()
    track(run, range(3))
    assert time.monotonic() - started < BOUND
    err = capsys.readouterr().err
    assert err.count("W&B fails") + err.count("W&B does not answer") == 1
    assert "has not confirmed 3 steps" in err and f"python -m mhc_train.tracking {run.path}" in err
    assert steps(read_json_lines(run.metrics)) == [0, 1, 2]


def test_pictures_come_with_their_step(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    append_json_line(run.watch, measured(1, sublayers=3))
    write_metrics(run, 1, 2)
    append_json_line(run.measurements, measured(2, sublayers=2))
    SendingTracker(run, BOUND, quickly).finish()
    first, second = server.received(run)
    assert first.keys() >= {"train_loss", "watch/forward_gain/layers.2", "watch/maps", "watch/profile"}
    assert second.keys() >= {"train_loss", "forward_gain/layers.1", "maps", "profile"}
    assert first["watch/maps"]["size"][0] > second["maps"]["size"][0]  # a map more


@pytest.mark.parametrize("fault", ["always image refuse", "broken map"])
def test_a_picture_that_fails_loses_no_number(
    fault: str, tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    server.script(fault)
    for step in range(3):
        line = measured(step, sublayers=2)
        if fault == "broken map":
            line["sublayers"][0]["mean_maps"]["res"] = [[1.0, 0.0], [1.0]]
        append_json_line(run.watch, line)
    SendingTracker(run, BOUND, quickly).finish()
    assert [line["watch/forward_gain/layers.1"] for line in server.received(run)] == [0, 1, 2]
    assert not any("watch/maps" in line for line in server.received(run))
    assert capsys.readouterr().err.count("No pictures go to W&B") == 1


def test_an_end_in_the_middle_of_a_hanging_call_does_not_wait_for_it(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, "tracker.timeout=3600")
    server.script("always init hang")
    tracker = SendingTracker(run, timeout=0.2)
    wait_for(lambda: server.calls() == ["init"])
    write_metrics(run, 0)
    tracker.finish()
    assert "has not confirmed 1 steps" in capsys.readouterr().err
    assert not tracker._thread.is_alive()  # so neither is the process, whose end it waits for


def test_a_pause_of_minutes_ends_with_the_training(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    server.script("init refuse")
    tracker = SendingTracker(run, BOUND, lambda: itertools.repeat(3600.0))
    wait_for(lambda: server.calls() == ["init"])
    write_metrics(run, 0, 1)
    tracker.finish()
    assert steps(server.received(run)) == [0, 1]


def test_what_the_command_prints_is_the_way_to_send_the_rest(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    server.script("log refuse", "log refuse", "log refuse", "log refuse")
    track(run, range(5), timeout=0.01)
    server.script()
    command = [sys.executable, "-m", "mhc_train.tracking", str(run.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=BOUND)
    assert result.returncode == 0 and result.stdout == "W&B: online.\n"
    assert server.received(run) == read_json_lines(run.metrics)
    assert subprocess.run([*command, "nowhere"], capture_output=True, timeout=BOUND).returncode == 2
    absent = [*command[:-1], str(tmp_path / "nowhere")]
    assert subprocess.run(absent, capture_output=True, timeout=BOUND).returncode == 4


def test_a_resume_goes_on_where_the_service_stands(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    track(run, range(8))
    run.truncate(4)  # to the checkpoint
    for step in range(5, 12):
        append_json_line(run.metrics, {"step": step, "again": 1})
    SendingTracker(run, BOUND).finish()
    received = server.received(run)
    assert steps(received) == list(range(12))
    assert ["again" in line for line in received] == [False] * 8 + [True] * 4
    assert load_record(run).step == 11


def test_offline_a_session_that_broke_is_written_anew_and_a_resume_adds_one(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, "tracker.mode=auto")
    server.script("init refuse", "log refuse", "init refuse")
    track(run, range(5))
    (session,) = run.path.glob("wandb/offline-run-*")
    assert read_json_lines(session / "run.wandb") == read_json_lines(run.metrics)
    err = capsys.readouterr().err
    assert "cannot be reached (init refused)" in err and f"wandb sync {run.path}/wandb/offline-run-*" in err

    server.script("always init refuse")
    write_metrics(run, 5, 6)
    SendingTracker(run, BOUND).finish()
    first, second = sorted(run.path.glob("wandb/offline-run-*"), key=lambda path: path != session)
    assert steps(read_json_lines(first / "run.wandb")) == [0, 1, 2, 3, 4]
    assert steps(read_json_lines(second / "run.wandb")) == [5, 6]


def test_the_service_gets_what_a_killed_training_left(tmp_path: Path, server: Server) -> None:
    run = new_run(tmp_path)
    write_metrics(run, 0, 1, 2)
    program = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from mhc_train.runs import Run\nfrom mhc_train.tracking.tracker import SendingTracker\n"
        "run = Run(Path(sys.argv[1]))\nSendingTracker(run, 60)\n"
        "while not (run.path / 'tracker.json').exists():\n    time.sleep(0.02)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(run.path)], capture_output=True, timeout=BOUND)
    assert ended.returncode == -9
    wait_for(lambda: load_record(run).step == 2)
    assert steps(server.received(run)) == [0, 1, 2]


def test_nothing_is_begun_without_a_service(tmp_path: Path) -> None:
    threads = threading.active_count()
    tracker = open_tracker(TrackerConfig(kind="none"), Run(tmp_path))
    tracker.finish()
    assert type(tracker) is Tracker and threading.active_count() == threads


def test_a_tracker_that_cannot_even_begin_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    write_metrics(run, 0)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no more of these")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    SendingTracker(run, BOUND, quickly).finish()
    err = capsys.readouterr().err
    assert err.count("cannot be started (no more of these)") == 1 and "has not confirmed 1 steps" in err
    monkeypatch.setattr("os.pipe", refuse)
    open_tracker(TrackerConfig(), run).finish()
    assert "The tracker cannot be started (no more of these)" in capsys.readouterr().err


def test_a_record_that_cannot_be_read_does_not_raise_at_the_end(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path)
    (run.path / "tracker.json").write_text("{")
    with pytest.raises(KeyError, match="the training's own"):
        tracker = SendingTracker(run, BOUND, quickly)
        try:
            raise KeyError("the training's own")
        finally:
            tracker.finish()
    assert "tracker could not be ended" in capsys.readouterr().err


def test_an_id_has_no_character_that_ids_cannot_have(tmp_path: Path) -> None:
    assert load_record(Run(tmp_path / "20260101-lr=1e-3 a:b#c-0a1b2c")).id == "20260101-lr-1e-3-a-b-c-0a1b2c"


def test_pauses_grow_to_a_ceiling_and_scatter() -> None:
    first, second = (list(itertools.islice(growing_pauses(), 12)) for _ in range(2))
    assert first != second
    for number, pause in enumerate(first):
        full = min(2.0 * 2**number, LONGEST_PAUSE)
        assert full / 2 <= pause <= full
