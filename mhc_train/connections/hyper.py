"""Hyper-Connections: unconstrained maps of per-stream features (arXiv 2409.19606; arXiv 2512.24880, Eq. 5)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train import kernels
from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import Mixer
from mhc_train.mixers.free import Free
from mhc_train.schema import ConnectionConfig

NORM_EPS = 1e-6


class HyperConnection(Connection):
    """Each map is a bias plus a gate times tanh of a linear feature of every stream's own RMS norm.

    With xt the normed streams: pre = a_pre tanh(xt theta_pre) + b_pre, post likewise, and
    res[i, j] = a_res tanh(theta_res[i] . xt[j]) + b_res[i, j], so that column j depends on sender j.
    At the start theta = 0, b_pre is one-hot at the sublayer's home stream, b_post = 1 and b_res = I. Static
    hyper-connections (`dynamic` false) are the biases alone.
    """

    name = "hc"

    def __init__(self, config: ConnectionConfig, dim: int, index: int, sublayers: int) -> None:
        super().__init__(config, dim, index, sublayers)
        n = self.streams
        self.mixer = Free(n)
        self.guarantees = self.mixer.guarantees
        if config.dynamic:
            # Rows of theta: pre, post, then the n receivers of res.
            self.theta = nn.Parameter(torch.zeros(n + 2, dim))
            self.gate = nn.Parameter(torch.full((3,), float(config.gate_init)))
        self.bias_pre = nn.Parameter(F.one_hot(torch.tensor(index % n), n).float())
        self.bias_post = nn.Parameter(torch.ones(n))
        self.bias_res = nn.Parameter(self.mixer.bias("equivalent"))

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """The unconstrained maps of every token."""
        if not self.config.dynamic:
            return self._static_maps(streams)
        # Every stream by itself, as if each were a token: (batch, seq, sender, n + 2).
        return self._maps_of(kernels.project(streams.unsqueeze(-2), self.theta, NORM_EPS))

    def fused(
        self,
        streams: Float[Tensor, "batch seq n C"],
        write: kernels.Write | None,
        pre: Float[Tensor, "batch seq n"] | None,
    ) -> tuple[Float[Tensor, "batch seq n C"], Maps, Float[Tensor, "batch seq C"]]:
        """Features and read weights come from the pass over the streams, the other maps from the features."""
        if not self.config.dynamic:
            maps = self._static_maps(streams)
            written, x, _ = kernels.cross(streams, write, None, maps.pre if pre is None else pre)
            return written, maps, x
        reading = kernels.Reading(self.gate[0], self.bias_pre) if pre is None else pre
        written, x, features = kernels.cross(streams, write, kernels.Projection(self.theta, NORM_EPS), reading)
        return written, self._maps_of(features), x

    def mixing(self, streams: Float[Tensor, "batch seq n C"]) -> tuple[Mixer, Float[Tensor, "batch seq k"]]:
        """Its logits are the entries of H_res, which nothing constrains."""
        return self.mixer, self.maps(streams).res.flatten(-2)

    def _maps_of(self, features: Float[Tensor, "batch seq n k"]) -> Maps:
        features = features.tanh()
        pre = self.gate[0] * features[..., 0] + self.bias_pre
        post = self.gate[1] * features[..., 1] + self.bias_post
        res = self.gate[2] * features[..., 2:].transpose(-2, -1).flatten(-2) + self.bias_res
        return Maps(pre, post, self.mixer(res))

    def _static_maps(self, streams: Tensor) -> Maps:
        tokens = streams.shape[:2]
        pre, post, res = (part.expand(*tokens, -1) for part in (self.bias_pre, self.bias_post, self.bias_res))
        return Maps(pre, post, self.mixer(res))

    def flops_per_token(self) -> int:
        """Read, write, norm and the n + 2 features of every stream."""
        n = self.streams
        features = 2 * n * self.dim * (n + 2) + 3 * n * self.dim if self.config.dynamic else 0
        return super().flops_per_token() + features
