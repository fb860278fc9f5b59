"""Saves checkpoints while the training goes on: one at a time, from a copy of its tensors in memory."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mhc_train.checkpoints import Keep, Snapshot, write_checkpoint
from mhc_train.console import say
from mhc_train.errors import StorageError
from mhc_train.ranks import Ranks


class Saver:
    """Writes snapshots.

    Args:
        directory: of the run's checkpoints.
        keep: which of them stay.
        ranks: those that write together. A group that nobody else uses meanwhile, if in the background.
        background: whether `start` returns before the checkpoint is written.
        forgiving: whether one that cannot be written is only said to be so, unless it is the last.
    """

    def __init__(
        self, directory: Path, keep: Keep, ranks: Ranks, background: bool = True, forgiving: bool = False
    ) -> None:
        self.directory, self.keep, self.ranks = directory, keep, ranks
        self.background, self.forgiving = background, forgiving
        # A thread of its own begins on the first GPU, and torch's writer waits for whichever it is on.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self.failure: BaseException | None = None
        """Of the last checkpoint; None while it is being written."""
        self.lost = False
        """Whether the last checkpoint could not be written, and that was only said."""
        self.slowest = 0.0
        """Seconds that the slowest took."""
        self._thread: threading.Thread | None = None

    def start(self, snapshot: Snapshot, last: bool = False) -> None:
        """Begin to write; call `wait` before."""
        assert self._thread is None
        self.lost = False
        if not self.background:
            self._write(snapshot, last)
            return
        # A daemon, so that a second signal ends the process without waiting for it.
        self._thread = threading.Thread(target=self._write, args=(snapshot, last), name="saving", daemon=True)
        self._thread.start()

    def wait(self) -> BaseException | None:
        """Until the last checkpoint is written; returns why it could not be, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self.failure = self.failure, None
        return failure

    def _write(self, snapshot: Snapshot, last: bool) -> None:
        started = time.monotonic()
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        try:
            write_checkpoint(self.directory, snapshot, self.keep, self.ranks)
        except BaseException as error:  # of a thread of its own, whoever asks next must hear of it
            self.lost = self.forgiving and not last and isinstance(error, StorageError)
            if self.lost:
                say(f"{error} The training goes on, as train.on_save_error=continue asks.")
            elif not self.background and not isinstance(error, StorageError):
                raise
            else:
                self.failure = error
        self.slowest = max(self.slowest, time.monotonic() - started)


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the tensors hold now, on the CPU, sharded as they are."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def random_states(ranks: Ranks) -> dict[str, Tensor]:
    """The states of every rank's random generators, `rank0/cpu` and so on."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    everyones = ranks.gather(own)
    return {f"rank{rank}/{kind}": state for rank, states in enumerate(everyones) for kind, state in states.items()}


def restore_random_states(states: Mapping[str, Tensor], rank: int) -> bool:
    """Put this rank's generators back; false where they are not among `states`."""
    if f"rank{rank}/cpu" not in states:
        return False
    torch.set_rng_state(states[f"rank{rank}/cpu"])
    if torch.cuda.is_available() and f"rank{rank}/cuda" in states:
        torch.cuda.set_rng_state(states[f"rank{rank}/cuda"])
    return True
