"""Sinkhorn-Knopp, a token a thread: all entries of its matrix in registers through all rounds.

The map is that of `mhc_train.mixers.sinkhorn`: the first round in log space, from then on exp; the backward pass runs
the rounds again and keeps the divisors of each, which is all that undoing them needs. Entry (a, b) of the tuples below
has the axis that a round sums over first as `a`: the order of the axes is only a matter of where entries are loaded.
"""

# mypy: ignore-errors
# Kernels are in Triton's language, which only looks like Python.

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhc_train.kernels.triton.tiles import interpreted

WARPS = 4


def sinkhorn(logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """Project (T, n, n) float32 logits: `iterations` rounds, each of one column and one row normalisation."""
    T, n, _ = logits.shape
    logits = logits.contiguous()
    matrices = torch.empty_like(logits)
    tokens = _tokens()
    if T:
        _sinkhorn[triton.cdiv(T, tokens),](
            logits, matrices, T, eps, n, iterations - 1, eps > 0, columns_first, tokens, num_warps=WARPS
        )
    return matrices


def sinkhorn_backward(gradient: Tensor, logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """The exact derivative of the truncated map: the logits' gradient from that of the matrices, both (T, n, n)."""
    T, n, _ = logits.shape
    logits, gradient = logits.contiguous(), gradient.contiguous()
    result = torch.empty_like(logits)
    tokens = _tokens()
    # Of every half round n divisors a token. They stay in the cache: streams are much larger.
    divisors = logits.new_empty(2 * (iterations - 1), n, T)
    if T:
        _sinkhorn_backward[triton.cdiv(T, tokens),](
            gradient, logits, result, divisors,
            T, eps, n, iterations - 1, eps > 0, columns_first, tokens, num_warps=WARPS,
        )  # fmt: skip
    return result


def _tokens() -> int:
    """Of one program: one a thread."""
    return 1024 if interpreted() else 32 * WARPS


@triton.jit(do_not_specialize=["T"])
def _sinkhorn(
    logits, matrices, T, eps,
    n: tl.constexpr, rounds: tl.constexpr, with_eps: tl.constexpr, columns_first: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = tokens < T
    matrix = _start(_load(logits, tokens, inside, n, columns_first), eps, n, with_eps)
    if with_eps:
        matrix, _ = _normalise(matrix, eps, n, False)
    for _ in range(rounds):
        matrix, _sums = _normalise(matrix, eps, n, True)
        matrix, _sums = _normalise(matrix, eps, n, False)
    _store(matrices, matrix, tokens, inside, n, columns_first)


@triton.jit(do_not_specialize=["T"])
def _sinkhorn_backward(
    gradient, logits, result, divisors, T, eps,
    n: tl.constexpr, rounds: tl.constexpr, with_eps: tl.constexpr, columns_first: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = tokens < T
    loaded = _load(logits, tokens, inside, n, columns_first)
    matrix = _start(loaded, eps, n, with_eps)
    if with_eps:
        matrix, half = _normalise(matrix, eps, n, False)
    for turn in range(rounds):
        matrix, sums = _normalise(matrix, eps, n, True)
        _remember(divisors, sums, 2 * turn, tokens, inside, T, n)
        matrix, sums = _normalise(matrix, eps, n, False)
        _remember(divisors, sums, 2 * turn + 1, tokens, inside, T, n)
    # Whichever thread stored a divisor: all are there before any is loaded.
    tl.debug_barrier()
    # The gradient is carried as W = M * dM: undoing M' = M / s takes W' to W' - M' sum(W') and M' to M' s.
    weighted = _times(matrix, _load(gradient, tokens, inside, n, columns_first), n)
    for turn in range(rounds):
        last = 2 * (rounds - turn) - 1
        sums = _recall(divisors, last, tokens, inside, T, n)
        matrix, weighted = _undo(matrix, weighted, sums, n, False)
        sums = _recall(divisors, last - 1, tokens, inside, T, n)
        matrix, weighted = _undo(matrix, weighted, sums, n, True)
    if with_eps:
        matrix, weighted = _undo(matrix, weighted, half, n, False)
    _store(result, _start_backward(loaded, matrix, weighted, eps, n, with_eps), tokens, inside, n, columns_first)


@triton.jit
def _load(values, tokens, inside, n: tl.constexpr, columns_first: tl.constexpr):
    """Entries as vectors over tokens, row by row of (a, b)."""
    entries = ()
    for e in tl.static_range(n * n):
        place = e if columns_first else (e % n) * n + e // n
        entries = entries + (tl.load(values + tokens * (n * n) + place, inside, 0.0),)
    return entries


@triton.jit
def _store(values, entries, tokens, inside, n: tl.constexpr, columns_first: tl.constexpr):
    for e in tl.static_range(n * n):
        place = e if columns_first else (e % n) * n + e // n
        tl.store(values + tokens * (n * n) + place, entries[e], inside)


@triton.jit
def _remember(divisors, sums, half, tokens, inside, T, n: tl.constexpr):
    for i in tl.static_range(n):
        tl.store(divisors + (half * n + i) * T.to(tl.int64) + tokens, sums[i], inside)


@triton.jit
def _recall(divisors, half, tokens, inside, T, n: tl.constexpr):
    sums = ()
    for i in tl.static_range(n):
        sums = sums + (tl.load(divisors + (half * n + i) * T.to(tl.int64) + tokens, inside, 1.0),)
    return sums


@triton.jit
def _sums(entries, n: tl.constexpr, first: tl.constexpr):
    """Over the first axis of (a, b), or over the second."""
    totals = ()
    for line in tl.static_range(n):
        total = entries[line if first else line * n]
        for i in tl.static_range(1, n):
            total += entries[i * n + line if first else line * n + i]
        totals = totals + (total,)
    return totals


@triton.jit
def _times(left, right, n: tl.constexpr):
    products = ()
    for e in tl.static_range(n * n):
        products = products + (left[e] * right[e],)
    return products


@triton.jit
def _normalise(entries, eps, n: tl.constexpr, first: tl.constexpr):
    """Divide by the sums along an axis; the quotients, and the divisors."""
    totals = _sums(entries, n, first)
    divisors = ()
    for line in tl.static_range(n):
        divisors = divisors + (totals[line] + eps,)
    quotients = ()
    for e in tl.static_range(n * n):
        quotients = quotients + (entries[e] / divisors[e % n if first else e // n],)
    return quotients, divisors


@triton.jit
def _undo(matrix, weighted, divisors, n: tl.constexpr, first: tl.constexpr):
    """One normalisation backwards."""
    totals = _sums(weighted, n, first)
    before, gradient = (), ()
    for e in tl.static_range(n * n):
        gradient = gradient + (weighted[e] - matrix[e] * totals[e % n if first else e // n],)
        before = before + (matrix[e] * divisors[e % n if first else e // n],)
    return before, gradient


@triton.jit
def _log_softmax(entries, n: tl.constexpr, first: tl.constexpr):
    highest = ()
    for line in tl.static_range(n):
        high = entries[line if first else line * n]
        for i in tl.static_range(1, n):
            high = tl.maximum(high, entries[i * n + line if first else line * n + i])
        highest = highest + (high,)
    shifted, powers = (), ()
    for e in tl.static_range(n * n):
        shifted = shifted + (entries[e] - highest[e % n if first else e // n],)
        powers = powers + (tl.exp(shifted[e]),)
    totals = _sums(powers, n, first)
    logarithms = ()
    for e in tl.static_range(n * n):
        logarithms = logarithms + (shifted[e] - tl.log(totals[e % n if first else e // n]),)
    return logarithms


@triton.jit
def _exp(entries, n: tl.constexpr):
    powers = ()
    for e in tl.static_range(n * n):
        powers = powers + (tl.exp(entries[e]),)
    return powers


@triton.jit
def _start(logits, eps, n: tl.constexpr, with_eps: tl.constexpr):
    """The first round, in log space until its last normalisation; with eps, whose sums cannot vanish, half of it."""
    matrix = _log_softmax(logits, n, True)
    if with_eps:
        started = ()
        for e in tl.static_range(n * n):
            started = started + (tl.exp(matrix[e]) + eps,)
    else:
        started = _exp(_log_softmax(matrix, n, False), n)
    return started


@triton.jit
def _start_backward(logits, matrix, weighted, eps, n: tl.constexpr, with_eps: tl.constexpr):
    """The logits' gradient, from the matrix of `_start` times its gradient."""
    columns = _exp(_log_softmax(logits, n, True), n)
    totals = _sums(weighted, n, False)
    halfway = ()
    for e in tl.static_range(n * n):
        undone = weighted[e] * (eps / matrix[e]) if with_eps else matrix[e] * totals[e // n]
        halfway = halfway + (weighted[e] - undone,)
    totals = _sums(halfway, n, True)
    gradient = ()
    for e in tl.static_range(n * n):
        gradient = gradient + (halfway[e] - columns[e] * totals[e % n],)
    return gradient
