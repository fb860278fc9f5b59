"""The order of documents: every one once an epoch, whatever the shards, lanes and blocks, and again from anywhere."""

from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from order_oracle import Ids, lane_documents
from streams import Memory

from mhc_train.data import order
from mhc_train.data.order import START, Position, lane_parts, permutation
from mhc_train.errors import DataError

shard_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=18)


def numbered(sizes: list[int]) -> Memory:
    """Shards of so many documents: the n-th document of all is n + 1 times the token n."""
    numbers = iter(range(sum(sizes)))
    return Memory(tuple(tuple((n,) * (n + 1) for n in islice(numbers, size)) for size in sizes))


def delivered(
    reader: Memory, lane: int, lanes: int, seed: int = 0, block: int = 4, start: Position = START
) -> Iterator[tuple[Ids, Position]]:
    """A lane's documents one by one, with the position of each."""
    for documents, positions in order.lane_documents(reader, seed, block, lane, lanes, start):
        ends = documents.lengths.cumsum()
        for end, length, position in zip(ends, documents.lengths, positions, strict=True):
            yield tuple(documents.tokens[end - length : end].tolist()), Position(*position.tolist())


def epochs(reader: Memory, lane: int, lanes: int, number: int, **options: int) -> list[list[int]]:
    """The numbers of the documents of a lane's first epochs."""
    found: list[list[int]] = [[] for _ in range(number)]
    for document, position in delivered(reader, lane, lanes, **options):
        if position.epoch >= number:
            return found
        found[position.epoch].append(document[0])
    raise AssertionError("it ended")


def test_a_permutation_is_the_same_in_every_version_and_another_with_another_key() -> None:
    assert permutation(8, 0, 0).tolist() == [3, 5, 2, 0, 7, 1, 4, 6]
    assert permutation(8, 1, 22).tolist() != permutation(8, 12, 2).tolist()
    orders = {tuple(permutation(30, seed, epoch, 5).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16 and all(sorted(found) == list(range(30)) for found in orders)


@given(st.integers(0, 70), st.integers(1, 8), st.integers(0, 9), st.integers(0, 9))
def test_every_part_of_every_shard_comes_once_over_all_lanes(shards: int, lanes: int, seed: int, epoch: int) -> None:
    parts = [part for lane in range(lanes) for part in lane_parts(shards, lane, lanes, seed, epoch)]
    pieces = 1 if shards >= 8 * lanes else lanes
    assert sorted(parts) == [(shard, number, pieces) for shard in range(shards) for number in range(pieces)]
    sizes = [len(lane_parts(shards, lane, lanes, seed, epoch)) for lane in range(lanes)]
    assert max(sizes) - min(sizes) <= 1


@given(shard_sizes.filter(any), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_every_document_comes_once_an_epoch_over_all_lanes(sizes: list[int], lanes: int, block: int, seed: int) -> None:
    if len(sizes) >= 8 * lanes:
        sizes = [size + 1 for size in sizes]
    lists = [epochs(numbered(sizes), lane, lanes, 3, block=block, seed=seed) for lane in range(lanes)]
    for epoch in range(3):
        assert sorted(number for found in lists for number in found[epoch]) == list(range(sum(sizes)))


@given(shard_sizes.filter(any), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_the_order_is_the_one_that_the_oracle_writes_down(sizes: list[int], lanes: int, block: int, seed: int) -> None:
    reader = numbered([size + 1 for size in sizes])
    for lane in range(lanes):
        plain = [[ids[0] for ids in lane_documents(reader.listed, lane, lanes, seed, block, epoch)] for epoch in (0, 1)]
        assert epochs(reader, lane, lanes, 2, block=block, seed=seed) == plain


def test_another_epoch_and_another_seed_are_other_orders() -> None:
    reader = numbered([40, 40])
    first, second = epochs(reader, 0, 1, 2, block=8)
    (other,) = epochs(reader, 0, 1, 1, block=8, seed=1)
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(80))}) == 4
    # Also inside a block: not only the shards change places.
    assert len({tuple(number for number in found if number < 8) for found in (first, second, other)}) == 3


def test_blocks_of_one_keep_the_stored_order_of_a_lane() -> None:
    reader = numbered([23, 0, 11])
    (found,) = epochs(reader, 2, 3, 1, block=1)
    parts = lane_parts(3, 2, 3, 0, 0)
    assert found == [ids[0] for part in parts for ids in reader.listed.part(*part) if ids]
    assert epochs(numbered([9]), 0, 1, 2, block=1) == [list(range(9))] * 2


@pytest.mark.parametrize("lanes", [3, 5, 8])
def test_fewer_documents_than_lanes_reach_every_lane_and_none_stops(lanes: int) -> None:
    reader = numbered([1, 0, 1])
    for lane in range(lanes):
        found = epochs(reader, lane, lanes, lanes, block=2)
        assert sorted(number for epoch in found for number in epoch) == [0, 1]


def test_a_document_among_many_empty_whole_shards_reaches_every_lane() -> None:
    for seed in range(20):
        for lane in range(2):
            next(delivered(numbered([0] * 15 + [1]), lane, 2, seed=seed))


@pytest.mark.parametrize("stored", [((),), ((), ()), (((),) * 9, (None,))])
@pytest.mark.parametrize("lanes", [1, 4])
def test_a_source_without_documents_is_an_error_not_an_endless_loop(stored: tuple, lanes: int) -> None:
    with pytest.raises(DataError, match="no documents to train on"):
        next(delivered(Memory(stored), lanes - 1, lanes))


records = st.lists(st.one_of(st.none(), st.just(()), st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple)))
shards = st.lists(records.map(tuple), min_size=1, max_size=5).map(tuple)


@given(shards.filter(lambda stored: any(any(shard) for shard in stored)), st.integers(1, 3), st.integers(1, 9))
def test_from_every_position_the_same_documents_follow_with_the_same_positions(
    stored: tuple, lanes: int, block: int
) -> None:
    reader = Memory(stored)
    for lane in range(lanes):
        straight = list(islice(delivered(reader, lane, lanes, block=block), 25))
        for number, (_, position) in enumerate(straight):
            again = delivered(reader, lane, lanes, block=block, start=position)
            assert list(islice(again, 25 - number)) == straight[number:]


@given(shards.filter(lambda stored: any(any(shard) for shard in stored)), st.integers(1, 9))
def test_unreadable_documents_are_counted_where_they_are_passed_over(stored: tuple, block: int) -> None:
    reader = Memory(stored)
    every = sum(document is None for shard in stored for document in shard)
    for _, position in islice(delivered(reader, 0, 1, block=block), 40):
        assert position.epoch * every <= position.skipped <= (position.epoch + 1) * every
    in_stored_order = delivered(Memory(((None, (1,), None, (2,), None),)), 0, 1, block=1)
    assert [at.skipped for _, at in islice(in_stored_order, 5)] == [1, 2, 4, 5, 7]
