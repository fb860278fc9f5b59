"""The crossing, forward: one pass over the streams writes the new state and projects it, a second reads it.

A program owns a tile of tokens and walks over all columns. It needs all features of a token before it can read the
token, so it goes over its new state once more, backwards: what it wrote last is the likeliest to be still in cache.
Between the passes of more streams than the kernel can project, torch does.
"""

# mypy: ignore-errors
# Kernels are in Triton's language, which only looks like Python.

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mhc_train.kernels import allocate
from mhc_train.kernels.triton.projection import project
from mhc_train.kernels.triton.tile_math import (
    dot_exact,
    gated_features,
    load_coefficients,
    load_streams,
    load_weight,
    read,
    read_weights,
    squashed,
    write_blocks,
)
from mhc_train.kernels.triton.tiles import PROJECTED, divisor, forward_tile, padded

READ_COLUMNS = 128
"""Of a tile of the second pass, which has no sums to keep in registers: more loads are under way at once."""


class Operands(NamedTuple):
    """The tensors that a crossing is made of, contiguous as the kernels need them; see `cross`."""

    streams: Tensor
    output: Tensor | None = None
    post: Tensor | None = None
    res: Tensor | None = None
    weight: Tensor | None = None
    gate: Tensor | None = None
    bias: Tensor | None = None
    pre: Tensor | None = None


def cross(
    streams: Tensor,
    output: Tensor | None,
    post: Tensor | None,
    res: Tensor | None,
    weight: Tensor | None,
    eps: float,
    gate: Tensor | None,
    bias: Tensor | None,
    offset: float,
    pre: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Write a sublayer's output to the streams and read the next sublayer's input; either may be absent.

    Args:
        streams: (T, n, C), bfloat16, float16 or float32; coefficients are float32.
        output: (T, C), the sublayer's; None to write nothing.
        post: (T, n), H_post.
        res: (T, n, n), H_res; None for the identity.
        weight: (k, n C) to project a token's streams jointly, (k, C) to project each alone; None to project nothing.
        eps: added to the mean square.
        gate: one number; with it, the read weights are made of the features.
        bias: (n,).
        offset: added to the sigmoid of a joint projection.
        pre: (T, n), read weights that are given.

    Returns:
        The new streams, what the next sublayer reads, the features (T, G, k) and their scales (T, G), G = 1 or n;
        those that there are not are empty.
    """
    given = Operands(*map(contiguous, (streams, output, post, res, weight, gate, bias, pre)))
    written, x, features, scale = results = allocate.crossing(
        streams, output, weight, gate is not None or pre is not None
    )
    if not len(streams):
        return results
    if weight is None or streams.shape[1] <= PROJECTED:
        _launch(given, *results, eps, offset)
        return results
    if output is not None or pre is not None:
        _launch(given._replace(weight=None, gate=None, bias=None), written, x, None, None, eps, offset)
    state = streams if output is None else written
    features, scale = project(state, weight, eps)
    if gate is not None:
        _launch(Operands(state, gate=given.gate, bias=given.bias), None, x, features, None, eps, offset)
    return written, x, features, scale


def write(operands: Operands) -> Tensor:
    """The new streams alone; those given, where there is no output."""
    streams, output, post, res, *_ = operands
    return streams if output is None else cross(streams, output, post, res, None, 0.0, None, None, 0.0, None)[0]


def _launch(
    operands: Operands,
    written: Tensor | None,
    x: Tensor,
    features: Tensor | None,
    scale: Tensor | None,
    eps: float,
    offset: float,
) -> None:
    """Fill what is to be filled. Features are made where there is a weight, and given where there is only a gate."""
    T, n, C = operands.streams.shape
    tile = forward_tile(n, C, operands.streams.dtype)
    groups, k = (1, 0) if features is None or not features.numel() else features.shape[1:]
    _cross[triton.cdiv(T, tile.tokens),](
        *operands,
        *(present(tensor) for tensor in (written, x, features, scale)),
        T, eps, offset, n, C, k, padded(k), groups,
        tile.tokens, tile.columns, divisor(C, READ_COLUMNS), tile.stages, num_warps=tile.warps,
    )  # fmt: skip


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """As the kernels need it."""
    return None if tensor is None else tensor.contiguous()


def present(tensor: Tensor | None) -> Tensor | None:
    """None for an empty tensor: kernels are compiled for what is there."""
    return None if tensor is None or not tensor.numel() else tensor


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["gate", "bias"])
def _cross(
    streams, output, post, res, weight, gate, bias, pre, written, x, features, scale,
    T, eps, offset,
    n: tl.constexpr, C: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
    tile_tokens: tl.constexpr, tile_columns: tl.constexpr, read_columns: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0).to(tl.int64) * tile_tokens + tl.arange(0, tile_tokens)
    inside = tokens < T
    posts = load_coefficients(post, tokens, inside, n)
    ress = load_coefficients(res, tokens, inside, n * n)
    pres = load_coefficients(pre, tokens, inside, n)
    squares, products = (), ()
    for _ in tl.static_range(groups):
        squares = squares + (tl.zeros([tile_tokens], tl.float32),)
        products = products + (tl.zeros([tile_tokens, padded], tl.float32),)

    # Said of the loop, the depth holds for crossings without a product of matrices too.
    for start in tl.range(0, C, tile_columns, num_stages=stages):
        columns = start + tl.arange(0, tile_columns)
        mask = inside[:, None]
        places = tokens[:, None] * (n * C) + columns[None, :]
        singles = tokens[:, None] * C + columns[None, :]
        blocks = load_streams(streams, places, mask, n, C)
        if output is not None:
            blocks = write_blocks(blocks, tl.load(output + singles, mask, 0.0).to(tl.float32), posts, ress, n)
            for i in tl.static_range(n):
                tl.store(written + places + i * C, blocks[i], mask)
        if weight is not None:
            squares, products = _project(blocks, squares, products, weight, columns, n, C, k, padded, groups)
        if pre is not None:
            tl.store(x + singles, read(blocks, pres, n).to(x.dtype.element_ty), mask)

    if weight is not None:
        _store_features(products, squares, features, scale, tokens, inside, eps, n * C // groups, k, padded, groups)
    if gate is not None:
        # Features and the new state were stored by other threads of this program than those that load them.
        tl.debug_barrier()
        strength = tl.load(gate)
        chosen = gated_features(features, tokens, inside, n, k, groups)
        pres = read_weights(squashed(chosen, strength, bias, n, groups), strength, bias, offset, n, groups)
        state = streams if output is None else written
        for done in range(0, C, read_columns):
            columns = C - read_columns - done + tl.arange(0, read_columns)
            mask = inside[:, None]
            blocks = load_streams(state, tokens[:, None] * (n * C) + columns[None, :], mask, n, C)
            singles = tokens[:, None] * C + columns[None, :]
            tl.store(x + singles, read(blocks, pres, n).to(x.dtype.element_ty), mask)


@triton.jit
def _project(
    blocks, squares, products, weight, columns,
    n: tl.constexpr, C: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
):  # fmt: skip
    """Add some columns' share to the sums of squares and the products with the weight, group by group."""
    new_squares, new_products = (), ()
    each: tl.constexpr = n // groups
    for g in tl.static_range(groups):
        square, product = squares[g], products[g]
        for i in tl.static_range(each):
            block = blocks[g * each + i]
            part = load_weight(weight, i * C, columns, each * C, k, padded)
            product = dot_exact(block, tl.trans(part), product)
            square += tl.sum(block.to(tl.float32) * block.to(tl.float32), 1)
        new_squares, new_products = new_squares + (square,), new_products + (product,)
    return new_squares, new_products


@triton.jit
def _store_features(
    products, squares, features, scale, tokens, inside, eps,
    width: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, padded)[None, :]
    for g in tl.static_range(groups):
        factor = tl.rsqrt(squares[g] / width + eps)
        tl.store(scale + tokens * groups + g, factor, inside)
        places = tokens[:, None] * (groups * k) + g * k + rows
        tl.store(features + places, products[g] * factor[:, None], inside[:, None] & (rows < k))
