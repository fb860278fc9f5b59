"""What mixers promise against what they did: every declared law on the tokens for which it was declared."""

import math
from typing import Any

import torch
from torch import Tensor

from mhc_train.diagnostics import maps
from mhc_train.diagnostics.observation import Crossing
from mhc_train.mixers import Guarantee, Law

SLACK = 1e-6
"""What float32 may add to any tolerance."""

ERRORS = {
    Law.MASS: maps.column_error,
    Law.TIME_SYMMETRY: maps.row_error,
    Law.POSITIVITY: lambda H: -maps.smallest_entry(H),
    Law.DISSIPATION: lambda H: maps.spectral_norm(maps.singular_values(H)) - 1,
    Law.ENERGY: lambda H: (maps.singular_values(H) - 1).abs().amax(-1),
}
"""How far a matrix is from each law; at most 0 where it holds exactly."""


def kept(guarantees: tuple[Guarantee, ...], crossing: Crossing, H: Tensor) -> list[dict[str, Any]]:
    """One entry a guarantee: the largest error over the tokens whose logits lie in its domain, and whether it holds.

    Args:
        guarantees: what the mixer declares.
        crossing: of one sublayer, for its logits; without any, every token counts.
        H: (tokens, n, n), float64.

    Returns:
        `{law, tolerance, logit_range, tokens, error, kept}`; a logit range of null means any logits, since JSON knows
        no infinity; without a token in the domain, error and kept are null.
    """
    spread = _logit_range(crossing, len(H))
    return [_entry(guarantee, ERRORS[guarantee.law](H)[~(spread > guarantee.logit_range)]) for guarantee in guarantees]


def _logit_range(crossing: Crossing, tokens: int) -> Tensor:
    if crossing.logits is None:
        return torch.zeros(tokens, device=crossing.res.device)
    return crossing.logits.amax(-1) - crossing.logits.amin(-1)


def _entry(guarantee: Guarantee, errors: Tensor) -> dict[str, Any]:
    bounded = math.isfinite(guarantee.logit_range)
    error = errors.max().item() if len(errors) else None
    return {
        "law": guarantee.law.value,
        "tolerance": guarantee.tolerance,
        "logit_range": guarantee.logit_range if bounded else None,
        "tokens": len(errors),
        "error": error if error is None or math.isfinite(error) else None,
        "kept": None if error is None else error <= guarantee.tolerance + SLACK,
    }
