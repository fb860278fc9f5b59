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


class Interruption:
    """Ends what happens by raising `Ended` when a signal comes, but at once only where it may."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._held_back = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._received = signal.Signals(number).name
        if not self._held_back:
            raise Ended(self._received)

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """What happens inside is done to its end; a signal that came meanwhile is raised then."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        if self._received:
            raise Ended(self._received)


@contextlib.contextmanager
def ended_by_signals(error: Callable[[str], MhcTrainError]) -> Iterator[Interruption]:
    """Let any of them end what happens inside: it raises the error that is made of the signal's name."""
    interruption = Interruption()
    try:
        with handled_by(interruption):
            yield interruption
    except Ended as caught:
        raise error(str(caught)) from None
