"""Lanes dealt to ranks and workers: the same sequences in the same order, however many of them there are.

Sequence g of a training belongs to lane g mod lanes, and to the source that the mixture's weights give it. A rank has
every so many-th lane, a loader worker of it every so many-th of those, so that nobody reads what another reads.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mhc_train.data.order import START, Position, Reader, lane_documents
from mhc_train.data.packing import Packed, pack
from mhc_train.data.tokenizer import Tokens

State = dict[str, Any]
DIGEST_BYTES = 32
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples fill an interval evenly from the first few on (Weyl's sequence)."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides which sequence is the g-th."""

    readers: tuple[Reader, ...]
    weights: tuple[float, ...]
    """Share of the tokens that each source gives."""
    lanes: int
    seed: int
    block_size: int
    seq_len: int
    token_type: np.dtype[np.unsignedinteger]

    def sources(self, first: int, count: int) -> NDArray[np.int64]:
        """The source of sequences `first`, `first + lanes`, ... of a lane, by the weights and the number alone."""
        if len(self.weights) == 1:
            return np.zeros(count, np.int64)
        numbers = np.arange(first, first + self.lanes * count, self.lanes, dtype=np.uint64)
        places = (numbers * np.uint64(GOLDEN)) / 2.0**64
        ends = np.cumsum(self.weights) / sum(self.weights)
        return np.minimum(ends.searchsorted(places, "right"), len(self.weights) - 1)


class Sequences(NamedTuple):
    """Consecutive sequences of a lane, or of several, and where each leaves its lane."""

    tokens: NDArray[Any]
    """(sequences, seq_len + 1)."""
    sources: NDArray[Any]
    """Of each sequence."""
    positions: NDArray[Any]
    """(sequences, 7): where its lane's next sequence from that source begins."""
    digests: NDArray[Any]
    """(sequences, 32): running hash of the lane's tokens."""

    def part(self, start: int | None, stop: int | None) -> "Sequences":
        """Some of them."""
        return Sequences(*(array[start:stop] for array in self))


def joined(parts: Iterable[Sequences]) -> Sequences:
    """All of them, one after another."""
    return Sequences(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Lane:
    """One lane's sequences, one after another, from a place on."""

    def __init__(self, plan: Plan, number: int, following: int, state: State | None) -> None:
        self.plan, self.following = plan, following
        starts = [Position(*row) for row in state["positions"]] if state else [START] * len(plan.readers)
        self.digest = bytes.fromhex(state["digest"]) if state else bytes(DIGEST_BYTES)
        self.packed = [
            pack(
                lane_documents(reader, plan.seed, plan.block_size, number, plan.lanes, start), plan.seq_len, start.token
            )
            for reader, start in zip(plan.readers, starts, strict=True)
        ]
        nothing = Packed(np.empty((0, plan.seq_len + 1), plan.token_type), np.empty((0, len(START)), np.int64))
        self.waiting = [nothing] * len(plan.readers)

    def take(self, count: int) -> Sequences:
        """The next `count` sequences."""
        sources = self.plan.sources(self.following, count)
        self.following += count * self.plan.lanes
        parts = [self._from(source, int(wanted)) for source, wanted in enumerate(np.bincount(sources))]
        # Grouped by source so far; a stable sort says where each belongs.
        places = np.argsort(np.argsort(sources, kind="stable")) if len(parts) > 1 else slice(None)
        tokens, positions = (np.concatenate(arrays)[places] for arrays in zip(*parts, strict=True))
        return Sequences(tokens, sources, positions, self._hashed(tokens))

    def _from(self, source: int, count: int) -> Packed:
        """The next `count` sequences of one source."""
        waiting = self.waiting[source]
        while len(waiting.tokens) < count:
            waiting = waiting.joined(next(self.packed[source]))
        self.waiting[source] = Packed(waiting.tokens[count:], waiting.positions[count:])
        return Packed(waiting.tokens[:count], waiting.positions[:count])

    def _hashed(self, tokens: Tokens) -> NDArray[np.uint8]:
        """The lane's running hash after each of these sequences."""
        digests = []
        for sequence in tokens:
            hashing = hashlib.sha256(self.digest)
            hashing.update(sequence)
            self.digest = hashing.digest()
            digests.append(self.digest)
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


class Share(NamedTuple):
    """A rank's lanes in the order in which their next sequences come."""

    lanes: list[int]
    following: list[int]
    """The number of each lane's next sequence."""


def share(lanes: int, following: int, rank: int, world: int) -> Share:
    """The lanes of `rank` when sequence `following` of all ranks is the next; `world` divides both."""
    numbers = [following + rank + world * index for index in range(lanes // world)]
    return Share([number % lanes for number in numbers], numbers)


def rounds(plan: Plan, mine: Share, state: State | None, count: int, worker: int, workers: int) -> Iterator[Sequences]:
    """A worker's lanes, `count` sequences of each at a time, lane after lane, for ever."""
    lanes = [
        Lane(plan, lane, following, state["lanes"][str(lane)] if state else None)
        for lane, following in list(zip(*mine, strict=True))[worker::workers]
    ]
    while True:
        yield joined(lane.take(count) for lane in lanes)


def in_order(parts: Sequence[Sequences], count: int) -> Sequences:
    """One item of every worker, put into the order in which a single process would have delivered them."""

    def woven(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        # Of each worker (lanes, count, ...); worker w has every lane w, w + workers, ... of the rank.
        shape = arrays[0].shape[1:]
        round_by_round = [array.reshape(-1, count, *shape).swapaxes(0, 1) for array in arrays]
        return np.stack(round_by_round, axis=2).reshape(-1, *shape)

    return Sequences(*(woven(arrays) for arrays in zip(*parts, strict=True)))
