"""The crossing, backward, in two kernels: the gradients of the features, then those of everything that is large.

What the read weights' gradient needs, `X' . g_x`, runs over all columns of a token, and nothing can be finished before
it is known: hence two kernels. The first owns tiles of tokens and leaves a few numbers for each. The second owns tiles
of COLUMNS and walks over tokens: the weight of its columns stays in registers, where a tile of tokens would read all
of it again, and so does that weight's gradient, which a tile of tokens would have to add to memory shared by all.

What is left to add up is a partial sum of the weight's gradient for every few hundred tokens, and of the gradients of
H_post and H_res for every tile of columns: some per cent of the traffic, no atomic operation, and so the same bits
every time. Neither kernel needs the new state: it is built again from the streams and the output. Of more streams than
the second kernel can hold the weight for, what comes through the projection is torch's.
"""

# mypy: ignore-errors
# Kernels are in Triton's language, which only looks like Python.

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhc_train.kernels import allocate
from mhc_train.kernels.triton.forward import Operands, contiguous, present, write
from mhc_train.kernels.triton.projection import project_backward
from mhc_train.kernels.triton.tile_math import (
    dot_exact,
    gated_features,
    load_coefficients,
    load_streams,
    load_weight,
    read_weights,
    squashed,
    write_blocks,
)
from mhc_train.kernels.triton.tiles import PROJECTED, backward_tile, gradients_tile, padded

Gradients = tuple[Tensor, ...]


def cross_backward(
    g_written: Tensor | None,
    g_x: Tensor | None,
    g_features: Tensor | None,
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
    features: Tensor,
    scale: Tensor,
) -> Gradients:
    """Gradients of all inputs of `cross` from those of its results; a gradient that is None is zero.

    Args:
        g_written: (T, n, C), of the new streams.
        g_x: (T, C), of what the next sublayer reads.
        g_features: (T, G, k), of the features, the read weights' own share not among them.
        streams: and all that follows up to `pre`: the inputs of `cross`.
        features: its result.
        scale: its result.

    Returns:
        Of streams, output, post, res, weight, gate, bias and pre; empty where there was no such input.
    """
    operands = Operands(*map(contiguous, (streams, output, post, res, weight, gate, bias, pre)))
    # Compiled, an empty result has an empty gradient, not None.
    arriving = [contiguous(present(tensor)) for tensor in (g_written, g_x, g_features)]
    made = features.contiguous(), scale.contiguous()
    if not len(streams):
        return allocate.gradients(*operands)
    small = _features_backward(*arriving[1:], operands, *made)
    if weight is None or streams.shape[1] <= PROJECTED:
        return _streams_backward(*arriving[:2], operands, offset, made[0], small)
    g_state, g_weight = project_backward(arriving[0], write(operands), weight, small.projected, small.shrink)
    operands, small = operands._replace(weight=None), small._replace(projected=None, shrink=None)
    gradients = _streams_backward(g_state, arriving[1], operands, offset, made[0], small)
    return (*gradients[:4], g_weight, *gradients[5:])


class _Small(NamedTuple):
    """What the first kernel leaves."""

    projected: Tensor | None = None
    """(T, G, k): the gradient of the products with the weight, before their scale."""
    shrink: Tensor | None = None
    """(T, G): what the norm's gradient multiplies the new state with."""
    gate: Tensor | None = None
    bias: Tensor | None = None


def _features_backward(
    g_x: Tensor | None, g_features: Tensor | None, operands: Operands, features: Tensor, scale: Tensor
) -> _Small:
    if operands.weight is None:
        return _Small()
    streams, output, post, res, _, gate, bias, _ = operands
    (T, n, C), (groups, k) = streams.shape, features.shape[1:]
    tile = gradients_tile(n, C)
    programs = triton.cdiv(T, tile.tokens)
    projected, shrink = torch.empty_like(features), torch.empty_like(scale)
    # A program's sums of the gradients of bias and gate.
    sums = features.new_empty(programs, n + 1) if gate is not None else None
    _features_kernel[programs,](
        g_x, g_features, streams, output, post, res, gate, bias, features, scale, projected, shrink, sums,
        T, n, C, k, padded(k), groups, tile.tokens, tile.columns, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if sums is None:
        return _Small(projected, shrink)
    return _Small(projected, shrink, sums[:, n].sum(), sums[:, :n].sum(0))


def _streams_backward(
    g_written: Tensor | None, g_x: Tensor | None, operands: Operands, offset: float, features: Tensor, small: _Small
) -> Gradients:
    streams, output, post, res, weight, _, _, pre = operands
    T, n, C = streams.shape
    groups, k = features.shape[1:] if features.numel() else (1, 0)
    tile = backward_tile(n, C, streams.dtype)
    blocks, ranges = C // tile.columns, triton.cdiv(T, tile.tokens * tile.steps)

    def parts(of: Tensor | None, number: int) -> Tensor | None:
        return None if of is None else of.new_empty(number, *of.shape)

    g_streams = torch.empty_like(streams)
    g_output = None if output is None else torch.empty_like(output)
    g_post, g_res, g_weight = parts(post, blocks), parts(res, blocks), parts(weight, ranges)
    # The kernel leaves alone what no gradient arrives for.
    g_pre = parts(pre, blocks) if pre is None or g_x is not None else torch.zeros_like(pre).unsqueeze(0)
    _streams_kernel[blocks, ranges](
        g_written, g_x, *operands, present(features), small.projected, small.shrink,
        g_streams, g_output, g_post, g_res, g_pre, g_weight,
        T, offset, n, C, k, padded(k), groups, tile.tokens, tile.columns, tile.steps,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip

    g_post, g_res, g_weight, g_pre = (None if of is None else of.sum(0) for of in (g_post, g_res, g_weight, g_pre))
    gradients = (g_streams, g_output, g_post, g_res, g_weight, small.gate, small.bias, g_pre)
    # Results of an operator must not share memory: each absent one is a tensor of its own.
    return tuple(streams.new_empty(0) if gradient is None else gradient for gradient in gradients)


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["gate", "bias"])
def _features_kernel(
    g_x, g_features, streams, output, post, res, gate, bias, features, scale, projected, shrink, sums,
    T,
    n: tl.constexpr, C: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
    tile_tokens: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """The gradients of the features, through the read weights too, and of the norm; those of gate and bias, in part."""
    tokens = tl.program_id(0).to(tl.int64) * tile_tokens + tl.arange(0, tile_tokens)
    inside = tokens < T
    through_reads = ()
    if gate is not None:
        if g_x is not None:
            g_pres = _dots(g_x, streams, output, post, res, tokens, inside, n, C, tile_tokens, tile_columns)
        else:
            g_pres = _zeros(n, tile_tokens)
        strength = tl.load(gate)
        chosen = gated_features(features, tokens, inside, n, k, groups)
        values = squashed(chosen, strength, bias, n, groups)
        g_gate = tl.zeros([tile_tokens], tl.float32)
        for i in tl.static_range(n):
            if groups == 1:
                g_logit = g_pres[i] * values[i] * (1 - values[i])
                g_gate += g_logit * chosen[i]
                g_feature = g_logit * strength
            else:
                g_logit = g_pres[i]
                g_gate += g_logit * values[i]
                g_feature = g_logit * strength * (1 - values[i] * values[i])
            through_reads = through_reads + (g_feature,)
            tl.store(sums + tl.program_id(0) * (n + 1) + i, tl.sum(g_logit, 0))
        tl.store(sums + tl.program_id(0) * (n + 1) + n, tl.sum(g_gate, 0))

    rows = tl.arange(0, padded)[None, :]
    mask = inside[:, None] & (rows < k)
    for g in tl.static_range(groups):
        places = tokens[:, None] * (groups * k) + g * k + rows
        total = tl.zeros([tile_tokens, padded], tl.float32)
        if g_features is not None:
            total = tl.load(g_features + places, mask, 0.0)
        if gate is not None:
            for i in tl.static_range(n // groups):
                total += tl.where(rows == i, through_reads[g + i][:, None], 0.0)
        factor = tl.load(scale + tokens * groups + g, inside, 0.0)
        along = tl.sum(total * tl.load(features + places, mask, 0.0), 1)
        # f = s W v with s = (mean v^2 + eps)^(-1/2), hence ds = -s^3 v.dv / size.
        tl.store(shrink + tokens * groups + g, along * factor * factor / -(n * C // groups), inside)
        tl.store(projected + places, total * factor[:, None], mask)


@triton.jit
def _dots(
    g_x, streams, output, post, res, tokens, inside,
    n: tl.constexpr, C: tl.constexpr, tile_tokens: tl.constexpr, tile_columns: tl.constexpr,
):  # fmt: skip
    """`X'[i] . g_x` of every stream: the gradient of the read weights."""
    posts = load_coefficients(post, tokens, inside, n)
    ress = load_coefficients(res, tokens, inside, n * n)
    totals = _zeros(n, tile_tokens)
    mask = inside[:, None]
    for start in range(0, C, tile_columns):
        columns = start + tl.arange(0, tile_columns)[None, :]
        blocks = load_streams(streams, tokens[:, None] * (n * C) + columns, mask, n, C)
        singles = tokens[:, None] * C + columns
        if output is not None:
            blocks = write_blocks(blocks, tl.load(output + singles, mask, 0.0).to(tl.float32), posts, ress, n)
        gradient = tl.load(g_x + singles, mask, 0.0).to(tl.float32)
        longer = ()
        for i in tl.static_range(n):
            longer = longer + (totals[i] + tl.sum(blocks[i].to(tl.float32) * gradient, 1),)
        totals = longer
    return totals


@triton.jit
def _zeros(number: tl.constexpr, rows: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(number):
        zeros = zeros + (tl.zeros([rows], tl.float32),)
    return zeros


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["gate", "bias"])
def _streams_kernel(
    g_written, g_x, streams, output, post, res, weight, gate, bias, pre, features, projected, shrink,
    g_streams, g_output, g_post, g_res, g_pre, g_weight,
    T, offset,
    n: tl.constexpr, C: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
    tile_tokens: tl.constexpr, tile_columns: tl.constexpr, steps: tl.constexpr,
):  # fmt: skip
    """Of one tile of columns and a range of tokens: the gradients of streams and output, and shares of all others."""
    each: tl.constexpr = n // groups
    columns = tl.program_id(0) * tile_columns + tl.arange(0, tile_columns)
    # From the last tokens on: those the first kernel has read last, and left in the cache.
    part_of_tokens = (tl.num_programs(1) - 1 - tl.program_id(1)).to(tl.int64)
    # Where partial sums over columns begin.
    share = tl.program_id(0).to(tl.int64) * T
    weights, g_weights = (), ()
    if weight is not None:
        for i in tl.static_range(each):
            part = load_weight(weight, i * C, columns, each * C, k, padded)
            weights = weights + (_for_products(part, streams.dtype.element_ty),)
            g_weights = g_weights + (tl.zeros([tile_columns, padded], tl.float32),)

    for step in range(steps):
        tokens = (part_of_tokens * steps + step) * tile_tokens + tl.arange(0, tile_tokens)
        inside = tokens < T
        mask = inside[:, None]
        places = tokens[:, None] * (n * C) + columns[None, :]
        singles = tokens[:, None] * C + columns[None, :]
        posts = load_coefficients(post, tokens, inside, n)
        ress = load_coefficients(res, tokens, inside, n * n)
        blocks = load_streams(streams, places, mask, n, C)
        states = blocks
        if output is not None:
            produced = tl.load(output + singles, mask, 0.0).to(tl.float32)
            states = write_blocks(blocks, produced, posts, ress, n)

        gradients = ()
        for i in tl.static_range(n):
            if g_written is not None:
                gradient = tl.load(g_written + places + i * C, mask, 0.0).to(tl.float32)
            else:
                gradient = tl.zeros([tile_tokens, tile_columns], tl.float32)
            gradients = gradients + (gradient,)
        if g_x is not None:
            g_read = tl.load(g_x + singles, mask, 0.0).to(tl.float32)
            if pre is not None:
                pres = load_coefficients(pre, tokens, inside, n)
                _store_dots(g_pre + (share + tokens) * n, 1, states, g_read, inside, n)
            else:
                strength = tl.load(gate)
                chosen = gated_features(features, tokens, inside, n, k, groups)
                pres = read_weights(squashed(chosen, strength, bias, n, groups), strength, bias, offset, n, groups)
            gradients = _add_reads(gradients, pres, g_read, n)
        if weight is not None:
            gradients, g_weights = _through_projection(
                gradients, g_weights, states, weights, projected, shrink, tokens, inside, n, k, padded, groups
            )

        if output is None:
            for i in tl.static_range(n):
                tl.store(g_streams + places + i * C, gradients[i].to(g_streams.dtype.element_ty), mask)
        else:
            g_produced = posts[0][:, None] * gradients[0]
            for i in tl.static_range(1, n):
                g_produced += posts[i][:, None] * gradients[i]
            tl.store(g_output + singles, g_produced.to(g_output.dtype.element_ty), mask)
            _store_dots(g_post + (share + tokens) * n, 1, gradients, produced, inside, n)
            for j in tl.static_range(n):
                if res is None:
                    mixed = gradients[j]
                else:
                    mixed = ress[j][:, None] * gradients[0]
                    for i in tl.static_range(1, n):
                        mixed += ress[i * n + j][:, None] * gradients[i]
                    first = g_res + (share + tokens) * (n * n) + j
                    _store_dots(first, n, gradients, blocks[j].to(tl.float32), inside, n)
                tl.store(g_streams + places + j * C, mixed.to(g_streams.dtype.element_ty), mask)

    if weight is not None:
        rows = tl.arange(0, padded)[None, :]
        start = g_weight + part_of_tokens * (k * each * C)
        for i in tl.static_range(each):
            tl.store(start + rows * (each * C) + i * C + columns[:, None], g_weights[i], rows < k)


@triton.jit
def _for_products(block, dtype: tl.constexpr):
    """A block in the type of products with gradients: bfloat16 has the range of a gradient, float16 has not."""
    return block.to(tl.bfloat16) if dtype == tl.bfloat16 else block.to(tl.float32)


@triton.jit
def _store_dots(places, stride: tl.constexpr, blocks, other, inside, n: tl.constexpr):
    """Each block's inner product with another over the tile's columns.

    A sum over all columns of a matrix product's result makes warps wait for each other. Over 8 neighbours, which one
    warp has, it does not: those are taken block by block, and the warps' shares are added for all blocks at once.
    """
    near: tl.constexpr = 8
    rows: tl.constexpr = other.shape[0]
    numbers = tl.arange(0, n)
    parts = tl.zeros([rows, other.shape[1] // near, n], tl.float32)
    for i in tl.static_range(n):
        product = tl.reshape(blocks[i].to(tl.float32) * other, [rows, other.shape[1] // near, near])
        parts = tl.where(numbers[None, None, :] == i, tl.sum(product, 2)[:, :, None], parts)
    tl.store(places[:, None] + numbers[None, :] * stride, tl.sum(parts, 1), inside[:, None])


@triton.jit
def _add_reads(gradients, pres, g_read, n: tl.constexpr):
    total = ()
    for i in tl.static_range(n):
        total = total + (gradients[i] + pres[i][:, None] * g_read,)
    return total


@triton.jit
def _through_projection(
    gradients, g_weights, states, weights, projected, shrink, tokens, inside,
    n: tl.constexpr, k: tl.constexpr, padded: tl.constexpr, groups: tl.constexpr,
):  # fmt: skip
    """Add what comes through the features: to the gradients of the new state, and to those of the weight."""
    each: tl.constexpr = n // groups
    rows = tl.arange(0, padded)[None, :]
    total = ()
    for i in tl.static_range(n):
        places = tokens[:, None] * (groups * k) + (i // each) * k + rows
        upstream = tl.load(projected + places, inside[:, None] & (rows < k), 0.0)
        shrinking = tl.load(shrink + tokens * groups + i // each, inside, 0.0)
        block = weights[i % each]
        gradient = gradients[i] + shrinking[:, None] * states[i].to(tl.float32)
        total = total + (tl.dot(upstream.to(block.dtype), block, gradient, input_precision="tf32x3"),)
        sums = ()
        for other in tl.static_range(each):
            if other == i % each:
                sums = sums + (dot_exact(tl.trans(states[i].to(block.dtype)), upstream, g_weights[other]),)
            else:
                sums = sums + (g_weights[other],)
        g_weights = sums
    return total, g_weights
