"""Batches for one rank, made here or by worker processes, and the state from which any number of ranks goes on."""

import hashlib
from collections.abc import Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mhc_train.data.lanes import DIGEST_BYTES, Plan, Sequences, State, in_order, joined, rounds, share
from mhc_train.data.order import SKIPPED, START
from mhc_train.data.workers import Workers
from mhc_train.errors import ConfigError, DataError

STATE_VERSION = 2
LEAST_TOKENS = 4096
"""Tokens of each lane that are made at once, at least: more take longer to begin and less to go on."""
Batch = Int64[Tensor, "batch seq_plus_1"]


class Batches:
    """A rank's batches, without end. Close it to end its workers.

    Args:
        plan: which sequences there are.
        identity: what the sources hold; a state of others is refused.
        size: sequences a batch, of all ranks together.
        state: where to go on; None begins.
        rank: this process' number among `world`.
        world: processes that share each batch.
        workers: processes that read and tokenise; 0 does it in this one.

    Raises:
        ConfigError: the numbers do not divide one another.
        DataError: the state is of other sources, or of another number of lanes.
    """

    def __init__(
        self,
        plan: Plan,
        identity: str,
        size: int,
        state: State | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        assert 0 <= rank < world
        check_dealing(plan.lanes, size, world, workers)
        check_state(state, identity, plan.lanes)
        self.identity, self.of, self.size, self.world = identity, plan.lanes, size // world, world
        self.following: int = state["following"] if state else 0
        lanes = share(plan.lanes, self.following, rank, world)
        self.places = LanePlaces(lanes.lanes, len(plan.readers), state)
        self.rounds = max(-(-self.size // len(lanes.lanes)), -(-LEAST_TOKENS // plan.seq_len))
        self.waiting = Sequences(*np.empty((4, 0)))
        make = partial(rounds, plan, lanes, state, self.rounds)
        self.workers = Workers(make, workers) if workers else None
        self.here = make(0, 1)  # read from only without workers
        self.failure: DataError | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, (size / world, seq_len + 1).

        Raises:
            DataError: the text cannot be read on.
        """
        self.wait()
        batch, self.waiting = self.waiting.part(None, self.size), self.waiting.part(self.size, None)
        self.places.advance(batch)
        self.following += self.size * self.world
        return torch.from_numpy(batch.tokens.astype(np.int64))

    def wait(self) -> None:
        """Read until the next batch is there. The state does not change, even if this is interrupted.

        Raises:
            DataError: the text cannot be read on.
        """
        if self.failure:
            raise self.failure
        try:
            while len(self.waiting.tokens) < self.size:
                more = in_order(self.workers.take() if self.workers else [next(self.here)], self.rounds)
                self.waiting = joined([self.waiting, more]) if len(self.waiting.tokens) else more
        except DataError as error:
            self.failure = error
            raise

    def state(self) -> State:
        """A small JSON document from which the batches after the last one can be had: of this rank's lanes alone."""
        head = {"version": STATE_VERSION, "identity": self.identity, "of": self.of, "following": self.following}
        return head | {"lanes": self.places.document()}

    def close(self) -> None:
        """End the workers."""
        if self.workers:
            self.workers.close()
        self.here = iter(())


class LanePlaces:
    """Where each lane of a rank stands in every source, and the running hash of its tokens."""

    def __init__(self, lanes: list[int], sources: int, state: State | None) -> None:
        self.lanes, self.delivered = lanes, 0
        self.positions = np.tile(np.array(START, np.int64), (len(lanes), sources, 1))
        self.digests = np.zeros((len(lanes), DIGEST_BYTES), np.uint8)
        if state:
            known = [state["lanes"][str(lane)] for lane in lanes]
            self.positions[:] = [place["positions"] for place in known]
            self.digests[:] = [list(bytes.fromhex(place["digest"])) for place in known]

    def advance(self, batch: Sequences) -> None:
        """Count what was delivered; the lanes take turns."""
        lanes = (self.delivered + np.arange(len(batch.tokens))) % len(self.lanes)
        # Of a lane's several sequences the last one counts, which is the one that is assigned last.
        self.positions[lanes, batch.sources] = batch.positions
        self.digests[lanes] = batch.digests
        self.delivered += len(batch.tokens)

    def document(self) -> dict[str, Any]:
        """What a state says of each lane, in the order of their numbers."""
        known = zip(self.lanes, self.positions, self.digests, strict=True)
        return {
            str(lane): {"positions": positions.tolist(), "digest": digest.tobytes().hex()}
            for lane, positions, digest in sorted(known, key=itemgetter(0))
        }


def order_fingerprint(state: State) -> str:
    """Hash of every token delivered so far, lane by lane; it does not depend on ranks, workers or resumes."""
    digest = hashlib.sha256(str(state["following"]).encode())
    for lane in sorted(state["lanes"], key=int):
        digest.update(bytes.fromhex(state["lanes"][lane]["digest"]))
    return digest.hexdigest()


def skipped_documents(state: State) -> int:
    """How often an unreadable document, or what a broken file lacks, was passed over so far."""
    return sum(row[SKIPPED] for lane in state["lanes"].values() for row in lane["positions"])


def merged(states: list[State]) -> State:
    """The state of all ranks, from each one's own.

    Raises:
        ValueError: they are not of the same step of the same data, or not each lane is there once.
    """
    heads = [{key: value for key, value in state.items() if key != "lanes"} for state in states]
    lanes = [(lane, place) for state in states for lane, place in state["lanes"].items()]
    if any(head != heads[0] for head in heads):
        raise ValueError(f"data states of different steps or data: {heads}")
    if sorted(int(lane) for lane, _ in lanes) != list(range(heads[0]["of"])):
        raise ValueError(
            f"data states must hold each of {heads[0]['of']} lanes once, not {[lane for lane, _ in lanes]}"
        )
    return heads[0] | {"lanes": dict(lanes)}


def check_dealing(lanes: int, size: int, world: int, workers: int) -> None:
    """Refuse numbers of lanes, sequences a batch, processes and workers that do not divide one another.

    Raises:
        ConfigError: with all that is wrong.
    """
    problems = []
    if lanes % world:
        problems.append(f"data.lanes = {lanes}: must be a multiple of the number of processes, {world}.")
    if size % world or size < world:
        problems.append(
            f"a batch of {size} sequences cannot be shared by {world} processes; change train.batch_tokens."
        )
    if workers and lanes // world % workers:
        problems.append(f"data.workers = {workers}: must divide the {lanes // world} lanes of a process.")
    if problems:
        raise ConfigError(problems)


def check_state(state: State | None, identity: str, lanes: int) -> None:
    """Refuse a state of other sources or another number of lanes.

    Raises:
        DataError: as said.
    """
    if state is None:
        return
    if state.get("version") != STATE_VERSION:
        raise DataError("the checkpoint's data position was written by another version of mhc-train: begin a new run.")
    if len(state["lanes"]) != lanes:
        raise DataError(
            f"the data position holds {len(state['lanes'])} lanes of {lanes}: it needs data.lanes={state['of']}, and "
            "the states of all ranks merged."
        )
    if state["identity"] != identity:
        raise DataError(
            "the text or its tokenizer is not what the run was reading: files were changed, added, removed or renamed. "
            "Put them back, or begin a new run."
        )
