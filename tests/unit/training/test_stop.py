"""Reasons to stop: the first signal asks, the second ends, a launcher's echo does neither; the time limit."""

import os
import signal
import time

import pytest

from mhc_train.errors import Interrupted
from mhc_train.stop_signals import SIGNALS
from mhc_train.training.stop import Reason, StopRequest, WaitedEnough, stop_on_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_asks_and_the_second_ends(number: signal.Signals) -> None:
    with stop_on_signals() as stop:
        assert stop.reason is Reason.NONE
        os.kill(os.getpid(), number)
        assert stop.reason is Reason[number.name]
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)


def test_the_same_signal_from_terminal_and_launcher_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = StopRequest()
    stop.receive(signal.SIGINT, None)
    stop.receive(signal.SIGINT, None)
    assert stop.reason is Reason.SIGINT
    with pytest.raises(Interrupted):
        stop.receive(signal.SIGINT, None)


def test_a_second_signal_under_a_launcher_ends_when_it_cannot_be_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = StopRequest()
    stop.receive(signal.SIGINT, None)
    later = time.monotonic() + 6
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(Interrupted):
        stop.receive(signal.SIGINT, None)


@pytest.mark.parametrize("before", [True, False])
def test_a_wait_is_ended_by_a_signal_that_comes_before_or_in_it(before: bool) -> None:
    stop = StopRequest()
    if before:
        stop.receive(signal.SIGTERM, None)
    with pytest.raises(WaitedEnough), stop.no_longer_than_this():
        if not before:
            stop.receive(signal.SIGTERM, None)
        raise AssertionError("never reached")
    assert not stop.waiting


def test_the_time_limit_leaves_its_margin() -> None:
    stop = StopRequest(100)
    assert stop.reason is Reason.NONE
    stop.margin = 101
    assert stop.reason is Reason.TIME_LIMIT and str(stop.reason) == "the time limit"
    assert StopRequest(-1).reason is Reason.TIME_LIMIT
