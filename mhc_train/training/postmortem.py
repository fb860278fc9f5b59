"""What is kept of a batch that gave a loss or gradient which is not finite: which it was, and where it went wrong."""

import hashlib
import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.connections import State
from mhc_train.data.tokenizer import LoadedTokenizer
from mhc_train.training.device import Device
from mhc_train.training.distributed import Parallel, whole
from mhc_train.training.results import Outcome
from mhc_train.training.step import token_losses

SCHEMA_VERSION = 1
SHOWN = 64
"""Tokens of every sequence that are shown as text."""


def postmortem(parallel: Parallel, outcome: Outcome, tokenizer: LoadedTokenizer, device: Device) -> dict[str, Any]:
    """Run the batch once more through the weights before it. All ranks call it together.

    Returns:
        A JSON document: every sequence of the global batch with its number in the order of the training, hash, loss
        and first words; every sublayer's ledger, and the parameters whose gradient is not finite, by rank. Null where
        a number is not finite. If all are finite, the failure was not of this batch and these weights alone.
    """
    parallel.model.zero_grad(set_to_none=True)
    ledger = Ledger(list(parallel.model.sublayer_names()))
    inputs = outcome.batch.to(device.device)
    with torch.no_grad(), device.autocast():
        parallel.model(inputs[:, :-1], observe=ledger.record)
    losses = token_losses(parallel.model, inputs, device).view(len(inputs), -1)
    losses.mean().backward()
    broken = [name for name, parameter in parallel.model.named_parameters() if _is_broken(parameter)]
    parallel.model.zero_grad(set_to_none=True)
    ranks, size = parallel.ranks, len(inputs) * parallel.ranks.world
    sequences = [
        # Ranks take the sequences of a batch in turns.
        {"number": (outcome.step - 1) * size + row * ranks.world + ranks.rank} | facts
        for row, facts in enumerate(_sequences(outcome.batch, losses.mean(1).tolist(), tokenizer))
    ]
    own = {"rank": ranks.rank, "sequences": sequences, "ledger": ledger.rows, "gradients_not_finite": broken}
    return {
        "schema_version": SCHEMA_VERSION,
        "step": outcome.step,
        "loss": finite(outcome.loss),
        "grad_norm": finite(outcome.grad_norm),
        "ranks": ranks.gather(own),
    }


def _is_broken(parameter: Tensor) -> bool:
    return parameter.grad is not None and not bool(whole(parameter.grad).isfinite().all())


def _sequences(
    batch: Int[Tensor, "batch seq_plus_1"], losses: list[float], tokenizer: LoadedTokenizer
) -> list[dict[str, Any]]:
    return [
        {
            "sha256": hashlib.sha256(row.cpu().numpy().tobytes()).hexdigest(),
            "loss": finite(loss),
            "text": tokenizer.decode(row[:SHOWN].tolist()),
        }
        for row, loss in zip(batch, losses, strict=True)
    ]


class Ledger:
    """An observer of a forward pass: how large streams, maps and outputs are at every sublayer."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.rows: list[dict[str, Any]] = []

    def record(self, index: int, state: State, output: Tensor) -> None:
        """What the model calls."""
        row: dict[str, Any] = {"name": [*self.names, "read_out"][index]}
        row |= {"energy": _energy(state.streams), "largest": _largest(state.streams)}
        row |= {"output_energy": _energy(output), "output_largest": _largest(output)}
        if state.maps is not None:
            row |= {f"largest_{name}": _largest(part) for name, part in state.maps._asdict().items()}
        self.rows.append(row)


def _energy(tensor: Tensor) -> float | None:
    """The mean over tokens of the sum of squares."""
    return finite(tensor.double().square().sum().item() / tensor.shape[0] / tensor.shape[1])


def _largest(tensor: Tensor) -> float | None:
    return finite(tensor.abs().max().item())


def finite(number: float) -> float | None:
    """The number, if JSON has it."""
    return number if math.isfinite(number) else None
