"""Joins the processes that a launcher started, and lays a model out over them: whole on each, or in shards."""

import contextlib
import datetime
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mhc_train.errors import ConfigError
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, TrainConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

PATIENCE = datetime.timedelta(hours=2)
"""How long ranks wait for one that reads, compiles or evaluates longer than they do."""
SHARDED = ("fsdp", "hsdp")
CPU = torch.device("cpu")
# No buffer of a model differs between ranks. The option was renamed in torch 2.13.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_UNSYNCHRONISED: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this training, as the environment that torchrun (or one like it) sets has them; alone without it.

    Raises:
        ConfigError: only a part of that environment is set.
    """
    if "RANK" not in os.environ:
        yield Ranks()
        return
    if missing := [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"RANK is set in the environment, but not {', '.join(missing)}. Start the processes with torchrun, or "
            "unset RANK to train in this one alone."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    ranks = all_ranks()
    # The first rank serves the meeting: refused and gone at once, it would leave those that are still joining.
    ranks.gather(None)
    yield ranks
    # Only after an orderly end: this waits for what other ranks are in the middle of.
    dist.destroy_process_group()


def check_parallel(config: TrainConfig, ranks: Ranks, device: torch.device) -> None:
    """Refuse a layout that does not go with how many processes there are, or with the device.

    Raises:
        ConfigError: it says what to type.
    """
    parallel = config.parallel
    if ranks.world > 1 and device.type == "mps":
        raise ConfigError("Apple's GPUs cannot train together. Type train.device=cpu, or start a single process.")
    if parallel == "hsdp":
        groups(config.shard_size, ranks.world)
    if parallel == "none" and ranks.world > 1:
        raise ConfigError(f"train.parallel = none, but {ranks.world} processes were started. Type train.parallel=ddp.")
    if parallel not in ("auto", "none") and ranks.group is None:
        raise ConfigError(
            f"train.parallel = {parallel}: needs processes that work together. Type `torchrun --nproc-per-node=N -m "
            "mhc_train fit ...`, or train.parallel=none."
        )


def all_ranks() -> Ranks:
    """All ranks, with a new group of their own to agree in, so that threads may agree at the same time."""
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))


def local_rank() -> int:
    """This process' number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@dataclass
class Parallel:
    """A model as this rank holds it, and what its gradients need."""

    kind: str
    """none | ddp | fsdp | hsdp."""
    ranks: Ranks
    model: Transformer
    """Its parameters are distributed tensors if it is sharded."""
    wrapped: Any
    """What exchanges the gradients: the model itself, or the wrapper of torch."""
    forward: Callable[..., Any]
    """What a step calls: `wrapped`, or its compiled form."""

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of every parameter."""
        return self.kind in SHARDED

    def saving_ranks(self) -> Ranks:
        """Those that write a checkpoint together: all of a sharded model; else each for itself. All ranks call it."""
        return all_ranks() if self.sharded else Ranks()

    def synchronising(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the forward and backward pass of a micro-batch: copies exchange their gradients at a step's last one.

        Those who share a model's shards do so at each, since whole gradients would need the memory that sharding saves.
        """
        if self.kind == "hsdp":
            self.wrapped.set_requires_all_reduce(last)
        if self.kind == "ddp" and not last:
            context: contextlib.AbstractContextManager[Any] = self.wrapped.no_sync()
            return context
        return contextlib.nullcontext()

    def summed(self, value: Tensor) -> Tensor:
        """The sum of all ranks' values, on the device."""
        if self.ranks.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value


def lay_out(model: Transformer, config: Config, ranks: Ranks, device: torch.device = CPU) -> Parallel:
    """Lay a model out over the ranks and their devices, and compile it if asked to."""
    kind = config.train.parallel
    if kind == "auto":
        kind = "ddp" if ranks.world > 1 else "none"
    wrapped: nn.Module = model
    if kind not in SHARDED and device != CPU:
        model.to(device)
    if kind == "ddp":
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **_UNSYNCHRONISED)
    elif kind in SHARDED:
        shard(model, mesh(kind, config.train.shard_size, ranks.world, device.type))
    forward = torch.compile(wrapped) if config.train.compile else wrapped
    return Parallel(kind, ranks, model, wrapped, forward)


def mesh(kind: str, shard_size: int, world: int, device: str) -> "DeviceMesh":
    """All processes in one row; for hsdp, rows of those that share one model's shards."""
    from torch.distributed.device_mesh import init_device_mesh

    if kind == "fsdp":
        return init_device_mesh(device, (world,))
    return init_device_mesh(device, groups(shard_size, world), mesh_dim_names=("replicate", "shard"))


def groups(shard_size: int, world: int) -> tuple[int, int]:
    """How many groups share a model's shards, and how many processes each has.

    Raises:
        ConfigError: they would not be equally large.
    """
    size = shard_size or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % size:
        raise ConfigError(f"train.shard_size = {size}: must divide the {world} processes.")
    return world // size, size


def shard(model: Transformer, devices: "DeviceMesh") -> None:
    """Shard every attention and feed-forward by itself; the rest, which is used all the time, together.

    Each goes to the device as it is sharded: no device ever holds the whole model.
    """
    from torch.distributed.fsdp import fully_shard

    for part in [*model.attention, *model.feedforward]:
        fully_shard(part, mesh=devices)
    fully_shard(model, mesh=devices)


def whole(tensor: Any) -> Tensor:
    """A distributed tensor as a plain one, which all ranks must ask for together."""
    result: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return result
