"""Manifold-Constrained Hyper-Connections (arXiv 2512.24880, Eq. 7-9): sigmoid reads and writes, a constrained mixer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train.config.schema import ConnectionConfig
from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import MIXERS, Mixer, Sinkhorn

NORM_EPS = 1e-6
PROJECTION_STD = 0.02
HOME_LOGIT = 3.0


class ManifoldConnection(Connection):
    """Logits from the joint RMS norm of all n streams, then H_pre = sigmoid, H_post = 2 sigmoid, H_res = mixer.

    One fused projection of all nC entries gives the n + n + k logits; the norm divides the projection, not the bias,
    so a zero vector gives the bias. Needs n >= 2: one stream is the plain residual.
    """

    def __init__(self, config: ConnectionConfig, dim: int, index: int) -> None:
        super().__init__(config, dim, index)
        self.mixer = _mixer(config)
        self.guarantees = self.mixer.guarantees
        self.sizes = [self.streams, self.streams, self.mixer.logits]
        self.projection = nn.Parameter(torch.empty(sum(self.sizes), self.streams * dim).normal_(std=PROJECTION_STD))
        self.gate = nn.Parameter(torch.full((3,), float(config.gate_init)))
        self.bias = nn.Parameter(torch.cat([*self._read_write_bias(), self.mixer.bias(config.init)]))

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """The constrained maps of every token."""
        pre, post, res = self.logits(streams).split(self.sizes, dim=-1)
        return Maps(pre.sigmoid(), 2 * post.sigmoid(), self.mixer(res))

    def logits(self, streams: Float[Tensor, "batch seq n C"]) -> Float[Tensor, "batch seq k"]:
        """The logits of pre, post and res, in this order: `gate (v projection) / r + bias`, r the RMS of all of v."""
        joint = streams.float().flatten(-2)
        scale = (joint.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        gates = torch.cat([gate.expand(size) for gate, size in zip(self.gate, self.sizes, strict=True)])
        return joint @ self.projection.T * scale * gates + self.bias

    def _read_write_bias(self) -> tuple[Tensor, Tensor]:
        """Biases of pre and post: by policy, read the mean of the streams or the home stream; always write 1."""
        n = self.streams
        pre = {
            "home": torch.full((n,), -HOME_LOGIT).index_fill(0, torch.tensor(self.index % n), HOME_LOGIT),
            "uniform": torch.zeros(n),
        }.get(self.config.init, torch.full((n,), -math.log(n - 1)))
        return pre, torch.zeros(n)

    def flops_per_token(self) -> int:
        """Read, write, the joint norm, the projection and the mixer's rounds."""
        width = self.streams * self.dim
        rounds = 4 * self.streams**2 * self.config.iterations if self.config.mixer == "sinkhorn" else 0
        return super().flops_per_token() + 2 * width + 2 * width * sum(self.sizes) + rounds


def _mixer(config: ConnectionConfig) -> Mixer:
    if config.mixer == "sinkhorn":
        return Sinkhorn(config.streams, config.iterations, config.order)
    return MIXERS[config.mixer](config.streams)
