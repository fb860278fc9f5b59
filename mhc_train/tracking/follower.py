"""Follows the files of a run as they grow: its steps in order, each whole, each once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mhc_train.runs import Run
from mhc_train.tracking.curves import Values, measurement, metrics


class Tail:
    """The lines of one JSON-lines file, one at a time, also those that are yet to be written."""

    def __init__(self, path: Path, curves: Callable[[dict[str, Any]], Values]) -> None:
        self._path, self._curves, self._offset = path, curves, 0
        self.line: dict[str, Any] | None = None
        """The next line; None where there is none yet."""

    def look(self) -> bool:
        """Have the next line in `line`, if it has been written to its end; returns whether that is new."""
        if self.line is not None or not self._path.exists():
            return False
        with self._path.open("rb") as stream:  # anew each time: a network's file system then shows what is new
            stream.seek(self._offset)
            text = stream.readline()
        if not text.endswith(b"\n"):
            return False
        self.line = json.loads(text)
        self._offset += len(text)
        return True

    def take(self) -> tuple[int, Values]:
        """Step and curves of `line`, which makes room for the next one."""
        assert self.line is not None
        line, self.line = self.line, None
        return line["step"], self._curves(line)


class Follower:
    """The steps of metrics.jsonl and diagnostics/measurements.jsonl together; no more than two lines are in memory."""

    def __init__(self, run: Run) -> None:
        self._tails = [Tail(run.metrics, metrics), Tail(run.measurements, measurement)]
        self._step, self._values = -1, Values()

    def steps(self, over: bool) -> Iterator[tuple[int, Values]]:
        """Every further step of which all is written, and if the training is `over`, the last one too.

        Lines of both files that have the same step make one item. It is known to be whole when a later step has begun.
        """
        while (tail := self._next()) is not None:
            step, values = tail.take()
            if step != self._step and self._values:
                yield self._step, self._values
                self._values = {}
            self._step, self._values = step, self._values | values
        if over and self._values:
            yield self._step, self._values
            self._values = {}

    def _next(self) -> Tail | None:
        # A file without a next line is looked at again after the other got one: what was written to it before that
        # line is then seen, so that no step overtakes an earlier one.
        while any(tail.look() for tail in self._tails):
            pass
        written = [tail for tail in self._tails if tail.line is not None]
        return min(written, key=lambda tail: tail.line["step"] if tail.line else 0, default=None)
