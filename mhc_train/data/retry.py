"""Trying again: which failures of a network pass by themselves, how long they are waited out, and what is said then."""

import errno
import http.client
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mhc_train.console import say
from mhc_train.errors import DataError

Result = TypeVar("Result")
LONGEST_ASKED = 600.0
NETWORK_LIBRARIES = {"aiohttp", "botocore", "httpcore", "httpx", "httpx2", "requests", "urllib3"}
UNREACHABLE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
PASSING_ERRORS = (ConnectionError, TimeoutError, socket.gaierror, http.client.HTTPException)
PASSING_STATUS = {408, 425, 429}
"""HTTP answers below 500 that pass: time-out, too early, too many requests."""


class Placed(Protocol):
    """Something read that knows where reading it again begins."""

    @property
    def cursor(self) -> int:
        """Where it begins."""


Item = TypeVar("Item", bound=Placed)


@dataclass(frozen=True)
class Retry:
    """Exponential back-off with jitter: `first_delay`, twice that, four times, at most `longest_delay` seconds."""

    attempts: int
    first_delay: float = 1.0
    longest_delay: float = 60.0
    advice: str = "Check the network."
    sleep: Callable[[float], None] = time.sleep

    def call(self, attempt: Callable[[], Result], what: str) -> Result:
        """The result of `attempt`, tried again while its failure is one that passes.

        Raises:
            DataError: it failed every time; `what` names it.
        """
        failures = _Failures(self, what)
        while True:
            try:
                return attempt()
            except Exception as error:
                failures.wait_after(error)

    def iterate(self, read: Callable[[int | None], Iterator[Item]], cursor: int | None, what: str) -> Iterator[Item]:
        """What `read(cursor)` yields; after a failure that passes, reading begins again at the last item delivered.

        Raises:
            DataError: it failed every time in a row; `what` names it.
        """
        failures, again = _Failures(self, what), False
        while True:
            try:
                items = read(cursor)
                if again:
                    next(items, None)  # it was delivered before the failure
                for item in items:
                    yield item
                    cursor, again, failures = item.cursor, True, _Failures(self, what)
                return
            except Exception as error:
                failures.wait_after(error)


class _Failures:
    """The failures of one thing in a row."""

    def __init__(self, retry: Retry, what: str) -> None:
        self.retry, self.what, self.count, self.started = retry, what, 0, time.monotonic()

    def wait_after(self, error: Exception) -> None:
        """Wait before the next attempt, or raise: refusals and what did not pass as `DataError`, others as they are."""
        cause = _network_error(error)
        if cause is None:
            raise error
        reason = f"{type(cause).__name__}: {(str(cause) or 'no reason given').splitlines()[0]}"
        if not passes(cause):
            raise DataError(f"{self.what} cannot be read: {reason}.") from error
        self.count += 1
        if self.count >= self.retry.attempts:
            raise DataError(
                f"{self.what} cannot be read: tried {self.count} times in {time.monotonic() - self.started:.0f} s, at "
                f"last {reason}. {self.retry.advice}"
            ) from error
        delay = max(self._back_off(), _asked_for(cause))
        say(f"{self.what}: {reason}. Attempt {self.count + 1} of {self.retry.attempts} in {delay:.1f} s.")
        self.retry.sleep(delay)

    def _back_off(self) -> float:
        # Jitter keeps many processes that failed together from coming back together.
        delay = min(self.retry.longest_delay, self.retry.first_delay * 2 ** (self.count - 1))
        return delay * random.uniform(0.5, 1.0)


def _network_error(error: BaseException | None) -> BaseException | None:
    """The failure, or the one that caused it, that is a network's or a server's."""
    while error is not None and not (passes(error) or _status(error) is not None):
        error = error.__cause__
    return error


def passes(error: BaseException) -> bool:
    """Whether a failure is the network's, and may be gone at the next attempt."""
    status = _status(error)
    if status is not None:
        return status in PASSING_STATUS or status >= 500
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    away = isinstance(error, OSError) and error.errno in UNREACHABLE
    return away or isinstance(error, PASSING_ERRORS) or bool(libraries & NETWORK_LIBRARIES)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of any client library carries."""
    places = ((getattr(error, "response", None), "status_code"), (error, "status"), (error, "code"))
    found = (getattr(place, name, None) for place, name in places)
    return next((status for status in found if isinstance(status, int) and 100 <= status < 600), None)


def _asked_for(error: BaseException) -> float:
    """Seconds that the server asked to wait, within reason; 0 if it did not say."""
    headers = getattr(getattr(error, "response", error), "headers", None) or {}
    seconds = str(headers.get("Retry-After", ""))
    return min(float(seconds), LONGEST_ASKED) if seconds.isascii() and seconds.isdecimal() else 0.0
