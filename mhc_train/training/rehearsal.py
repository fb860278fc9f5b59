"""A rehearsal: a training's own model, optimizer and steps on random tokens, to learn what they cost."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config
from mhc_train.training.device import Device, check_float64, choose_device
from mhc_train.training.distributed import Parallel, check_parallel, lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, accumulate_gradients, update, validation_loss


class Seconds(NamedTuple):
    """A time, or how long something took, by two clocks."""

    wall: float
    cpu: float
    """Of this process, on all cores."""


class Rehearsal:
    """Everything that takes a training's steps, in this process alone; the vocabulary has the configured size.

    Args:
        config: of the training.

    Raises:
        ConfigError: the device is not there, or cannot compute this.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = choose_device(config.train)
        self.parallel = _laid_out(config, self.device)
        self._optimizer = build_optimizer(self.parallel.model, config.optim)
        self._guard = Guard(hold=False)

    @property
    def micro_batches(self) -> int:
        """How many make a global batch."""
        return max(1, self.config.train.batch_tokens // (self.config.data.seq_len * self.config.train.micro_batch))

    def part(self, share: float) -> int:
        """How many micro-batches are at most that share of a global batch, or one."""
        return max(1, int(min(1.0, share) * self.micro_batches))

    def step(self, micro_batches: int) -> Callable[[], Seconds]:
        """What takes a step of the training on so many micro-batches, and tells how long a whole one would take.

        A whole one has more micro-batches, but no more than one update: gradients are told in proportion, the update as
        it is.
        """
        size, clip = self.config.train.micro_batch, self.config.optim.grad_clip
        batch, times = self._tokens(micro_batches * size), self.micro_batches / micro_batches

        def take() -> Seconds:
            started = self.now()
            loss = accumulate_gradients(self.parallel, batch, size, self.device)
            # As a training does not wait here, a whole step does not either.
            between = self.now() if times > 1 else started
            update(self.parallel, self._optimizer, self._guard, loss, self.device, clip)
            clocks = zip(started, between, self.now(), strict=True)
            return Seconds(*(times * (middle - start) + end - middle for start, middle, end in clocks))

        return take

    def validation(self) -> object:
        """The loss of one micro-batch."""
        size = self.config.train.micro_batch
        return validation_loss(self.parallel, self._tokens(size), size, self.device)

    def seconds(self, act: Callable[[], object]) -> float:
        """The seconds that something takes, to its end on the device."""
        started = self.now()
        act()
        return self.now().wall - started.wall

    def now(self) -> Seconds:
        """The time, once the device has done all that it was given."""
        _synchronise(self.device.device)
        return Seconds(time.perf_counter(), time.process_time())

    def _tokens(self, sequences: int) -> Tensor:
        return torch.randint(self.config.data.vocab_size, (sequences, self.config.data.seq_len + 1))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def _laid_out(config: Config, device: Device) -> Parallel:
    check_parallel(config.train, Ranks(), device.device)
    model = Transformer(config.model, config.connection, config.data.vocab_size, config.seed)
    check_float64(device, model.path.float64)
    model.adapt(config.train)
    return lay_out(model, config, Ranks(), device.device)
