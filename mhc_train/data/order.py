"""The order of documents: a pure function of seed, epoch, shards and place, so that a position is seven integers.

A fixed number of lanes share a source's documents. Within a lane, consecutive blocks of documents are shuffled by a
keyed permutation; nothing is kept in a live buffer, and resuming reads at most one block again.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mhc_train.data.readers import Part
from mhc_train.errors import DataError

WHOLE_SHARDS_A_LANE = 8
"""With at least so many shards a lane, shards are dealt whole; fewer are each cut into a part for every lane."""


class Position(NamedTuple):
    """Where a lane stands in a source: the document, and the token in it, that its next sequence begins with."""

    epoch: int = 0
    part: int = 0
    """How many of the lane's parts of this epoch are finished."""
    block: int = 0
    cursor: int = -1
    """Where reading the block begins; -1 for the beginning of the part."""
    document: int = 0
    """Place in the block's shuffled order."""
    token: int = 0
    skipped: int = 0
    """Documents of this lane that were unreadable and passed over before this one."""


START = Position()
DOCUMENT, TOKEN, SKIPPED = (Position._fields.index(name) for name in ("document", "token", "skipped"))


class Documents(NamedTuple):
    """Some consecutive documents of a block's shuffled order, as tokens."""

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]
    """Of each document, in the order that was asked for."""
    skipped: NDArray[np.int64]
    """Unreadable documents of the block before each of these, and before whatever follows."""


class Block(Protocol):
    """Consecutive stored documents."""

    @property
    def cursor(self) -> int:
        """Where reading them begins."""
        ...

    def __len__(self) -> int:
        """How many, whether or not they are delivered."""
        ...

    def documents(self, order: NDArray[np.int64]) -> Iterator[Documents]:
        """Those to train on, as tokens, in this order of their stored places."""
        ...


class Reader(Protocol):
    """A source's documents, read as text or as tokens prepared before."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        ...

    def blocks(self, part: Part, size: int, cursor: int | None) -> Iterator[Block]:
        """The documents of a part, `size` at a time, from `cursor` on."""
        ...


def lane_documents(
    reader: Reader, seed: int, block_size: int, lane: int, lanes: int, start: Position = START
) -> Iterator[tuple[Documents, NDArray[np.int64]]]:
    """A lane's documents for ever, epoch after epoch, with the position (documents, 7) of each.

    Args:
        reader: the source.
        seed: key of all permutations.
        block_size: documents that are shuffled together; 1 keeps the stored order.
        lane: which lane.
        lanes: of how many.
        start: where to begin, as yielded before; its `token` is left to the caller.

    Raises:
        DataError: as many epochs as there are lanes, so every document there is, brought none.
    """
    empty_epochs, skipped = 0, start.skipped
    while empty_epochs <= lanes:
        empty_epochs += 1
        parts = lane_parts(reader.shards, lane, lanes, seed, start.epoch)
        for number in range(start.part, len(parts)):
            cursor = None if start.cursor < 0 else start.cursor
            for count, block in enumerate(reader.blocks(parts[number], block_size, cursor), start.block):
                order = permutation(len(block), seed, start.epoch, *parts[number], count)[start.document :]
                here = Position(start.epoch, number, count, block.cursor, start.document, 0, skipped)
                for documents in block.documents(order):
                    yield documents, _positions(here, documents)
                    empty_epochs = 0 if len(documents.lengths) else empty_epochs
                    skipped = here.skipped + int(documents.skipped[-1])
                start = start._replace(document=0)
            start = start._replace(block=0, cursor=-1)
        start = START._replace(epoch=start.epoch + 1)
    raise DataError("the source holds no documents to train on: none, or only empty and held-out ones.")


def lane_parts(shards: int, lane: int, lanes: int, seed: int, epoch: int) -> list[Part]:
    """What a lane reads in an epoch. Over all lanes every part of every shard comes exactly once.

    In the next epoch every lane takes over from its neighbour, so that in as many epochs as there are lanes each of
    them reads everything; and in each epoch it reads its parts in another order.
    """
    parts = 1 if shards >= WHOLE_SHARDS_A_LANE * lanes else lanes
    places = range((lane + epoch) % lanes, shards * parts, lanes)
    shuffled = permutation(len(places), seed, epoch, lane).tolist()
    return [Part(places[index] // parts, places[index] % parts, parts) for index in shuffled]


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """An order of `size` things, the same wherever and whenever it is asked for with the same key.

    NumPy keeps the numbers that a bit generator draws the same in all its versions, but not its shuffles (NEP 19).
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.PCG64(int.from_bytes(digest, "little")).random_raw(size).argsort(kind="stable")


def _positions(here: Position, documents: Documents) -> NDArray[np.int64]:
    rows = np.tile(np.array(here, dtype=np.int64), (len(documents.lengths), 1))
    rows[:, DOCUMENT] += documents.places
    rows[:, SKIPPED] += documents.skipped[:-1]
    return rows
