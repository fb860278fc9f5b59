"""What is kept of a batch that gave a loss or gradient which is not finite: which it was, and where it went wrong."""

import hashlib
import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.connections import State
from mhc_train.data.tokenizer import LoadedTokenizer
from mhc_train.files import finite
from mhc_train.training.device import Device
from mhc_train.training.distributed import Parallel, whole
from mhc_train.training.results import Outcome
from mhc_train.training.step import token_losses

SCHEMA_VERSION = 1
SHOWN = 64
"""Tokens of every sequence that are shown as text."""


def postmortem(
    parallel: Parallel,
    outcome: Outcome,
    weights_after_step: int,
    micro_batch: int,
    tokenizer: LoadedTokenizer,
    device: Device,
) -> dict[str, Any]:
    """Run the batch once more through the weights of now. All ranks call it together.

    Args:
        parallel: the model; its gradients are lost.
        outcome: of the step.
        weights_after_step: which weights those are, for the document.
        micro_batch: sequences at once.
        tokenizer: for the first words.
        device: where.

    Returns:
        A JSON document: every sequence of the global batch with its number in the order of the training, hash, loss
        and first words; every sublayer's ledger, and the parameters whose gradient is not finite, by rank. Null where
        a number is not finite.
    """  # fmt: skip
    found = _second_pass(parallel, outcome.batch, micro_batch, device)
    ranks, size = parallel.ranks, len(outcome.batch) * parallel.ranks.world
    sequences = [
        # Ranks take the sequences of a batch in turns.
        {"number": (outcome.step - 1) * size + row * ranks.world + ranks.rank} | facts
        for row, facts in enumerate(_sequences(outcome.batch, found.pop("losses"), tokenizer))
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "step": outcome.step,
        "loss": finite(outcome.loss),
        "grad_norm": finite(outcome.grad_norm),
        "weights_after_step": weights_after_step,
        "ranks": ranks.gather({"rank": ranks.rank, "sequences": sequences} | found),
    }


def _second_pass(parallel: Parallel, batch: Tensor, micro_batch: int, device: Device) -> dict[str, Any]:
    """Losses, ledger and gradients; what stands in the way of that is in the document, and hides nothing else."""
    model, losses = parallel.model, list[float]()
    ledger = Ledger(list(model.sublayer_names()))
    broken: list[str] | None = None
    problem = None
    model.zero_grad(set_to_none=True)
    try:
        for part in map(device.put, batch.split(micro_batch)):
            with torch.no_grad(), device.autocast():
                model(part[:, :-1], observe=ledger.record)
            means = token_losses(model, part, device).view(len(part), -1).mean(1)
            (means.sum() / len(batch)).backward()
            losses += means.tolist()
        broken = [name for name, parameter in model.named_parameters() if _is_broken(parameter)]
    except RuntimeError as error:  # such as too little memory
        problem = str(error)
    model.zero_grad(set_to_none=True)
    losses += [math.nan] * (len(batch) - len(losses))
    return {"losses": losses, "ledger": ledger.document(), "gradients_not_finite": broken, "problem": problem}


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
    """An observer of forward passes: how large streams, maps and outputs are at every sublayer."""

    def __init__(self, names: list[str]) -> None:
        self.names = [*names, "read_out"]
        self.seen: list[list[dict[str, float]]] = [[] for _ in self.names]

    def record(self, index: int, state: State, x: Tensor, output: Tensor) -> None:
        """What the model calls."""
        row = {"energy": _energy(state.streams), "largest": _largest(state.streams)}
        row |= {"output_energy": _energy(output), "output_largest": _largest(output)}
        if state.maps is not None:
            row |= {f"largest_{name}": _largest(part) for name, part in state.maps._asdict().items()}
        self.seen[index].append(row)

    def document(self) -> list[dict[str, Any]]:
        """A row a sublayer: energies, means over the passes; and the largest entries of any."""
        return [{"name": name} | _merged(rows) for name, rows in zip(self.names, self.seen, strict=True)]


def _merged(rows: list[dict[str, float]]) -> dict[str, float | None]:
    merged: dict[str, float | None] = {}
    for key in rows[0] if rows else ():
        values = torch.tensor([row[key] for row in rows])  # whose maximum, unlike Python's, keeps what is no number
        merged[key] = finite((values.mean() if key.endswith("energy") else values.max()).item())
    return merged


def _energy(tensor: Tensor) -> float:
    """The mean over tokens of the sum of squares."""
    return tensor.float().square().sum().item() / tensor.shape[0] / tensor.shape[1]


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item()
