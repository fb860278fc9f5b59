"""One optimizer step: gradients of a global batch, accumulated, checked, clipped, applied."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhc_train.errors import NumericsError
from mhc_train.training.device import Device

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """What a step reports: its loss in nats a token, and the gradient norm before clipping."""

    loss: float
    grad_norm: float


def take_step(
    forward: Logits,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Int[Tensor, "batch seq_plus_1"],
    micro_batch: int,
    device: Device,
    grad_clip: float,
) -> StepResult:
    """Update the model on one global batch.

    Raises:
        NumericsError: the loss or the gradient is not finite; nothing has been updated then.
    """
    loss = accumulate_gradients(forward, batch, micro_batch, device)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    result = StepResult(loss.item(), norm.item())
    if not torch.isfinite(loss + norm):
        raise NumericsError(
            f"loss {result.loss}, gradient norm {result.grad_norm}: not finite. The weights of the last good step are "
            "unchanged. Try a lower optim.lr, more optim.warmup_steps, or optim.grad_clip=1."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


def accumulate_gradients(
    forward: Logits, batch: Int[Tensor, "batch seq_plus_1"], micro_batch: int, device: Device
) -> Float[Tensor, ""]:
    """Backpropagate the mean loss over all tokens of `batch`, `micro_batch` sequences at a time."""
    total = torch.zeros((), device=device.device)
    tokens = batch[:, 1:].numel()
    for part in batch.split(micro_batch):
        loss = token_losses(forward, part.to(device.device, non_blocking=True), device).sum() / tokens
        loss.backward()
        total += loss.detach()
    return total


def token_losses(forward: Logits, blocks: Int[Tensor, "batch seq_plus_1"], device: Device) -> Float[Tensor, " tokens"]:
    """Cross-entropy of every next token, in nats, float32."""
    with device.autocast():
        logits = forward(blocks[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten(), reduction="none")


@torch.no_grad()
def validation_loss(
    forward: Logits, blocks: Int[Tensor, "blocks seq_plus_1"], micro_batch: int, device: Device
) -> float:
    """Mean loss over the fixed validation set, nats a token, summed in float64."""
    losses = [
        token_losses(forward, part.to(device.device), device).double().sum() for part in blocks.split(micro_batch)
    ]
    return float(torch.stack(losses).sum()) / blocks[:, 1:].numel()
