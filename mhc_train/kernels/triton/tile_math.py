"""What the forward and the backward kernel share: loading a tile, rebuilding the written streams, read weights.

A tile of n streams is a tuple of n blocks (tokens, columns), so that a thread holds the same entry of all streams and
mixes them without talking to others. Coefficients are tuples of vectors over the tile's tokens.
"""

# mypy: ignore-errors
# Kernels are in Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def load_coefficients(values, tokens, inside, count: tl.constexpr):
    """`count` float32 numbers a token, each a vector over the tile's tokens; an empty tuple for none."""
    loaded = ()
    if values is not None:
        for i in tl.static_range(count):
            loaded = loaded + (tl.load(values + tokens * count + i, inside, 0.0),)
    return loaded


@triton.jit
def load_streams(streams, places, mask, n: tl.constexpr, C: tl.constexpr):
    """The n blocks of a tile; `places` are those of the first stream's entries."""
    blocks = ()
    for i in tl.static_range(n):
        blocks = blocks + (tl.load(streams + places + i * C, mask, 0.0),)
    return blocks


@triton.jit
def write_blocks(blocks, output, posts, ress, n: tl.constexpr):
    """`sum_j res[i, j] X[j] + post[i] output`, rounded to the streams' dtype; the streams where there is no output."""
    written = ()
    for i in tl.static_range(n):
        if output is None:
            new = blocks[i]
        else:
            mixed = posts[i][:, None] * output
            if len(ress) == 0:
                mixed += blocks[i].to(tl.float32)
            else:
                for j in tl.static_range(n):
                    mixed += ress[i * n + j][:, None] * blocks[j].to(tl.float32)
            new = mixed.to(blocks[i].dtype)
        written = written + (new,)
    return written


@triton.jit
def read(blocks, pres, n: tl.constexpr):
    """`sum_i pre[i] X[i]`, float32."""
    total = pres[0][:, None] * blocks[0].to(tl.float32)
    for i in tl.static_range(1, n):
        total += pres[i][:, None] * blocks[i].to(tl.float32)
    return total


@triton.jit
def dot_exact(rounded, exact, total):
    """`total + rounded @ exact` of a block in the streams' dtype and one in float32, whose precision is kept.

    A float32 number is the sum of two of 16 bits, to about 16 significant bits.
    """
    if rounded.dtype == tl.float32:
        total = tl.dot(rounded, exact, total, input_precision="tf32x3")
    else:
        high = exact.to(rounded.dtype)
        low = (exact - high.to(tl.float32)).to(rounded.dtype)
        total = tl.dot(rounded, low, tl.dot(rounded, high, total))
    return total


@triton.jit
def load_weight(weight, start, columns, width: tl.constexpr, k: tl.constexpr, padded: tl.constexpr):
    """Some columns of the weight from `start` on, (features, columns), with rows of zeros up to `padded`."""
    rows = tl.arange(0, padded)[:, None]
    return tl.load(weight + rows * width + start + columns[None, :], rows < k, 0.0)


@triton.jit
def gated_features(features, tokens, inside, n: tl.constexpr, k: tl.constexpr, groups: tl.constexpr):
    """The n features a token that the read weights are made of: the first n of all, or each stream's first."""
    chosen = ()
    for i in tl.static_range(n):
        place = i if groups == 1 else i * k
        chosen = chosen + (tl.load(features + tokens * (groups * k) + place, inside, 0.0),)
    return chosen


@triton.jit
def squashed(features, gate, bias, n: tl.constexpr, groups: tl.constexpr):
    """Joint: `sigmoid(gate f + bias)`; stream by stream: `tanh f`. What gate, bias and offset then act upon."""
    values = ()
    for i in tl.static_range(n):
        if groups == 1:
            value = tl.sigmoid(gate * features[i] + tl.load(bias + i))
        else:
            value = 2 * tl.sigmoid(2 * features[i]) - 1
        values = values + (value,)
    return values


@triton.jit
def read_weights(values, gate, bias, offset, n: tl.constexpr, groups: tl.constexpr):
    """H_pre of what `squashed` gives."""
    pres = ()
    for i in tl.static_range(n):
        pres = pres + (values[i] + offset if groups == 1 else gate * values[i] + tl.load(bias + i),)
    return pres
