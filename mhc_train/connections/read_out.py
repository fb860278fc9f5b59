"""Read-outs: how n streams become the one vector that the final norm sees."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train import kernels

GATE_EPS = 1e-6
NORM_EPS = 1e-6

Streams = Float[Tensor, "batch seq n C"]
Vector = Float[Tensor, "batch seq C"]
Projected = Float[Tensor, "batch seq n"] | None
"""The read weights that the last sublayer projected, where the path is a single pass."""


class ReadOut(nn.Module):
    """Base of all read-outs of `streams` streams of width `dim`."""

    def __init__(self, streams: int, dim: int) -> None:
        super().__init__()


class Mean(ReadOut):
    """The mean of the streams: copies of the embedding come out as the embedding."""

    def forward(self, streams: Streams, projected: Projected = None) -> Vector:
        """Average."""
        return streams.mean(-2)


class Sum(ReadOut):
    """The sum of the streams (the HC paper's); the final norm removes the factor n."""

    def forward(self, streams: Streams, projected: Projected = None) -> Vector:
        """Add up."""
        return streams.sum(-2)


class Gated(ReadOut):
    """A weighted sum whose weights depend on the token (DeepSeek-V4's head): sigmoid(scale (v' fn) + base) + eps.

    It starts as the mean: fn is zero and the base's sigmoid is 1/n.
    """

    def __init__(self, streams: int, dim: int) -> None:
        super().__init__(streams, dim)
        self.projection = nn.Parameter(torch.zeros(streams, streams * dim))
        self.gate = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.full((streams,), -math.log(streams - 1) if streams > 1 else 20.0))

    def forward(self, streams: Streams, projected: Projected = None) -> Vector:
        """Weigh and add up."""
        logits = kernels.project(streams, self.projection, NORM_EPS) * self.gate + self.bias
        return kernels.read(streams, logits.sigmoid() + GATE_EPS)


class LastPre(ReadOut):
    """The read weights that the last sublayer projected, which in a single pass no sublayer is left to use."""

    def forward(self, streams: Streams, projected: Projected = None) -> Vector:
        """Weigh and add up."""
        assert projected is not None
        return kernels.read(streams, projected)


READ_OUTS: dict[str, type[ReadOut]] = {"mean": Mean, "sum": Sum, "gated": Gated, "last_pre": LastPre}
"""Every read-out by the name that `connection.read_out` takes."""
