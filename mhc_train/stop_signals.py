"""The signals that ask a training to stop, for whoever hears them, passes them on, or must not."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from mhc_train.errors import MhcTrainError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have all of them handled inside; the handlers from before are put back. For the main thread alone."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Ended(BaseException):
    """A signal came, by its name; no handler of ordinary errors may hold it up."""


@contextlib.contextmanager
def ended_by_signals(error: Callable[[str], MhcTrainError]) -> Iterator[None]:
    """Let any of them end what happens inside: it raises the error that is made of the signal's name."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Ended(signal.Signals(number).name)

    try:
        with handled_by(interrupt):
            yield
    except Ended as caught:
        raise error(str(caught)) from None
