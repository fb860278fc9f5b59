"""Signals: the first asks for a good save and an orderly end, the second ends at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from mhc_train.console import say
from mhc_train.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class WaitedEnough(BaseException):
    """Ends a wait that a stop signal came into; no handler of ordinary errors may hold it up."""


class StopRequest:
    """Whether, and by which signal, an end was asked for."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self.waiting = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of all `SIGNALS`."""
        if self:
            raise Interrupted("Interrupted twice: ended without saving.")
        self.signal = signal.Signals(number).name
        say(f"{self.signal}: stopping after this step, with a checkpoint. Once more to end at once.")
        if self.waiting:
            raise WaitedEnough

    @contextlib.contextmanager
    def no_longer_than_this(self) -> Iterator[None]:
        """A wait, of minutes perhaps, that a stop signal ends.

        Raises:
            WaitedEnough: it came.
        """
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Listen inside; the handlers from before are put back."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
