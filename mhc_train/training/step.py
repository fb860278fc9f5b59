"""One optimizer step: gradients of a global batch, accumulated, summed over ranks, checked, clipped, applied."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhc_train.diagnostics.watch import Watch
from mhc_train.training.device import Device
from mhc_train.training.distributed import Parallel, whole

Logits = Callable[[Tensor], Tensor]


class StepResult(NamedTuple):
    """What a step reports, on the device: reading any of it waits for the device to get there."""

    loss: Float[Tensor, ""]
    """Mean over all tokens of all ranks, nats a token."""
    grad_norm: Float[Tensor, ""]
    """Before clipping."""
    refused: Float[Tensor, ""]
    """1 if the weights stay as they are, since something of this step, or of one that was held on to, is not finite."""


class Guard:
    """Refuses updates on the device, before they are made.

    Args:
        hold: whether all that follow one that is refused are too, so that the last good weights stay.
    """

    def __init__(self, hold: bool) -> None:
        self.hold = hold
        self.held: Tensor | None = None

    def refusal(self, loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """1 to refuse, 0 not to."""
        refused = (~torch.isfinite(loss + grad_norm)).float()
        if self.hold:
            self.held = refused = refused if self.held is None else torch.maximum(self.held, refused)
        return refused


def take_step(
    parallel: Parallel,
    optimizer: torch.optim.AdamW,
    guard: Guard,
    batch: Int[Tensor, "batch seq_plus_1"],
    micro_batch: int,
    device: Device,
    grad_clip: float,
    watch: Watch | None = None,
) -> StepResult:
    """Update the model on one global batch, of which `batch` is this rank's share, unless the guard refuses.

    All ranks see the same loss and norm, and so refuse alike. A `watch` looks through the first micro-batch.
    """
    loss = accumulate_gradients(parallel, batch, micro_batch, device, watch)
    return update(parallel, optimizer, guard, loss, device, grad_clip)


def update(
    parallel: Parallel,
    optimizer: torch.optim.AdamW,
    guard: Guard,
    loss: Float[Tensor, ""],
    device: Device,
    grad_clip: float,
) -> StepResult:
    """Clip the gradients that there are, apply them unless the guard refuses, and forget them.

    Args:
        parallel: the model, its gradients those of a global batch.
        optimizer: of its parameters.
        guard: refuses by the loss and the gradients' norm.
        loss: that the gradients are of.
        device: where all of it is.
        grad_clip: the norm beyond which gradients are scaled down to it; 0: none.
    """
    norm = whole(torch.nn.utils.clip_grad_norm_(parallel.model.parameters(), grad_clip or float("inf")))
    # The fused optimizer leaves parameters, moments and step count alone where this is 1: the host need not know.
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = refused = guard.refusal(loss, norm)  # type: ignore[attr-defined]
    if device.device.type != "mps" or not refused:  # Apple's fused optimizer does not look at it, so the host does
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, norm, refused)


def accumulate_gradients(
    parallel: Parallel,
    batch: Int[Tensor, "batch seq_plus_1"],
    micro_batch: int,
    device: Device,
    watch: Watch | None = None,
) -> Float[Tensor, ""]:
    """Backpropagate the mean loss over all tokens of all ranks, `micro_batch` sequences at a time; returns it."""
    world = parallel.ranks.world
    total = torch.zeros((), device=device.device)
    tokens = batch[:, 1:].numel() * world
    parts = batch.split(micro_batch)
    for number, part in enumerate(parts, 1):
        with parallel.synchronising(number == len(parts)):
            looking = watch if number == 1 else None
            forward = looking.through(parallel.forward) if looking else parallel.forward
            losses = token_losses(forward, device.put(part), device)
            if looking:
                looking.note(losses.view(len(part), -1))
            loss = losses.sum() / tokens
            (loss * world).backward()  # exchanged gradients are averages over the ranks
        total += loss.detach()
    return parallel.summed(total)


def token_losses(forward: Logits, blocks: Int[Tensor, "batch seq_plus_1"], device: Device) -> Float[Tensor, " tokens"]:
    """Cross-entropy of every next token, in nats, float32."""
    with device.autocast():
        logits = forward(blocks[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def validation_loss(
    parallel: Parallel,
    blocks: Int[Tensor, "blocks seq_plus_1"],
    micro_batch: int,
    device: Device,
    between: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss over the fixed validation set, nats a token; the ranks share it out, and sum in float64 if they can.

    Args:
        between: called before every micro-batch, by all ranks together; it may raise to end the evaluation.
    """
    exact = torch.float32 if device.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    total = torch.zeros((), dtype=exact, device=device.device)
    parts = blocks.split(micro_batch)
    rank, world = parallel.ranks.rank, parallel.ranks.world
    for first in range(0, len(parts), world):
        between()
        # Every rank takes part in every turn, which a sharded model needs; what is beyond the end does not count.
        number = first + rank
        losses = token_losses(parallel.forward, device.put(parts[min(number, len(parts) - 1)]), device)
        if number < len(parts):
            total += losses.sum(dtype=exact)
    return float(parallel.summed(total)) / blocks[:, 1:].numel()
