"""What mixers promise against what they did: every declared law on the tokens for which it was declared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc_train.files import finite
from mhc_train.mixers import Guarantee, Law

Numbers = dict[str, Tensor]

SLACK = 1e-6
"""What float32 may add to any tolerance."""

ERRORS: dict[Law, Callable[[Numbers], Tensor]] = {
    Law.MASS: lambda numbers: numbers["column_error"],
    Law.TIME_SYMMETRY: lambda numbers: numbers["row_error"],
    Law.POSITIVITY: lambda numbers: -numbers["smallest_entry"],
    Law.DISSIPATION: lambda numbers: numbers["spectral_norm"] - 1,
    Law.ENERGY: lambda numbers: torch.maximum(
        (numbers["spectral_norm"] - 1).abs(), (numbers["smallest_singular_value"] - 1).abs()
    ),
}
"""How far a map is from each law, by its measurements; at most 0 where it holds exactly."""


def kept(guarantees: tuple[Guarantee, ...], numbers: Numbers) -> list[dict[str, Any]]:
    """One entry a guarantee: the largest error over the tokens whose logits lie in its domain, and whether it holds.

    Args:
        guarantees: what the mixer declares.
        numbers: of one sublayer's H_res, a number a token, with its `logit_range`; without that, every token counts.

    Returns:
        `{law, tolerance, logit_range, tokens, error, kept}`; a logit range of null means any logits, since JSON knows
        no infinity; without a token in the domain, error and kept are null.
    """
    spread = numbers.get("logit_range", torch.zeros_like(numbers["row_error"]))
    return [
        _entry(guarantee, ERRORS[guarantee.law](numbers)[~(spread > guarantee.logit_range)]) for guarantee in guarantees
    ]


def _entry(guarantee: Guarantee, errors: Tensor) -> dict[str, Any]:
    error = errors.max().item() if len(errors) else None
    return {
        "law": guarantee.law.value,
        "tolerance": guarantee.tolerance,
        "logit_range": finite(guarantee.logit_range),
        "tokens": len(errors),
        "error": None if error is None else finite(error),
        "kept": None if error is None else error <= guarantee.tolerance + SLACK,
    }
