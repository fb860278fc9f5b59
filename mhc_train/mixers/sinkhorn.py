"""Sinkhorn-Knopp: exp of the logits, then alternate normalisations of columns and rows (arXiv 2512.24880, Eq. 9)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhc_train import kernels
from mhc_train.mixers.exponential import ExponentialMixer
from mhc_train.mixers.interface import ROUNDING, Guarantee, Law

# The worst column error that a search finds after 20 rounds is 8.8e-4 at a logit range of 3, 9.3e-3 at 4 and 4.8e-2
# at 6. Random logits are far better, which is why a typical error says little about the largest.
CONVERGED_ROUNDS, CONVERGED_RANGE, CONVERGED_TOLERANCE = 20, 3.0, 1e-3
# An eps in the denominators makes every sum fall short of 1 by eps; in the first round, where a sum may be as small
# as n eps, by far more, which the later rounds repair.
SMALL_EPS, ROUNDS_AFTER_EPS = 1e-6, 3

ORDERS = {"columns_first": (0, 1), "rows_first": (1, 0)}
"""The axes of a (receiver, sender, tokens) tensor that each round sums over, in turn."""


class Sinkhorn(ExponentialMixer):
    """A fixed number of Sinkhorn rounds.

    The side normalised last is exact for any logits; the other converges, so its law and the energy bound, which
    needs both (sigma_max^2 <= largest row sum x largest column sum), are declared for 20 rounds and a bounded range.
    """

    name = "sinkhorn"

    def __init__(self, streams: int, iterations: int = 20, order: str = "columns_first", eps: float = 0.0) -> None:
        super().__init__(streams)
        self.iterations, self.order, self.eps = iterations, order, eps
        exact, inexact = (Law.TIME_SYMMETRY, Law.MASS) if order == "columns_first" else (Law.MASS, Law.TIME_SYMMETRY)
        self.guarantees: tuple[Guarantee, ...] = (Guarantee(Law.POSITIVITY, 0.0),)
        if eps == 0 or (eps <= SMALL_EPS and iterations >= ROUNDS_AFTER_EPS):
            self.guarantees += (Guarantee(exact, ROUNDING),)
        if eps <= SMALL_EPS and iterations >= CONVERGED_ROUNDS:
            self.guarantees += tuple(
                Guarantee(law, CONVERGED_TOLERANCE, CONVERGED_RANGE) for law in (inexact, Law.DISSIPATION)
            )

    def forward(self, logits: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens n n"]:
        """Project every token's logits."""
        return sinkhorn(self.matrices(logits), self.iterations, self.order, self.eps)

    def flops_per_token(self) -> int:
        """A sum and a division an entry, twice a round."""
        return 4 * self.streams**2 * self.iterations


def sinkhorn(
    logits: Float[Tensor, "*tokens n n"], iterations: int = 20, order: str = "columns_first", eps: float = 0.0
) -> Float[Tensor, "*tokens n n"]:
    """Alternate column and row normalisation of exp(logits); keeps nothing for the backward pass but the logits.

    Args:
        logits: any finite values, and -inf for entries that must be 0; a row or column that is -inf throughout has
            no doubly stochastic limit and gives NaN.
        iterations: rounds of one column and one row normalisation, at least 1.
        order: `columns_first` leaves the rows exact, `rows_first` the columns.
        eps: 0 is the paper's map; DeepSeek-V4 adds 1e-6 to the first softmax and to every denominator.

    Returns:
        Non-negative matrices; the side normalised last sums to 1 to rounding.

    Raises:
        ValueError: fewer iterations than 1.
    """
    if iterations < 1:
        raise ValueError(f"Sinkhorn's iterations must be 1 or more, not {iterations}")
    fused = kernels.sinkhorn(logits, iterations, order == "columns_first", eps)
    if fused is not None:
        return fused
    # Tokens last: sums over n entries then run over contiguous tokens, five times faster on a CPU.
    tokens_last = logits.movedim((-2, -1), (0, 1)).contiguous()
    projected: Tensor = _Rounds.apply(tokens_last, iterations, *ORDERS[order], eps)
    return projected.movedim((0, 1), (-2, -1))


def _project(logits: Tensor, iterations: int, first: int, second: int, eps: float) -> Tensor:
    matrix = _start(logits, first, second, eps)
    _normalise(matrix, _axes(iterations, first, second, eps), eps)
    return matrix


def _project_backward(gradient: Tensor, logits: Tensor, iterations: int, first: int, second: int, eps: float) -> Tensor:
    """The exact derivative of the truncated map: run the rounds again, then undo them in turn.

    The gradient is carried as W = M * dM: undoing M' = M / s takes W' to W' - M' sum(W') and M' to M' s, so that the
    sums are all that the recomputation has to remember.
    """
    axes = _axes(iterations, first, second, eps)
    matrix = _start(logits, first, second, eps)
    sums = _normalise(matrix, axes, eps)
    weighted = matrix * gradient.contiguous()
    for axis, total in zip(reversed(axes), reversed(sums), strict=True):
        weighted.addcmul_(matrix, weighted.sum(axis, keepdim=True), value=-1)
        matrix.mul_(total)
    return _start_backward(logits, matrix, weighted, first, second, eps)


class _Rounds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.how = how
        return _project(logits, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _project_backward(gradients[0], *ctx.saved_tensors, *ctx.how), None, None, None, None


def _axes(iterations: int, first: int, second: int, eps: float) -> list[int]:
    """The axes that are normalised after the start, in order."""
    rounds = [first, second] * (iterations - 1)
    return rounds if eps == 0 else [second, *rounds]


def _start(logits: Tensor, first: int, second: int, eps: float) -> Tensor:
    """The first round without eps; only its first half, and the eps, with it.

    Subtracting one maximum is not enough for float32: the logarithm stays until the last normalisation of the first
    round. After it every sum lies in [1/n, n], so the others need none. With an eps no sum can vanish.
    """
    if eps == 0:
        return logits.log_softmax(first).softmax(second)
    return logits.softmax(first) + eps


def _start_backward(logits: Tensor, matrix: Tensor, weighted: Tensor, first: int, second: int, eps: float) -> Tensor:
    """The logits' gradient, from `_start`'s matrix times its gradient."""
    columns = logits.softmax(first)
    undone = matrix * weighted.sum(second, keepdim=True) if eps == 0 else weighted * (eps / matrix)
    weighted = weighted - undone
    return weighted - columns * weighted.sum(first, keepdim=True)


def _normalise(matrix: Tensor, axes: list[int], eps: float) -> list[Tensor]:
    """Divide by the sums along each axis in turn, in place; returns the divisors."""
    sums = []
    for axis in axes:
        sums.append(matrix.sum(axis, keepdim=True).add_(eps))
        matrix.div_(sums[-1])
    return sums
