"""AdamW, what it decays, and the learning rate's course."""

import math

import torch
from torch import Tensor, nn

from mhc_train.schema import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the backbone's matrices alone: none on norms, nor on anything of the path."""
    decayed: list[Tensor] = []
    undecayed: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (decayed if decays(name, parameter) else undecayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    # The fused one alone can be told on the device to leave everything as it is (see `take_step`).
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether a parameter takes weight decay."""
    return parameter.ndim >= 2 and not name.startswith("path.")


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of update number `step` (from 0) of `steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        # The mHC paper's: two drops at 80 % and 90 % of the whole run.
        return config.lr * (1.0 if step < 0.8 * steps else 0.316 if step < 0.9 * steps else 0.1)
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.schedule == "cosine" else 1 - progress
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * shape)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, `exp_avg/<parameter name>` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }


def fresh_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, steps: bool) -> dict[str, Tensor]:
    """The state of an optimizer that has taken steps, or none, all zero: what a checkpoint's tensors are read into.

    It is the optimizer's own state: filled in place, it is restored.
    """
    if steps:
        for parameter in model.parameters():
            step = torch.zeros((), device=parameter.device)
            moments = {kind: torch.zeros_like(parameter.detach()) for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": step} | moments
    return optimizer_tensors(optimizer, model)
