"""What a person sees of long work: a live bar on a terminal, plain lines in a pipe."""

import sys
import time
from types import TracebackType
from typing import Any

from mhc_train.console import say

LINE_EVERY_SECONDS = 10


class Progress:
    """Shows how much of `total` is done, some facts, and the time left; a context manager. Silent if not `shown`.

    `total` may be set anew as more is known.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "step", shown: bool = True) -> None:
        self.label, self.total, self.first, self.unit, self.shown = label, total, done, unit, shown
        self.started = time.monotonic()
        self.last_line = 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if self.shown and sys.stderr.isatty():
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, facts: str) -> None:
        """Show that `done` of the total are finished."""
        if self.bar is not None:
            self.bar.update(self.task, total=self.total, completed=done, facts=facts)
            return
        now = time.monotonic()
        if self.shown and (now - self.last_line >= LINE_EVERY_SECONDS or done == self.total):
            self.last_line = now
            pace = (now - self.started) / max(1, done - self.first)
            left = f" · {pace * (self.total - done):.0f} s left" if done > self.first else ""
            say(f"{self.label}: {self.unit} {done}/{self.total} · {facts}{left}")

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[facts]}",
            TimeRemainingColumn(),
        )
        self.bar = Bar(
            *(TextColumn(column) if isinstance(column, str) else column for column in columns),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(self.label, total=self.total, completed=self.first, facts="")
        self.bar.start()
