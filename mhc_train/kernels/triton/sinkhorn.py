"""Sinkhorn-Knopp on matrices that stay in one warp's registers through all rounds, four entries to a thread.

The map is that of `mhc_train.mixers.sinkhorn`: the first round in log space, from then on exp; the backward pass runs
the rounds again and keeps the divisors of each, which is all that undoing them needs. A round sums over `first` and
then over `second`, which are axes of blocks (tokens, n, n).
"""

# mypy: ignore-errors
# Kernels are in Triton's language, which only looks like Python.

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhc_train.kernels.triton.tiles import interpreted

ENTRIES = 128
"""Of one program, which is a warp: no sum waits for another one, and few tokens keep all multiprocessors at work."""


def sinkhorn(logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """Project (T, n, n) float32 logits: `iterations` rounds, each of one column and one row normalisation."""
    T, n, _ = logits.shape
    logits = logits.contiguous()
    matrices = torch.empty_like(logits)
    if T:
        tokens = _tokens(n)
        _sinkhorn[triton.cdiv(T, tokens),](
            logits, matrices, T, eps, n, iterations - 1, eps > 0, *_axes(columns_first), tokens,
            num_warps=1, num_stages=1,
        )  # fmt: skip
    return matrices


def sinkhorn_backward(gradient: Tensor, logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """The exact derivative of the truncated map: the logits' gradient from that of the matrices, both (T, n, n)."""
    T, n, _ = logits.shape
    logits, gradient = logits.contiguous(), gradient.contiguous()
    result = torch.empty_like(logits)
    # Of every half round n divisors a token. They stay in the cache: streams are much larger.
    divisors = logits.new_empty(2 * (iterations - 1), T, n)
    if T:
        tokens = _tokens(n)
        _sinkhorn_backward[triton.cdiv(T, tokens),](
            gradient, logits, result, divisors,
            T, eps, n, iterations - 1, eps > 0, *_axes(columns_first), tokens, num_warps=1, num_stages=1,
        )  # fmt: skip
    return result


def _tokens(n: int) -> int:
    """Of one program."""
    return 1024 if interpreted() else ENTRIES // n**2


def _axes(columns_first: bool) -> tuple[int, int]:
    """That a round sums over, of (tokens, n, n): a column's sum is one over its rows."""
    return (1, 2) if columns_first else (2, 1)


@triton.jit(do_not_specialize=["T"])
def _sinkhorn(
    logits, matrices, T, eps,
    n: tl.constexpr, rounds: tl.constexpr, with_eps: tl.constexpr,
    first: tl.constexpr, second: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    tokens = _tokens_of_program(tile)
    places, inside = _places(tokens, n), tokens < T
    matrix = _start(tl.load(logits + places, inside, 0.0), eps, with_eps, first, second)
    if with_eps:
        matrix, _sums = _normalise(matrix, eps, second)
    for _ in range(rounds):
        matrix, _sums = _normalise(matrix, eps, first)
        matrix, _sums = _normalise(matrix, eps, second)
    tl.store(matrices + places, matrix, inside)


@triton.jit(do_not_specialize=["T"])
def _sinkhorn_backward(
    gradient, logits, result, divisors, T, eps,
    n: tl.constexpr, rounds: tl.constexpr, with_eps: tl.constexpr,
    first: tl.constexpr, second: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    tokens = _tokens_of_program(tile)
    places, inside = _places(tokens, n), tokens < T
    # Where a half round's divisors are, and how far it is to those of the next.
    firsts, seconds = divisors + _lines(tokens, n, first), divisors + _lines(tokens, n, second)
    half = T.to(tl.int64) * n
    loaded = tl.load(logits + places, inside, 0.0)
    matrix = _start(loaded, eps, with_eps, first, second)
    if with_eps:
        matrix, halfway = _normalise(matrix, eps, second)
    for turn in range(rounds):
        matrix, sums = _normalise(matrix, eps, first)
        tl.store(firsts + 2 * turn * half, sums, inside)
        matrix, sums = _normalise(matrix, eps, second)
        tl.store(seconds + (2 * turn + 1) * half, sums, inside)
    # Whichever thread stored a divisor: all are there before any is loaded.
    tl.debug_barrier()
    # The gradient is carried as W = M * dM: undoing M' = M / s takes W' to W' - M' sum(W') and M' to M' s.
    weighted = matrix * tl.load(gradient + places, inside, 0.0)
    for turn in range(rounds):
        last = 2 * (rounds - turn) - 1
        matrix, weighted = _undo(matrix, weighted, tl.load(seconds + last * half, inside, 1.0), second)
        matrix, weighted = _undo(matrix, weighted, tl.load(firsts + (last - 1) * half, inside, 1.0), first)
    if with_eps:
        matrix, weighted = _undo(matrix, weighted, halfway, second)
    tl.store(result + places, _start_backward(loaded, matrix, weighted, eps, with_eps, first, second), inside)


@triton.jit
def _tokens_of_program(tile: tl.constexpr):
    return (tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile))[:, None, None]


@triton.jit
def _places(tokens, n: tl.constexpr):
    """Of the entries of matrices in memory."""
    return tokens * (n * n) + tl.arange(0, n)[None, :, None] * n + tl.arange(0, n)[None, None, :]


@triton.jit
def _lines(tokens, n: tl.constexpr, axis: tl.constexpr):
    """Of sums over an axis, one for each line along it."""
    lines = tl.arange(0, n)
    return tokens * n + (lines[None, None, :] if axis == 1 else lines[None, :, None])


@triton.jit
def _normalise(matrix, eps, axis: tl.constexpr):
    """Divide by the sums along an axis; the quotients, and the divisors."""
    divisors = tl.sum(matrix, axis, keep_dims=True) + eps
    return matrix / divisors, divisors


@triton.jit
def _undo(matrix, weighted, divisors, axis: tl.constexpr):
    """One normalisation backwards."""
    return matrix * divisors, weighted - matrix * tl.sum(weighted, axis, keep_dims=True)


@triton.jit
def _log_softmax(logits, axis: tl.constexpr):
    shifted = logits - tl.max(logits, axis, keep_dims=True)
    return shifted - tl.log(tl.sum(tl.exp(shifted), axis, keep_dims=True))


@triton.jit
def _start(logits, eps, with_eps: tl.constexpr, first: tl.constexpr, second: tl.constexpr):
    """The first round, in log space until its last normalisation; with eps, whose sums cannot vanish, half of it."""
    halfway = _log_softmax(logits, first)
    return tl.exp(halfway) + eps if with_eps else tl.exp(_log_softmax(halfway, second))


@triton.jit
def _start_backward(
    logits, matrix, weighted, eps, with_eps: tl.constexpr, first: tl.constexpr, second: tl.constexpr
):  # fmt: skip
    """The logits' gradient, from the matrix of `_start` times its gradient."""
    if with_eps:
        weighted -= weighted * (eps / matrix)
    else:
        weighted -= matrix * tl.sum(weighted, second, keep_dims=True)
    return weighted - tl.exp(_log_softmax(logits, first)) * tl.sum(weighted, first, keep_dims=True)
