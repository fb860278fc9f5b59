"""Operators on the residual streams: projection, read and write one by one, or a whole crossing in one pass."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.kernels import eager
from mhc_train.kernels.choice import ANY_WIDTH, EAGER, Choice, choose, chosen

__all__ = [
    "ANY_WIDTH",
    "Choice",
    "Projection",
    "Reading",
    "Write",
    "choose",
    "cross",
    "describe",
    "fused",
    "project",
    "read",
    "sinkhorn",
    "write",
]


class Write(NamedTuple):
    """What a crossing writes."""

    output: Float[Tensor, "*tokens C"]
    """The sublayer's, in the streams' dtype."""
    post: Float[Tensor, "*tokens n"]
    """What each stream receives of it, float32."""
    res: Float[Tensor, "*tokens n n"] | None
    """How the streams are mixed, float32; None: not at all."""


class Projection(NamedTuple):
    """What a crossing's features are made with."""

    weight: Float[Tensor, "k m"]
    """m = n C: of all of a token's streams jointly; m = C: of each by itself."""
    eps: float
    """Added to the mean square that they are normed by."""


class Reading(NamedTuple):
    """Read weights that are made of the features: see `mhc_train.kernels.operators.cross`."""

    gate: Float[Tensor, ""]
    bias: Float[Tensor, " n"]
    offset: float = 0.0


def fused(streams: Float[Tensor, "*tokens n C"]) -> bool:
    """Whether there is a `cross` for such streams here."""
    return chosen(streams.device.type, streams.dtype, *streams.shape[-2:]) != EAGER


def cross(
    streams: Float[Tensor, "*tokens n C"],
    write: Write | None,
    projection: Projection | None,
    reading: Reading | Float[Tensor, "*tokens n"] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write, project and read in one pass over the streams; each may be absent, and its result is an empty tensor.

    Coefficients of another precision are converted to float32, and those that are the same for several tokens repeated.

    Returns:
        the streams after the write (`*tokens n C`), what the sublayer reads (`*tokens C`), and the features, float32:
        `*tokens k` of a joint projection, `*tokens n k` of each stream's own.

    Raises:
        RuntimeError: a shape that does not go with the streams'.
    """
    from mhc_train.kernels import operators

    tokens, (n, dim) = streams.shape[:-2], streams.shape[-2:]
    output, post, res = write or (None, None, None)
    weight, eps = projection or (None, 0.0)
    gate, bias, offset = reading if isinstance(reading, Reading) else (None, None, 0.0)
    pre = None if isinstance(reading, Reading) else reading
    if weight is not None and weight.shape[1] not in (dim, n * dim):
        raise RuntimeError(f"A projection of {n} streams of {dim} channels cannot have {weight.shape[1]} columns")

    def of_tokens(given: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        # Kernels read memory as if this held.
        return None if given is None else given.to(dtype).expand(*tokens, *shape).reshape(tokens.numel(), *shape)

    def float32(given: Tensor | None) -> Tensor | None:
        return None if given is None else given.float()

    written, x, features, _ = operators.cross(
        of_tokens(streams, n, dim, dtype=streams.dtype), of_tokens(output, dim, dtype=streams.dtype),
        of_tokens(post, n), of_tokens(res, n, n),
        float32(weight), eps, float32(gate), float32(bias), offset, of_tokens(pre, n),
    )  # fmt: skip
    joint = weight is not None and weight.shape[1] == n * dim
    return (
        written.view(streams.shape) if write else streams,
        x.view(*tokens, dim) if reading is not None else x,
        features.view(*tokens, *features.shape[1 + joint :]) if weight is not None else features,
    )


def project(
    streams: Float[Tensor, "*tokens n C"], weight: Float[Tensor, "k n*C"], eps: float
) -> Float[Tensor, "*tokens k"]:
    """Linear features of all streams of a token, divided by their joint root mean square (arXiv 2512.24880, Eq. 7).

    Args:
        streams: of any precision.
        weight: float32, input dimension n C with the stream varying slowest.
        eps: added to the mean square.

    Returns:
        `weight v / sqrt(mean(v^2) + eps)`, v the token's n C numbers.
    """
    return (
        cross(streams, None, Projection(weight, eps), None)[2]
        if fused(streams)
        else eager.project(streams, weight, eps)
    )


def read(streams: Float[Tensor, "*tokens n C"], pre: Float[Tensor, "*tokens n"]) -> Float[Tensor, "*tokens C"]:
    """What the sublayer sees: `sum_i pre[i] X[i]`."""
    return cross(streams, None, None, pre)[1] if fused(streams) else eager.read(streams, pre)


def write(
    streams: Float[Tensor, "*tokens n C"],
    output: Float[Tensor, "*tokens C"],
    post: Float[Tensor, "*tokens n"],
    res: Float[Tensor, "*tokens n n"] | None,
) -> Float[Tensor, "*tokens n C"]:
    """The streams after a sublayer: `X'[i] = sum_j res[i, j] X[j] + post[i] output`; without `res`, the identity."""
    if fused(streams):
        return cross(streams, Write(output, post, res), None, None)[0]
    return eager.write(streams, output, post, res)


def describe(device: torch.device, dtype: torch.dtype, streams: int = 4, dim: int = ANY_WIDTH) -> str:
    """The path that such streams take, and why, in words."""
    return str(choose(device, dtype, streams, dim))


def sinkhorn(
    logits: Float[Tensor, "*tokens n n"], iterations: int, columns_first: bool, eps: float
) -> Float[Tensor, "*tokens n n"] | None:
    """The rounds of `mhc_train.mixers.sinkhorn` as one operator; None where there is none for such logits."""
    n = logits.shape[-1]
    if logits.dtype != torch.float32 or chosen(logits.device.type, logits.dtype, n, ANY_WIDTH) == EAGER:
        return None
    from mhc_train.kernels import operators

    matrices: Tensor = operators.sinkhorn(logits.reshape(-1, n, n), iterations, columns_first, eps)
    return matrices.view(logits.shape)
