"""Measurements of stream mixers: pure functions of matrices (..., n, n), row receives and column sends.

One number a matrix; statistics over tokens are taken elsewhere. Definitions and tolerances: docs/measurements.md.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Matrices = Float[Tensor, "*tokens n n"]
Numbers = Float[Tensor, "*tokens"]


def forward_gain(H: Matrices) -> Numbers:
    """Forward Amax gain: the largest absolute row sum, `max_i |sum_j H_ij|` (arXiv 2512.24880, section 3.1)."""
    return H.sum(-1).abs().amax(-1)


def backward_gain(H: Matrices) -> Numbers:
    """Backward Amax gain: the largest absolute column sum, `max_j |sum_i H_ij|`."""
    return H.sum(-2).abs().amax(-1)


def row_error(H: Matrices) -> Numbers:
    """`max_i |sum_j H_ij - 1|`: zero where gradients keep their total (time symmetry)."""
    return (H.sum(-1) - 1).abs().amax(-1)


def column_error(H: Matrices) -> Numbers:
    """`max_j |sum_i H_ij - 1|`: zero where the streams keep their total (mass)."""
    return (H.sum(-2) - 1).abs().amax(-1)


def log_mass(H: Matrices) -> Numbers:
    """`max_j |log |sum_i H_ij||`: sees leaks, which the one-sided gains do not; infinite where a column sums to 0."""
    return H.sum(-2).abs().log().abs().amax(-1)


def smallest_entry(H: Matrices) -> Numbers:
    """`min_ij H_ij`: negative where flow runs backwards (positivity)."""
    return H.flatten(-2).amin(-1)


def spectral_norm(H: Matrices) -> Numbers:
    """The largest singular value: at most 1 where energy out is at most energy in (dissipation)."""
    return _singular_values(H)[..., 0]


def smallest_singular_value(H: Matrices) -> Numbers:
    """The smallest singular value: 0 where some direction of the streams is deleted."""
    return _singular_values(H)[..., -1]


def effective_rank(H: Matrices) -> Numbers:
    """exp of the entropy of the singular values' shares: n for an orthogonal map, 1 for the uniform one."""
    singular_values = _singular_values(H)
    shares = singular_values / singular_values.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).exp()


def entropy(H: Matrices) -> Numbers:
    """Mean over rows of the normalised entropy of |H|: 0 for a permutation, 1 for the uniform map; 0 for n = 1."""
    n = H.shape[-1]
    shares = H.abs() / H.abs().sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).mean(-1) / (math.log(n) if n > 1 else 1.0)


def difference_gain(H: Matrices) -> Numbers:
    """Largest gain of differences between streams: `sigma_max(P H P)`, P = I - J/n; NaN for n = 1.

    Below 1 differences shrink; at 0 the streams are identical, whatever they were before (collapse).
    """
    n = H.shape[-1]
    if n == 1:
        return torch.full_like(H[..., 0, 0], math.nan)
    P = torch.eye(n, dtype=H.dtype, device=H.device) - 1 / n
    return _singular_values(P @ H @ P)[..., 0]


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    measure.__name__: measure
    for measure in (
        forward_gain,
        backward_gain,
        row_error,
        column_error,
        log_mass,
        smallest_entry,
        spectral_norm,
        smallest_singular_value,
        effective_rank,
        entropy,
        difference_gain,
    )
}
"""Every measurement of a matrix by its name in reports and in `--fail-on`."""


def forward_composites(maps: list[Tensor]) -> list[Tensor]:
    """`H_l ... H_2 H_1` for every l: what has become of the embedding's streams after sublayer l."""
    composites = [maps[0]]
    for H in maps[1:]:
        composites.append(H @ composites[-1])
    return composites


def backward_composites(maps: list[Tensor]) -> list[Tensor]:
    """`H_L ... H_l` for every l: how a gradient at the end reaches the streams before sublayer l (transposed)."""
    composites = [maps[-1]]
    for H in reversed(maps[:-1]):
        composites.append(composites[-1] @ H)
    return composites[::-1]


def _singular_values(H: Matrices) -> Float[Tensor, "*tokens n"]:
    # A map with a non-finite entry has no singular values; the library would raise instead of saying so.
    finite = H.isfinite().flatten(-2).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], H, torch.zeros_like(H)))
    return torch.where(finite[..., None], values, torch.full_like(values, math.nan))
