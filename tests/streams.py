"""A source that is a list, and trainings that take batches with any number of ranks, resume and go on."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from order_oracle import Ids, Listed
from torch import Tensor

from mhc_train.data import Batches, State, merged
from mhc_train.data.order import Documents
from mhc_train.data.readers import Part

PIECE = 3


@dataclass(frozen=True)
class Memory:
    """A source whose documents are token ids in memory; None is unreadable, () is not trained on."""

    stored: tuple[tuple[Ids | None, ...], ...]

    @property
    def shards(self) -> int:
        return len(self.stored)

    @property
    def listed(self) -> Listed:
        def part(shard: int, number: int, parts: int) -> list[Ids | None]:
            size = len(self.stored[shard])
            return list(self.stored[shard][size * number // parts : size * (number + 1) // parts])

        return Listed(self.shards, part)

    def blocks(self, part: Part, size: int, cursor: int | None = None) -> Iterator["MemoryBlock"]:
        records = self.stored[part.shard]
        end = len(records) * (part.number + 1) // part.parts
        for start in range(len(records) * part.number // part.parts if cursor is None else cursor, end, size):
            yield MemoryBlock(start, records[start : min(start + size, end)])


@dataclass(frozen=True)
class MemoryBlock:
    cursor: int
    records: tuple[Ids | None, ...]

    def __len__(self) -> int:
        return len(self.records)

    def documents(self, order: NDArray[np.int64]) -> Iterator[Documents]:
        """`PIECE` records at a time, and nothing at last."""
        skipped = 0
        for start in range(0, len(order) + PIECE, PIECE):
            found, places, before = [], [], []
            for place, index in enumerate(order[start : start + PIECE].tolist(), start):
                if self.records[index] is None:
                    skipped += 1
                elif self.records[index]:
                    found.append(self.records[index])
                    places.append(place)
                    before.append(skipped)
            tokens = np.array([id for document in found for id in document], "<u2")
            lengths = np.array([len(document) for document in found], np.int64)
            yield Documents(tokens, lengths, np.array(places, np.int64), np.array([*before, skipped], np.int64))


Start = Callable[[State | None, int, int], Batches]
"""Begin batches from a state, for a rank, of so many ranks."""


def train(start: Start, steps: int, state: State | None = None, world: int = 1) -> tuple[Tensor, State]:
    """Sequences of all ranks in the order in which one process has them, and the state after them, through JSON."""
    ranks = [start(state, rank, world) for rank in range(world)]
    together = [torch.stack([next(rank) for rank in ranks], 1).flatten(0, 1) for _ in range(steps)]
    after = json.loads(json.dumps(merged([rank.state() for rank in ranks])))
    for rank in ranks:
        rank.close()
    return torch.cat(together), after


def train_on(start: Start, legs: Iterable[tuple[int, int]]) -> tuple[Tensor, list[State]]:
    """Train leg after leg, (steps, ranks) each, every one from the state that the one before left."""
    states: list[State | None] = [None]
    parts = []
    for steps, world in legs:
        part, state = train(start, steps, states[-1], world)
        parts.append(part)
        states.append(state)
    return torch.cat(parts), [state for state in states if state is not None]
