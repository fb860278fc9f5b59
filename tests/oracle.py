"""The equations in float64 NumPy, written from the papers for clarity alone; what the package is compared with.

Arrays carry any leading token dimensions; a token's streams are (n, C). Row i of H_res receives, column j sends.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EPS = 1e-6


def rms_norm(x: Array, eps: float = EPS) -> Array:
    """x over its root mean square along the last dimension (arXiv 1910.07467, without a gain)."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def sinkhorn(logits: Array, iterations: int = 20, order: str = "columns_first") -> Array:
    """exp of the logits, each round normalised by columns and by rows, all in log space (arXiv 2512.24880, Eq. 9)."""
    columns, rows = -2, -1  # the axis that a column sum, a row sum runs over
    axes = {"columns_first": (columns, rows), "rows_first": (rows, columns)}[order]
    log_matrix = np.asarray(logits, dtype=np.float64)
    for _ in range(iterations):
        for axis in axes:
            log_matrix = log_matrix - np.logaddexp.reduce(log_matrix, axis=axis, keepdims=True)
    return np.exp(log_matrix)


def hc_maps(
    streams: Array, theta: tuple[Array, Array, Array], gates: Array, biases: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """H_pre, H_post and H_res of Hyper-Connections (arXiv 2512.24880, Eq. 5).

    theta is (theta_pre (C,), theta_post (C,), theta_res (n, C)), biases (b_pre (n,), b_post (n,), b_res (n, n)).
    """
    theta_pre, theta_post, theta_res = theta
    b_pre, b_post, b_res = biases
    normed = rms_norm(streams)
    pre = gates[0] * np.tanh(normed @ theta_pre) + b_pre
    post = gates[1] * np.tanh(normed @ theta_post) + b_post
    res = gates[2] * np.tanh(np.einsum("ic,...jc->...ij", theta_res, normed)) + b_res
    return pre, post, res


def mhc_logits(streams: Array, phi: Array, gates: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The logits of pre (n,), post (n,) and res (n, n) (arXiv 2512.24880, Eq. 7).

    phi is (nC, n^2 + 2n) and bias (n^2 + 2n,), in the order pre, post, res; the norm is joint over all nC entries.
    """
    n, dim = streams.shape[-2:]
    joint = streams.reshape(*streams.shape[:-2], n * dim)
    root = np.sqrt(np.mean(joint**2, axis=-1, keepdims=True) + EPS)
    logits = (joint @ phi) / root * np.repeat(gates, [n, n, n * n]) + bias
    pre, post, res = np.split(logits, [n, 2 * n], axis=-1)
    return pre, post, res.reshape(*res.shape[:-1], n, n)


def mhc_maps(
    streams: Array, phi: Array, gates: Array, bias: Array, iterations: int = 20, order: str = "columns_first"
) -> tuple[Array, Array, Array]:
    """H_pre, H_post and H_res of manifold-constrained Hyper-Connections (arXiv 2512.24880, Eq. 8)."""
    pre, post, res = mhc_logits(streams, phi, gates, bias)
    return sigmoid(pre), 2 * sigmoid(post), sinkhorn(res, iterations, order)


def expand(embedding: Array, streams: int) -> Array:
    """n copies of every token's embedding."""
    return np.repeat(embedding[..., None, :], streams, axis=-2)


def read(pre: Array, streams: Array) -> Array:
    """What the sublayer sees: sum_i pre[i] X[i] (arXiv 2512.24880, Eq. 3)."""
    return np.einsum("...i,...ic->...c", pre, streams)


def write(streams: Array, output: Array, post: Array, res: Array) -> Array:
    """X'[i] = sum_j res[i, j] X[j] + post[i] output (arXiv 2512.24880, Eq. 3)."""
    return np.einsum("...ij,...jc->...ic", res, streams) + np.einsum("...i,...c->...ic", post, output)


def cross(streams: Array, output: Array, maps: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """One sublayer: what it reads, and X_{l+1} for the output that it gives (arXiv 2512.24880, Eq. 3)."""
    pre, post, res = maps
    return read(pre, streams), write(streams, output, post, res)


def collapse(streams: Array, how: str = "mean", gated: tuple[Array, Array, Array] | None = None) -> Array:
    """The streams as one vector: their mean, their sum, or a sum weighted by sigmoid(scale (v' fn) + base) + eps.

    gated is (fn (nC, n), scale (1,), base (n,)); v' is the joint RMS norm over all nC entries (DeepSeek-V4's head).
    """
    if how == "mean":
        return streams.mean(axis=-2)
    if how == "sum":
        return streams.sum(axis=-2)
    assert how == "gated" and gated is not None
    fn, scale, base = gated
    joint = rms_norm(streams.reshape(*streams.shape[:-2], -1))
    return read(sigmoid(scale * (joint @ fn) + base) + EPS, streams)


def attention(query: Array, key: Array, value: Array, theta: float) -> Array:
    """Causal attention of (heads, seq, d) queries to (kv_heads, seq, d) keys and values.

    Rotary positions multiply the complex numbers (first half) + i (second half) of a head by exp(i position
    theta^(-2k/d)) (arXiv 2104.09864); a group of consecutive query heads shares one key head (arXiv 2305.13245).
    """
    heads, seq, width = query.shape
    angles = np.outer(np.arange(seq), theta ** (-2 * np.arange(width // 2) / width))

    def rotated(x: Array) -> Array:
        z = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=-1)

    group = heads // len(key)
    query, key, value = rotated(query), np.repeat(rotated(key), group, axis=0), np.repeat(value, group, axis=0)
    mixed = np.zeros_like(query)
    for head in range(heads):
        for position in range(seq):
            scores = key[head, : position + 1] @ query[head, position] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed[head, position] = weights / weights.sum() @ value[head, : position + 1]
    return mixed
