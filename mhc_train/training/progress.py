"""What a person sees of a training: a live bar on a terminal, plain lines in a pipe."""

import sys
import time
from types import TracebackType
from typing import Any

from mhc_train.console import say

LINE_EVERY_SECONDS = 10


class Progress:
    """Shows step, loss, tokens a second and the time left; a context manager."""

    def __init__(self, label: str, steps: int, done: int) -> None:
        self.label, self.steps, self.first = label, steps, done
        self.started = time.monotonic()
        self.last_line = 0.0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            self._start_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show a finished step."""
        facts = f"loss {loss:.4f} · {tokens_per_second:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, facts=facts)
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_EVERY_SECONDS or step == self.steps:
            self.last_line = now
            left = (now - self.started) / (step - self.first) * (self.steps - step)
            say(f"{self.label}: step {step}/{self.steps} · {facts} · {left:.0f} s left")

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
        self.task = self.bar.add_task(self.label, total=self.steps, completed=self.first, facts="")
        self.bar.start()
