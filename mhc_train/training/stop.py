"""Why a training ends early: signals, of which the second ends at once, and the time limit."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from enum import IntEnum
from types import FrameType

from mhc_train.console import say
from mhc_train.errors import Interrupted
from mhc_train.stop_signals import handled_by

ECHO_SECONDS = 5.0


class Reason(IntEnum):
    """What asks for an end; where ranks differ, the highest counts."""

    NONE = 0
    SIGINT = 1
    SIGTERM = 2
    SIGUSR1 = 3
    TIME_LIMIT = 4
    SAVE_FAILED = 5
    NO_DATA = 6

    def __str__(self) -> str:
        return "the time limit" if self is Reason.TIME_LIMIT else self.name


class WaitedEnough(BaseException):
    """Ends a wait that a stop signal came into; no handler of ordinary errors may hold it up."""


class StopRequest:
    """Whether, and why, an end was asked for.

    Args:
        seconds: from now to the time limit.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self.deadline = time.monotonic() + seconds
        self.margin = 0.0
        """Seconds before the deadline at which the end is asked for."""
        self.signal: signal.Signals | None = None
        self.waiting = False
        # The terminal's Ctrl-C reaches every process, and torchrun then sends it to each once more.
        self._echo_until = ECHO_SECONDS if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    @property
    def reason(self) -> Reason:
        """Of this process, by now."""
        if self.signal is not None:
            return Reason[self.signal.name]
        return Reason.TIME_LIMIT if time.monotonic() + self.margin >= self.deadline else Reason.NONE

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of all `SIGNALS`."""
        if self.signal is not None:
            if time.monotonic() < self._echo_until:
                self._echo_until = 0.0
                return
            raise Interrupted("Interrupted twice: ended without saving.")
        self.signal = signal.Signals(number)
        self._echo_until += time.monotonic()
        say(f"{self.signal.name}: stopping after this step, with a checkpoint. Once more to end at once.")
        if self.waiting:
            raise WaitedEnough

    @contextlib.contextmanager
    def no_longer_than_this(self) -> Iterator[None]:
        """A wait, of minutes perhaps, that a stop signal ends, also one that came before.

        Raises:
            WaitedEnough: it came.
        """
        self.waiting = True
        try:
            if self.signal is not None:
                raise WaitedEnough
            yield
        finally:
            self.waiting = False


@contextlib.contextmanager
def stop_on_signals(seconds: float = math.inf) -> Iterator[StopRequest]:
    """Listen inside; the handlers from before are put back."""
    request = StopRequest(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    with handled_by(request.receive):
        yield request
