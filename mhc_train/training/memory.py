"""How much memory a training step takes, found by taking one on tensors that have sizes but no content."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mhc_train.model import Transformer
from mhc_train.schema import Config
from mhc_train.training.device import Device
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import token_losses


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device, as its allocations count them; the framework itself comes on top."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    optimizer: int
    """AdamW's moments."""
    activations: int
    """What the forward pass of one micro-batch leaves for the backward pass."""
    transient: int
    """Most that exists beside weights, gradients and moments in forward and backward pass: kept and being worked on."""
    peak: int
    """Most that exists at once. Without accumulation it is less than the sum of weights, gradients, moments and
    transients: gradients come as activations go."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, from when they are made until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.transient = 0, 0, 0
        self.permanent = 0
        """Bytes of `live` that are not transient; for the user to set."""
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what is new."""
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        self.peak = max(self.peak, self.live)
        self.transient = max(self.transient, self.live - self.permanent)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.live -= size


def estimate_memory(config: Config, device: Device) -> Memory:
    """Take the second step of a training, of a single micro-batch, without allocating anything.

    The operators are the CPU's, which keep what a GPU's keep (attention never has its scores in memory); the precision
    is the device's own. AdamW is fused: it updates everything in place.
    """
    train, device = config.train, replace(device, device=torch.device("cpu"))
    with FakeTensorMode(), LiveBytes() as count:
        # Sinkhorn's rounds would take most of the time here, and have next to no memory.
        model = Transformer(config.model, replace(config.connection, iterations=1), config.data.vocab_size)
        model.adapt(train)
        weights = count.live
        optimizer = build_optimizer(model, config.optim)
        _fill_gradients(model)
        gradients = count.live - weights
        optimizer.step()
        moments = count.live - weights - gradients
        if train.batch_tokens == train.micro_batch * config.data.seq_len:
            optimizer.zero_grad()
        count.permanent = count.peak = count.live
        activations, transient = _backpropagate(model, config, device, count)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip or float("inf"))
        optimizer.step()
    return Memory(weights, gradients, moments, activations, transient, count.peak)


@dataclass(frozen=True)
class Shards:
    """Bytes on each of several devices that share weights, gradients and moments (FSDP2); computed from `Memory`."""

    devices: int
    states: int
    """A device's part of weights, gradients and moments."""
    gathered: int
    """What is whole for a while, float32: everything outside of the sublayers with its gradients; the weights of the
    sublayers at work, a whole segment where it runs again, and of one that is on its way; one sublayer's gradients."""
    transient: int
    """As on one device, since each works on micro-batches of its own."""

    @property
    def peak(self) -> int:
        """The sum, an upper bound: the three need not be largest at the same moment."""
        return self.states + self.gathered + self.transient


def shard(memory: Memory, model: Transformer, devices: int) -> Shards:
    """What is left for each device where every attention, every feed-forward and the rest are sharded over them all.

    Args:
        memory: of the same model.
        model: with `recompute` as it is to be trained.
        devices: how many.
    """
    sublayers = [_size(half) for layer in zip(model.attention, model.feedforward, strict=True) for half in layer]
    rest = _size(model) - sum(sublayers)
    at_once = (1 if model.recompute.streams_only else max(1, model.recompute.length)) + 1
    window = max(sum(sublayers[first : first + at_once]) for first in range(len(sublayers)))
    states = memory.weights + memory.gradients + memory.optimizer
    return Shards(devices, -(-states // devices), 2 * rest + window + max(sublayers), memory.transient)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _fill_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def _backpropagate(model: Transformer, config: Config, device: Device, count: LiveBytes) -> tuple[int, int]:
    """One micro-batch; returns the bytes that the forward pass leaves, and the most that exists at once."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.register_post_accumulate_grad_hook(lambda p: _add_permanent(count, p))
    before = count.live
    count.transient = 0
    blocks = torch.zeros(config.train.micro_batch, config.data.seq_len + 1, dtype=torch.long)
    loss = token_losses(model, blocks, device).sum()
    activations = count.live - before
    loss.backward()
    return activations, count.transient


def _add_permanent(count: LiveBytes, parameter: Tensor) -> None:
    assert parameter.grad is not None
    count.permanent += parameter.grad.untyped_storage().nbytes()
