"""Losses and norms on their way from the device: read one step late, so that it never waits for the host."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.training.step import StepResult


class Outcome(NamedTuple):
    """What became of a step, on the host."""

    step: int
    loss: float
    grad_norm: float
    refused: bool
    batch: Int[Tensor, "batch seq_plus_1"]
    """What this rank trained on."""


class _Travelling(NamedTuple):
    step: int
    numbers: Tensor
    arrival: torch.cuda.Event | None
    batch: Tensor


class Results:
    """A queue, in the order of the steps.

    Args:
        late: steps that may still be on their way when the next one begins. With one, the device has always work
            queued, and what is waited for has long arrived.
    """

    def __init__(self, late: int) -> None:
        self.late = late
        self._queue: deque[_Travelling] = deque()

    def add(self, step: int, result: StepResult, batch: Int[Tensor, "batch seq_plus_1"]) -> None:
        """Send a step's numbers to the host."""
        numbers, arrival = torch.stack([number.detach().float() for number in result]), None
        if numbers.is_cuda:
            # From pinned memory alone, a copy does not hold the host up.
            numbers = torch.empty(len(result), pin_memory=True).copy_(numbers, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record()
        self._queue.append(_Travelling(step, numbers, arrival, batch))

    def arrived(self, late: int = 0) -> Iterator[Outcome]:
        """Those of all steps but the last `late`."""
        while len(self._queue) > late:
            step, numbers, arrival, batch = self._queue.popleft()
            if arrival is not None:
                arrival.synchronize()
            loss, norm, refused = numbers.tolist()
            yield Outcome(step, loss, norm, bool(refused), batch)
