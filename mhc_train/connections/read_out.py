"""Read-outs: how n streams become the one vector that the final norm sees."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

GATE_EPS = 1e-6


class Mean(nn.Module):
    """The mean of the streams: copies of the embedding come out as the embedding."""

    def __init__(self, streams: int, dim: int) -> None:
        super().__init__()

    def forward(self, streams: Float[Tensor, "batch seq n C"]) -> Float[Tensor, "batch seq C"]:
        """Average."""
        return streams.mean(-2)


class Sum(nn.Module):
    """The sum of the streams (the HC paper's); the final norm removes the factor n."""

    def __init__(self, streams: int, dim: int) -> None:
        super().__init__()

    def forward(self, streams: Float[Tensor, "batch seq n C"]) -> Float[Tensor, "batch seq C"]:
        """Add up."""
        return streams.sum(-2)


class Gated(nn.Module):
    """A weighted sum whose weights depend on the token (DeepSeek-V4's head): sigmoid(scale (v' fn) + base) + eps.

    It starts as the mean: fn is zero and the base's sigmoid is 1/n.
    """

    def __init__(self, streams: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.zeros(streams, streams * dim))
        self.gate = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.full((streams,), -math.log(streams - 1) if streams > 1 else 20.0))

    def forward(self, streams: Float[Tensor, "batch seq n C"]) -> Float[Tensor, "batch seq C"]:
        """Weigh and add up."""
        joint = streams.float().flatten(-2)
        scale = (joint.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        weights = (joint @ self.projection.T * scale * self.gate + self.bias).sigmoid() + GATE_EPS
        return (weights.unsqueeze(-1) * streams).sum(-2)


READ_OUTS: dict[str, type[nn.Module]] = {"mean": Mean, "sum": Sum, "gated": Gated}
"""Every read-out by the name that `connection.read_out` takes."""
