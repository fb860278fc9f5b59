"""What `gpu.py` runs its parts with: a clock, and processes of their own."""

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
GRACE = 120.0
"""Seconds that what is under way has after the time in which anything new may begin."""
PATIENCE = 240.0
"""Seconds after which a process that has not answered is taken to hang."""


class Clock:
    """Seconds since the start, and what is left of the time."""

    def __init__(self, minutes: float) -> None:
        self._started, self._seconds = time.monotonic(), 60 * minutes

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def in_time(self) -> bool:
        """Whether something new may begin."""
        return self.elapsed() < self._seconds

    def left(self) -> float:
        """Seconds that something under way may still take."""
        return min(PATIENCE, max(0.0, self._seconds + GRACE - self.elapsed()))

    def say(self, words: str) -> None:
        print(f"{self.elapsed():4.0f} s  {words}", file=sys.stderr, flush=True)


class _Failure(NamedTuple):
    """Arrives in the place of an answer."""

    reason: str


class Apart:
    """A function in a process of its own, which leaves this one alone when it crashes or spoils its device.

    Args:
        act: takes one end of a pipe first; what it sends is received here, and the other way round.
        given: its other arguments.
    """

    def __init__(self, act: Callable[..., None], *given: Any) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_run, args=(act, theirs, given), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        self._pipe.send(message)

    def receive(self, seconds: float) -> Any:
        """The next answer.

        Raises:
            RuntimeError: what went wrong over there.
            TimeoutError: it did not come in time.
        """
        if not self._pipe.poll(seconds):
            raise TimeoutError(f"no answer within {seconds:.0f} s")
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise RuntimeError(f"its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, _Failure):
            raise RuntimeError(answer.reason)
        return answer

    def end(self) -> None:
        """By closing the pipe, which it waits on; by force if that is not enough."""
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


def apart(act: Callable[..., Any], *given: Any, seconds: float) -> Any:
    """What a function returns in a process of its own."""
    process = Apart(_answer, act, *given)
    try:
        return process.receive(seconds)
    finally:
        process.end()


def brief(error: BaseException) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0][:500]


def here(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    import platform

    import torch
    import triton

    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    if device == "cpu":
        return {"device": "cpu, interpreted", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda, **versions,
    }  # fmt: skip


def _answer(pipe: Any, act: Callable[..., Any], *given: Any) -> None:
    pipe.send(act(*given))


def _run(act: Callable[..., None], pipe: Any, given: tuple[Any, ...]) -> None:
    try:
        act(pipe, *given)
    except Exception as error:
        traceback.print_exc()
        pipe.send(_Failure(brief(error)))
