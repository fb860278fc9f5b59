"""From documents to sequences: packed without padding, each with the position of the one that follows."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt
from numpy import ndarray

from mhc_train.data.order import START, TOKEN, Documents


class Packed(NamedTuple):
    """Consecutive sequences, and the position that the one after each begins at."""

    tokens: UInt[ndarray, "sequences seq_plus_1"]
    positions: Int64[ndarray, "sequences fields"]

    def joined(self, following: "Packed") -> "Packed":
        """These and the ones that follow."""
        if not len(self.tokens):
            return following
        return Packed(*(np.concatenate(pair) for pair in zip(self, following, strict=True)))


def pack(documents: Iterable[tuple[Documents, ndarray]], seq_len: int, skip: int = 0) -> Iterator[Packed]:
    """Sequences of `seq_len + 1` tokens; each begins with the last of the one before, its first target.

    Beside each stands the position that the next one begins at, a document and a token in it: leftover tokens need
    not be kept, since that document is read again. `skip` tokens of the first document were delivered before.
    """
    tokens, starts, positions = np.empty(0, np.uint16), np.empty(0, np.int64), np.empty((0, len(START)), np.int64)
    for piece, places in documents:
        ends = piece.lengths.cumsum()
        starts = np.concatenate([starts, len(tokens) + ends - piece.lengths])
        positions = np.concatenate([positions, places])
        tokens = np.concatenate([tokens, piece.tokens])
        count = (len(tokens) - skip - 1) // seq_len
        if count <= 0:
            continue
        follows = skip + seq_len * np.arange(1, count + 1)
        inside = starts.searchsorted(follows, "right") - 1
        at = positions[inside]
        at[:, TOKEN] = follows - starts[inside]
        windows = np.lib.stride_tricks.sliding_window_view(tokens[skip : int(follows[-1]) + 1], seq_len + 1)
        yield Packed(np.ascontiguousarray(windows[::seq_len]), at)
        # What remains begins inside a document; the distance to that document's first token must not be lost.
        tokens, skip = tokens[follows[-1] :], 0
        starts, positions = starts[inside[-1] :] - follows[-1], positions[inside[-1] :]
