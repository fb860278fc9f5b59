"""Follows the files of a run as they grow: its steps in order, each whole, each once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mhc_train.runs import Run
from mhc_train.tracking.curves import Line, Values, measurement, metrics, watched


class Step(NamedTuple):
    """All that the files say of one step."""

    number: int
    values: Values
    drawn: dict[str, Line]
    """The lines that pictures are made of, by what the pictures' names begin with."""


class Tail:
    """The lines of one JSON-lines file, one at a time, also those that are yet to be written."""

    def __init__(self, path: Path, curves: Callable[[Line], Values], pictures: str | None = None) -> None:
        self._path, self._curves, self._pictures, self._offset = path, curves, pictures, 0
        self.line: Line | None = None
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

    def take(self) -> Step:
        """What `line` says, which makes room for the next one."""
        assert self.line is not None
        line, self.line = self.line, None
        return Step(line["step"], self._curves(line), {} if self._pictures is None else {self._pictures: line})


class Follower:
    """The steps of metrics.jsonl and the files in diagnostics/ together; two lines of each are in memory, at most."""

    def __init__(self, run: Run) -> None:
        self._tails = [
            Tail(run.watch, watched, "watch/"),
            Tail(run.metrics, metrics),
            Tail(run.measurements, measurement, ""),
        ]
        self._begun: Step | None = None

    def steps(self, over: bool) -> Iterator[Step]:
        """Every further step of which all is written, and if the training is `over`, the last one too.

        Lines of several files that have the same step make one. It is known to be whole when a later step has begun.
        """
        while (tail := self._next()) is not None:
            found, begun = tail.take(), self._begun
            if begun is not None and found.number == begun.number:
                self._begun = Step(begun.number, begun.values | found.values, begun.drawn | found.drawn)
                continue
            self._begun = found
            if begun is not None:
                yield begun
        if over and self._begun is not None:
            yield self._begun
            self._begun = None

    def _next(self) -> Tail | None:
        # A file without a next line is looked at again after the other got one: what was written to it before that
        # line is then seen, so that no step overtakes an earlier one.
        while any(tail.look() for tail in self._tails):
            pass
        written = [tail for tail in self._tails if tail.line is not None]
        return min(written, key=lambda tail: tail.line["step"] if tail.line else 0, default=None)
