"""How far a training has come: what a checkpoint restores besides weights, moments and random states."""

import math
import statistics
from dataclasses import dataclass, field

from mhc_train.data import State

MEMORY = 100
"""Steps whose losses are remembered, to see spikes and divergence."""
LEAST = 20
"""Losses that must be known before one of them is called a spike."""


@dataclass
class Progression:
    """A JSON document, but for its name."""

    step: int = 0
    tokens: int = 0
    data: State | None = None
    """The data state of all ranks after the last batch of the last checkpoint."""
    reported: int = -1
    """The last step whose line, validation and measurement were written, if they were due."""
    window: list[float] = field(default_factory=list)
    """Losses since the last logged step."""
    grad_norm: float | None = None
    """Of the last step."""
    spike: float | None = None
    """The highest spike score since the last logged step."""
    recent: list[float] = field(default_factory=list)
    """The last `MEMORY` losses."""
    lowest: float | None = None
    """The lowest mean of `MEMORY` losses."""
    skipped: list[int] = field(default_factory=list)
    """Steps whose update was skipped because something was not finite."""
    skipped_in_a_row: int = 0

    def note(self, loss: float, grad_norm: float) -> None:
        """Take in a step whose update was made."""
        self.skipped_in_a_row = 0
        self.window.append(loss)
        self.grad_norm = grad_norm
        score = spike_score(loss, self.recent)
        if score is not None:
            self.spike = score if self.spike is None else max(self.spike, score)
        self.recent = [*self.recent[1 - MEMORY :], loss]
        if len(self.recent) == MEMORY:
            mean = statistics.fmean(self.recent)
            self.lowest = mean if self.lowest is None else min(self.lowest, mean)

    def skip(self, step: int) -> None:
        """Take in a step whose update was refused."""
        self.skipped.append(step)
        self.skipped_in_a_row += 1

    @property
    def rise(self) -> float:
        """Nats by which the mean of the last `MEMORY` losses is above the lowest such mean."""
        if self.lowest is None or len(self.recent) < MEMORY:
            return 0.0
        return statistics.fmean(self.recent) - self.lowest

    def logged(self) -> None:
        """Begin a new window."""
        self.window.clear()
        self.spike = None


def spike_score(loss: float, before: list[float]) -> float | None:
    """Standard deviations by which a loss is above the mean of those before it; None while too few are known."""
    if len(before) < LEAST:
        return None
    deviation = statistics.stdev(before)
    return (loss - statistics.fmean(before)) / deviation if deviation > 0 and math.isfinite(deviation) else 0.0
