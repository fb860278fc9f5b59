"""Packing: nothing lost, nothing padded, however the documents come, and every sequence can be begun at again."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhc_train.data.order import START, TOKEN, Documents
from mhc_train.data.packing import Packed, pack

sizes = st.lists(st.one_of(st.integers(1, 12), st.just(1), st.just(70)), min_size=1, max_size=40)
pieces = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any)


def documents_of(lengths: list[int], pieces: list[int], first: int = 0, kind: str = "<u2") -> Iterator:
    """Documents of distinct tokens in pieces of so many; document n has the position (n, n, ..., 0, n)."""
    ends = np.cumsum(lengths)
    number = first
    while number < len(lengths):
        for size in pieces:
            some = np.arange(number, min(number + size, len(lengths)))
            tokens = [np.arange(ends[n] - lengths[n], ends[n], dtype=kind) for n in some]
            positions = np.repeat(some[:, None], len(START), axis=1)
            positions[:, TOKEN] = 0
            counts = np.array(lengths)[some].astype(np.int64)
            nowhere = np.zeros(len(some), np.int64)
            yield (
                Documents(np.concatenate([np.empty(0, kind), *tokens]), counts, nowhere, np.append(nowhere, 0)),
                positions,
            )
            number += len(some)


def together(packed: list[Packed], seq_len: int) -> tuple[list[list[int]], list[list[int]]]:
    nothing = Packed(np.empty((0, seq_len + 1), "<u2"), np.empty((0, len(START)), np.int64))
    for some in packed:
        nothing = nothing.joined(some)
    return nothing.tokens.tolist(), nothing.positions.tolist()


@given(sizes, pieces, st.integers(1, 20))
def test_sequences_are_the_flat_tokens_cut_with_an_overlap_of_one(
    lengths: list[int], pieces: list[int], seq_len: int
) -> None:
    flat = list(range(sum(lengths)))
    sequences, positions = together(list(pack(documents_of(lengths, pieces), seq_len)), seq_len)
    assert len(sequences) == len(positions) == (len(flat) - 1) // seq_len
    for number, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
        assert sequence == flat[number * seq_len : (number + 1) * seq_len + 1]
        # A token is its own place, so the last one says where the next sequence begins.
        document = int(np.searchsorted(np.cumsum(lengths), sequence[-1], "right"))
        inside = sequence[-1] - sum(lengths[:document])
        assert position == [inside if field == TOKEN else document for field in range(len(START))]


@given(sizes, pieces, pieces, st.integers(1, 20))
def test_packing_begins_again_at_every_position(
    lengths: list[int], pieces: list[int], others: list[int], seq_len: int
) -> None:
    sequences, positions = together(list(pack(documents_of(lengths, pieces), seq_len)), seq_len)
    for number, position in enumerate(positions):
        again = pack(documents_of(lengths, others, position[0]), seq_len, position[TOKEN])
        assert together(list(again), seq_len) == (sequences[number + 1 :], positions[number + 1 :])


@pytest.mark.parametrize("lengths", [[1] * 500, [500], [1, 498, 1]])
def test_documents_of_one_token_and_documents_longer_than_many_sequences(lengths: list[int]) -> None:
    sequences, positions = together(list(pack(documents_of(lengths, [1]), 7)), 7)
    assert np.array(sequences)[:, :-1].flatten().tolist() == list(range(497))
    assert [sum(lengths[:document]) + token for document, *_, token, _ in positions] == list(range(7, 500, 7))


@pytest.mark.parametrize("kind", ["<u2", "<u4"])
def test_tokens_keep_their_type_and_are_delivered_as_soon_as_they_make_a_sequence(kind: str) -> None:
    seen = []
    source = (seen.append(1) or piece for piece in documents_of([4] * 6, [1], kind=kind))
    first = next(pack(source, 5))
    assert first.tokens.dtype == kind and first.tokens.flags.c_contiguous and len(seen) == 2
