"""Lanes: the same sequences in the same order for any number of ranks, workers and resumes, and from any source."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from order_oracle import sequences
from streams import Memory, Start, train, train_on

from mhc_train.data import Batches, State, order_fingerprint
from mhc_train.data.lanes import Plan, in_order, rounds, share

LANES = 12
weights = st.lists(st.floats(0.01, 9), min_size=1, max_size=4)


def plan(weights: tuple[float, ...] = (1.0,), lanes: int = LANES, seq_len: int = 3) -> Plan:
    """Sources of 30 to 50 documents of 1 to 7 tokens; which token says which source."""
    readers = [
        Memory(
            tuple(
                tuple((1000 * (source + 1) + 10 * shard + n,) * (n % 7 + 1) for n in range(10 + 5 * source))
                for shard in range(3)
            )
        )
        for source in range(len(weights))
    ]
    return Plan(tuple(readers), weights, lanes, 5, 4, seq_len, np.dtype("<u2"))


def starting(plan: Plan, size: int) -> Start:
    return lambda state, rank, world: Batches(plan, "text", size, state, rank, world)


def expected(plan: Plan, number: int) -> list[list[int]]:
    sources = [reader.listed for reader in plan.readers]
    return list(
        islice(sequences(sources, list(plan.weights), plan.lanes, plan.seed, plan.block_size, plan.seq_len), number)
    )


@pytest.mark.parametrize("shares", [(1.0,), (3.0, 1.0), (0.2, 0.5, 0.3)])
@pytest.mark.parametrize(("lanes", "size"), [(12, 12), (12, 5), (5, 12), (1, 3), (8, 1), (3, 40)])
def test_batches_are_the_oracles_sequences_over_several_epochs(shares: tuple, lanes: int, size: int) -> None:
    mixed = plan(shares, lanes)
    found, state = train(starting(mixed, size), 480 // size)
    assert found.tolist() == expected(mixed, 480 // size * size)
    assert max(row[0] for lane in state["lanes"].values() for row in lane["positions"]) >= 1


legs = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 3, 4, 6])), min_size=1, max_size=4)


@given(legs, st.sampled_from([(1.0,), (2.0, 1.0)]))
def test_any_numbers_of_ranks_and_resumes_give_the_same_tokens_and_states(legs: list, shares: tuple) -> None:
    start = starting(plan(shares), 24)
    steps = sum(steps for steps, _ in legs)
    straight, state = train(start, steps)
    resumed, states = train_on(start, legs)
    assert resumed.equal(straight) and states[-1] == state
    assert order_fingerprint(states[-1]) == order_fingerprint(state)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4))
def test_a_resume_anywhere_in_a_round_and_with_another_batch_goes_on_with_the_next_sequence(legs: list) -> None:
    mixed = plan((1.0, 2.0))
    state: State | None = None
    found = []
    for steps, size in legs:
        part, state = train(starting(mixed, size), steps, state)
        found += part.tolist()
    assert state is not None and state["following"] == len(found)
    assert found == expected(mixed, len(found))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_make_what_one_process_makes(world: int, workers: int) -> None:
    mixed = plan((1.0, 2.0), lanes=24)
    for rank in range(world):
        mine = share(24, 6 * world, rank, world)
        (whole,) = islice(rounds(mixed, mine, None, 5, 0, 1), 1)
        parts = [next(rounds(mixed, mine, None, 5, worker, workers)) for worker in range(workers)]
        for array, other in zip(in_order([whole], 5), in_order(parts, 5), strict=True):
            np.testing.assert_array_equal(array, other)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_every_lane_belongs_to_one_rank_and_comes_when_its_number_does(world: int, per_rank: int, step: int) -> None:
    lanes, following = world * per_rank, world * step
    shares = [share(lanes, following, rank, world) for rank in range(world)]
    assert sorted(lane for mine in shares for lane in mine.lanes) == list(range(lanes))
    for rank, mine in enumerate(shares):
        for index, (lane, number) in enumerate(zip(*mine, strict=True)):
            assert number == following + rank + index * world and lane == number % lanes


def test_nobody_reads_what_another_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[tuple[int, int], list[tuple]] = {}
    original = Memory.blocks

    def spy(who: tuple[int, int]) -> Callable:
        def blocks(reader: Memory, part: tuple, size: int, cursor: int | None = None):  # noqa: ANN202
            read.setdefault(who, []).append(tuple(part))
            return original(reader, part, size, cursor)

        return blocks

    reader = Memory(tuple(tuple((n,) * 3 for n in range(120)) for _ in range(3)))
    for rank in range(2):
        for worker in range(3):
            monkeypatch.setattr(Memory, "blocks", spy((rank, worker)))
            one = replace(plan(), readers=(reader,))
            next(rounds(one, share(LANES, 0, rank, 2), None, 25, worker, 3))
    parts = [part for parts in read.values() for part in parts]
    assert len(read) == 6 and len(parts) == len(set(parts)) == 3 * LANES


def test_the_fingerprint_is_of_every_lanes_tokens_in_order() -> None:
    mixed = plan((1.0, 1.0), lanes=4)
    found, state = train(starting(mixed, 6), 7)
    rows = found.numpy().astype("<u2")
    together = hashlib.sha256(b"42")
    for lane in range(4):
        digest = bytes(32)
        for row in rows[lane::4]:
            digest = hashlib.sha256(digest + row.tobytes()).digest()
        assert state["lanes"][str(lane)]["digest"] == digest.hex()
        together.update(digest)
    assert order_fingerprint(state) == together.hexdigest()


def test_the_fingerprint_orders_lanes_by_number_and_notices_every_token() -> None:
    _, state = train(starting(plan(lanes=12), 12), 2)
    shuffled = state | {"lanes": dict(sorted(state["lanes"].items(), key=lambda lane: lane[0]))}
    assert list(shuffled["lanes"]) != list(state["lanes"]) and order_fingerprint(shuffled) == order_fingerprint(state)
    for lane in state["lanes"]:
        changed = json.loads(json.dumps(state))
        changed["lanes"][lane]["digest"] = "00" * 32
        assert order_fingerprint(changed) != order_fingerprint(state)


@given(weights, st.integers(1, 20), st.integers(0, 19), st.integers(0, 500), st.integers(0, 200))
def test_the_source_of_a_sequence_is_where_its_multiple_of_the_golden_ratio_falls(
    weights: list[float], lanes: int, lane: int, first: int, count: int
) -> None:
    mixed = plan(tuple(weights), lanes)
    numbers = [lane + lanes * (first + index) for index in range(count)]
    places = [Fraction(number * 0x9E3779B97F4A7C15 % 2**64, 2**64) for number in numbers]
    ends = np.cumsum(weights) / sum(weights)
    exact = [sum(place >= end for end in ends[:-1]) for place in places]
    assert mixed.sources(lane + lanes * first, count).tolist() == exact


@given(weights, st.integers(0, 10**6))
def test_shares_are_met_closely_at_every_length_from_anywhere(weights: list[float], first: int) -> None:
    number = 3000
    one_lane = plan(tuple(weights), 1)
    found = one_lane.sources(first, number)
    lengths = np.arange(1, number + 1)
    for source, weight in enumerate(weights):
        excess = (found == source).cumsum() - weight / sum(weights) * lengths
        # Multiples of the golden ratio: the discrepancy of N of them is below 3 + 3.53 ln N (Kuipers and Niederreiter,
        # theorem 2.3.4), and far below it in fact; random draws would be off by more than 27 in most cases.
        assert abs(excess).max() <= 4
