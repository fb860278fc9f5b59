"""The order of documents: a keyed shuffle inside consecutive blocks, a pure function of seed, epoch and block.

There is no live shuffle buffer, so a position is a small JSON document and resuming re-reads at most one block.
"""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mhc_train.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

Position = dict[str, Any]
START: Position = {"epoch": 0, "block": 0, "offset": 0, "stream": None}


def shuffled_documents(
    open_stream: Callable[[], "IterableDataset"],
    column: str,
    keep: Callable[[str], bool],
    seed: int,
    block_size: int,
    start: Position = START,
) -> Iterator[tuple[str, Position]]:
    """The non-empty documents that `keep` wants, epoch after epoch, each with the position that yields it again.

    Args:
        open_stream: makes a fresh stream from the first document.
        column: the column that holds the text.
        keep: which documents are delivered.
        seed: key of the permutations.
        block_size: documents a block; 1 keeps the stored order.
        start: where to begin, as yielded earlier.

    Raises:
        DataError: a whole epoch holds no such document.
    """
    while True:
        stream = open_stream()
        if start["stream"] is not None:
            stream.load_state_dict(start["stream"])
        whole_epoch, delivered = start["stream"] is None, False
        for position, rows in _blocks(stream, start, block_size):
            order = permutation(seed, position["epoch"], position["block"], len(rows))
            for offset in range(position["offset"], len(rows)):
                text = rows[order[offset]][column]
                if text and keep(text):
                    delivered = True
                    yield text, position | {"offset": offset}
        if whole_epoch and not delivered:
            raise DataError("the source holds no documents to train on.")
        start = START | {"epoch": start["epoch"] + 1}


def permutation(seed: int, epoch: int, block: int, size: int) -> list[int]:
    """The order in which a block's rows are visited."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{block}".encode()).digest()
    order: list[int] = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little"))).permutation(size).tolist()
    return order


def held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the validation set: decided by its hash, wherever and whenever it is read."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def _blocks(
    stream: "IterableDataset", position: Position, block_size: int
) -> Iterator[tuple[Position, list[dict[str, Any]]]]:
    rows, block, offset, state = iter(stream), position["block"], position["offset"], position["stream"]
    while chunk := list(islice(rows, block_size)):
        yield {"epoch": position["epoch"], "block": block, "offset": offset, "stream": state}, chunk
        block, offset, state = block + 1, 0, stream.state_dict()
