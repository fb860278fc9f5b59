"""Batches for one rank, made here or by worker processes, and the state from which any number of ranks goes on."""

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mhc_train.data.lanes import DIGEST_BYTES, Plan, Sequences, Share, State, in_order, joined, rounds, share
from mhc_train.data.order import SKIPPED, START
from mhc_train.errors import ConfigError, DataError, MhcTrainError

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
        _check_dealing(plan.lanes, size, world, workers)
        check_state(state, identity, plan.lanes)
        self.identity, self.size, self.world, self.workers = identity, size // world, world, max(1, workers)
        self.following: int = state["following"] if state else 0
        mine = share(plan.lanes, self.following, rank, world)
        self.places = _Places(mine.lanes, len(plan.readers), state)
        self.rounds = max(-(-self.size // len(mine.lanes)), -(-LEAST_TOKENS // plan.seq_len))
        self.waiting = Sequences(*np.empty((4, 0)))
        self._items: Iterator[Any] = iter(_loader(_Rounds(plan, mine, state, self.rounds), workers))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch, (size / world, seq_len + 1).

        Raises:
            DataError: the text cannot be read on.
        """
        while len(self.waiting.tokens) < self.size:
            self.waiting = joined([self.waiting, self._item()]) if len(self.waiting.tokens) else self._item()
        batch, self.waiting = self.waiting.part(None, self.size), self.waiting.part(self.size, None)
        self.places.advance(batch)
        self.following += self.size * self.world
        return torch.from_numpy(batch.tokens.astype(np.int64))

    def state(self) -> State:
        """A small JSON document from which the batches after the last one can be had: of this rank's lanes alone."""
        head = {"version": STATE_VERSION, "identity": self.identity, "following": self.following}
        return head | {"lanes": self.places.document()}

    def close(self) -> None:
        """End the workers."""
        self._items = iter(())

    def _item(self) -> Sequences:
        """What every worker delivers next, as if one process had."""
        parts = []
        for _ in range(self.workers):
            try:
                part = next(self._items)
            except (RuntimeError, EOFError, ConnectionError) as error:  # the loader's words for a worker that is gone
                reason = " ".join(str(error).split()) or type(error).__name__
                raise DataError(f"a loader worker ended: {reason}. Type data.workers=0 to read without.") from error
            if isinstance(part, MhcTrainError):
                raise part
            parts.append(Sequences(*map(np.asarray, part)))
        return in_order(parts, self.rounds)


class _Places:
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
    """Documents that could not be read and were passed over so far."""
    return sum(row[SKIPPED] for lane in state["lanes"].values() for row in lane["positions"])


def merged(states: list[State]) -> State:
    """The state of all ranks, from each one's own.

    Raises:
        ValueError: they are not of the same step of the same data.
    """
    heads = [{key: value for key, value in state.items() if key != "lanes"} for state in states]
    if any(head != heads[0] for head in heads):
        raise ValueError(f"data states of different steps or data: {heads}")
    return heads[0] | {"lanes": {lane: place for state in states for lane, place in state["lanes"].items()}}


@dataclass(frozen=True)
class _Rounds(IterableDataset[Sequences | MhcTrainError]):
    """A worker's part of a rank's sequences."""

    plan: Plan
    mine: Share
    state: State | None
    count: int

    def __iter__(self) -> Iterator[Sequences | MhcTrainError]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            yield from rounds(self.plan, self.mine, self.state, self.count, number, workers)
        except MhcTrainError as error:  # handed over as it is: the loader would wrap it into a traceback
            yield error


def _loader(dataset: _Rounds, workers: int) -> DataLoader[Sequences | MhcTrainError]:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_settle if workers else None,
        # Spawned: a fork would copy the locks of whatever threads a network or tokenizer library has.
        multiprocessing_context="spawn" if workers else None,
        generator=torch.Generator(),  # the loader draws a seed; the training's random numbers are not for it
    )


def _settle(worker: int) -> None:
    """Leave stopping to the main process, and the other cores to the other workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _check_dealing(lanes: int, size: int, world: int, workers: int) -> None:
    problems = []
    if lanes % world:
        problems.append(f"data.lanes = {lanes}: must be a multiple of the number of processes, {world}.")
    if size % world:
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
    if state["identity"] != identity:
        raise DataError(
            "the text or its tokenizer is not what the run was reading: files were changed, added, removed or renamed. "
            "Put them back, or begin a new run."
        )
    if len(state["lanes"]) != lanes:
        raise DataError(f"the data position holds {len(state['lanes'])} lanes of {lanes}: merge those of all ranks.")
