"""The training's side of a tracker: a sending process, kept at work by a thread, which no training ever waits for."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from mhc_train.console import say
from mhc_train.errors import Interrupted
from mhc_train.runs import Run
from mhc_train.schema import TrackerConfig
from mhc_train.tracking.sender import unconfirmed

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds between a sending process that failed and the next one."""


class Tracker:
    """No service: the files of a run are all there is."""

    def finish(self) -> None:
        """Nothing is left to send."""

    def abandon(self) -> None:
        """Nothing is being sent."""


def growing_pauses() -> Iterator[float]:
    """Exponential back-off with jitter, in seconds, for ever."""
    draw = random.Random()  # of its own: the program's numbers stay as they are
    pause = FIRST_PAUSE
    while True:
        yield pause * draw.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE)


class SendingTracker(Tracker):
    """Keeps a process at work that follows a run's files, and puts another in its place when it fails or hangs.

    Args:
        run: the run, whose configuration says where to.
        timeout: seconds that the end of a training waits at most.
        pauses: makes the sequence of pauses between one failure and the next, in seconds.
    """

    def __init__(self, run: Run, timeout: float, pauses: Callable[[], Iterator[float]] = growing_pauses) -> None:
        self._run, self._timeout, self._pauses = run, timeout, pauses
        self._over = threading.Event()
        self._complete = self._abandoned = False
        self._process: subprocess.Popen[str] | None = None
        self._said: set[str] = set()
        # The sending processes see the end of the training in this pipe, also when it dies without a word.
        self._reading, writing = os.pipe()
        self._writing = os.fdopen(writing, "wb", buffering=0)
        self._thread = threading.Thread(target=self._keep_sending, name="tracker", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Let the rest be sent, wait for that no longer than `timeout`, and say what was not sent.

        Raises:
            Interrupted: a second signal came meanwhile.
        """
        try:
            self._end()
            if not self._complete:
                self._say_rest()
        except Interrupted:
            raise
        except Exception as error:  # whatever goes wrong here, how the training ended is what counts
            say(f"The tracker could not be ended ({error}); metrics.jsonl has everything.")

    def abandon(self) -> None:
        """End at once, without waiting for anything; what is not sent yet, a resume sends."""
        self._abandoned = True
        if self._process is not None:
            self._process.kill()

    def _end(self) -> None:
        self._over.set()
        self._writing.write(b"\n")
        self._writing.close()
        self._thread.join(self._timeout)
        self._abandoned = True
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
            self._thread.join(1)

    def _say_rest(self) -> None:
        count, path = unconfirmed(self._run), self._run.path
        if count:
            say(
                f"W&B has not confirmed {count} steps. `python -m mhc_train.tracking {path}` sends what it lacks, and "
                "so does a resume; metrics.jsonl has everything."
            )

    def _keep_sending(self) -> None:
        pauses = self._pauses()
        while not (self._complete or self._abandoned):
            last, started = self._over.is_set(), time.monotonic()
            self._complete = self._attempt()
            if last:
                break
            if time.monotonic() - started > LONGEST_PAUSE:  # it worked well in between
                pauses = self._pauses()
            if not self._complete:
                self._over.wait(next(pauses))
        os.close(self._reading)

    def _attempt(self) -> bool:
        """Run a sending process to its end; returns whether it sent everything."""
        command = [sys.executable, "-m", "mhc_train.tracking", str(self._run.path), "--follow"]
        try:
            with subprocess.Popen(
                command,
                stdin=self._reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,  # the terminal's Ctrl-C is for the training
            ) as self._process:
                for line in self._process.stdout or ():
                    self._say_once(line.rstrip("\n"))
        except OSError as error:
            self._say_once(f"W&B cannot be started ({error}); metrics.jsonl has everything.")
            return False
        return self._process.returncode == 0

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)


def open_tracker(config: TrackerConfig, run: Run) -> Tracker:
    """A tracker of a run, as configured, which begins in the background; one that cannot be had is none."""
    if config.kind == "none":
        return Tracker()
    try:
        return SendingTracker(run, config.timeout)
    except (OSError, RuntimeError) as error:  # no file descriptor or no thread left
        say(f"The tracker cannot be started ({error}); metrics.jsonl has everything.")
        return Tracker()
