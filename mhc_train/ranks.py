"""The processes that train one model together: which of them this one is, and how they agree."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process speaks for all: it is the only one, or rank 0 of a launcher such as torchrun."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training. Every method is called by all of them, in the same order.

    What is agreed here travels through the processor's memory, never through a GPU, so that no GPU is waited for.
    """

    rank: int = 0
    world: int = 1
    group: Any = None
    """A gloo process group of all ranks; None for a process alone."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and talks to people."""
        return self.rank == 0

    def highest(self, number: int) -> int:
        """The highest of all ranks' numbers."""
        if self.group is None:
            return number
        import torch
        import torch.distributed as dist

        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, self.group)
        return int(found)

    def gather(self, item: Any) -> list[Any]:
        """What every rank gave, in their order."""
        if self.group is None:
            return [item]
        import torch.distributed as dist

        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, item, self.group)
        return found

    def by_each(self, make: Callable[[], T]) -> list[T]:
        """What every rank makes, told to all; where one fails, all fail with the first one's error."""
        made: tuple[Any, Exception | None]
        try:
            made = make(), None
        except Exception as error:
            made = None, error
        everyones = self.gather(made)
        failures = [error for _, error in everyones if error is not None]
        if failures:
            raise failures[0]
        return [item for item, _ in everyones]

    def by_first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, told to all; where it fails, all fail with its error."""
        if self.group is None:
            return make()
        import torch.distributed as dist

        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = make()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, 0, self.group)
        if answer[1] is not None:
            raise answer[1]
        result: T = answer[0]
        return result
