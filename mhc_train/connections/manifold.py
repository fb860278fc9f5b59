"""Manifold-Constrained Hyper-Connections (arXiv 2512.24880, Eq. 7-9): sigmoid reads and writes, a constrained mixer."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train import kernels
from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import Mixer, build_mixer
from mhc_train.schema import ConnectionConfig

PROJECTION_STD = 0.02
HOME_LOGIT = 3.0


class ManifoldConnection(Connection):
    """Logits from the joint RMS norm of all n streams, then H_pre = sigmoid, H_post = 2 sigmoid, H_res = mixer.

    One fused projection of all nC entries gives the n + n + k logits; the norm divides the projection, not the bias,
    so a zero vector gives the bias. Needs n >= 2: one stream is the plain residual.
    """

    name = "mhc"
    fused_steps = (*Connection.fused_steps, "logits")

    def __init__(self, config: ConnectionConfig, dim: int, index: int, sublayers: int) -> None:
        super().__init__(config, dim, index, sublayers)
        keys = {**vars(config), "sublayers": sublayers}
        self.mixer = build_mixer(config.mixer, self.streams, keys, config.options)
        self.guarantees, self.renounced = self.mixer.guarantees, self.mixer.renounced
        self.float64, self.mixes = self.mixer.float64, self.mixer.mixes
        self.sizes = [size for size in (self.streams, self.streams, self.mixer.logits) if size]
        if config.dynamic:
            self.projection = nn.Parameter(torch.empty(sum(self.sizes), self.streams * dim).normal_(std=PROJECTION_STD))
            self.gate = nn.Parameter(torch.full((len(self.sizes),), float(config.gate_init)))
        self.bias = nn.Parameter(torch.cat([*self._read_write_bias(), self._mixer_bias()]))
        # Where it changes, it is in the checkpoint, so that a diagnosis sees the map that the training last used.
        multiplier, changes = torch.tensor(float(config.write_multiplier)), config.final_write_multiplier is not None
        self.register_buffer("write_multiplier", multiplier, persistent=changes)
        self.write_multiplier: Tensor

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """The constrained maps of every token."""
        return self._constrain(self.logits(streams))

    def logits(self, streams: Float[Tensor, "batch seq n C"]) -> Float[Tensor, "batch seq k"]:
        """The logits of pre, post and res, in this order: `gate (v projection) / r + bias`, r the RMS of all of v."""
        if not self.config.dynamic:
            return self.bias.expand(*streams.shape[:2], -1)
        return self._gated(kernels.project(streams, self.projection, self.config.norm_eps))

    def fused(
        self,
        streams: Float[Tensor, "batch seq n C"],
        write: kernels.Write | None,
        pre: Float[Tensor, "batch seq n"] | None,
    ) -> tuple[Float[Tensor, "batch seq n C"], Maps, Float[Tensor, "batch seq C"]]:
        """Logits and read weights come from the pass over the streams, the other maps from the logits."""
        if not self.config.dynamic:
            maps = self._constrain(self.bias.expand(*streams.shape[:2], -1))
            written, x, _ = kernels.cross(streams, write, None, maps.pre if pre is None else pre)
            return written, maps, x
        projection = kernels.Projection(self.projection, self.config.norm_eps)
        reading = kernels.Reading(self.gate[0], self.bias[: self.streams], self.config.read_eps) if pre is None else pre
        written, x, features = kernels.cross(streams, write, projection, reading)
        return written, self._constrain(self._gated(features)), x

    def _gated(self, features: Float[Tensor, "batch seq k"]) -> Float[Tensor, "batch seq k"]:
        gates = torch.cat([gate.expand(size) for gate, size in zip(self.gate, self.sizes, strict=True)])
        return features * gates + self.bias

    def _constrain(self, logits: Float[Tensor, "batch seq k"]) -> Maps:
        pre, post, res = logits.tensor_split([self.streams, 2 * self.streams], dim=-1)
        config = self.config
        return Maps(
            _plus(pre.sigmoid(), config.read_eps),
            _plus(self.write_multiplier * post.sigmoid(), config.write_eps),
            self.mixer(res),
        )

    def mixing(self, streams: Float[Tensor, "batch seq n C"]) -> tuple[Mixer, Float[Tensor, "batch seq k"]] | None:
        """Its mixer and the logits of res."""
        return (self.mixer, self.logits(streams)[..., 2 * self.streams :]) if self.mixer.logits else None

    def anneal(self, progress: float) -> None:
        """Move the write multiplier on its way from start to end."""
        start, end = self.config.write_multiplier, self.config.final_write_multiplier
        if end is not None:
            self.write_multiplier.fill_(start + (end - start) * progress)

    def _read_write_bias(self) -> tuple[Tensor, Tensor]:
        """Biases of pre and post: by policy, read the mean of the streams or the home stream; always write 1."""
        n = self.streams
        # In a single pass, these read weights are the next sublayer's.
        home = (self.index + self.config.single_pass) % n
        pre = {
            "home": torch.full((n,), -HOME_LOGIT).index_fill(0, torch.tensor(home), HOME_LOGIT),
            "uniform": torch.zeros(n),
        }.get(self.config.init, torch.full((n,), -math.log(n - 1)))
        return pre, torch.zeros(n)

    def _mixer_bias(self) -> Tensor:
        init, known = self.config.init, self.mixer.policies
        if init not in known:
            raise ValueError(
                f"mixer {self.config.mixer} has no start {init!r}; take connection.init={' or '.join(known)}"
            )
        bias = self.mixer.bias(init)
        if bias.shape != (self.mixer.logits,):
            raise ValueError(
                f"mixer {self.config.mixer} needs {self.mixer.logits} logits, but its bias for {init!r} has shape "
                f"{tuple(bias.shape)}"
            )
        return bias

    def flops_per_token(self) -> int:
        """Read, write, the joint norm, the projection and the mixer's own."""
        width = self.streams * self.dim
        projection = 2 * width + 2 * width * sum(self.sizes) if self.config.dynamic else 0
        return super().flops_per_token() + projection + self.mixer.flops_per_token()


def _plus(values: Tensor, eps: float) -> Tensor:
    return values + eps if eps else values
