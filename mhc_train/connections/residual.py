"""The residual connection: X' = X + F(norm(X)), for one stream or for several that are treated alike."""

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import Guarantee, Law
from mhc_train.mixers.interface import widen


class Residual(Connection):
    """Read the mean of the streams, write to each, mix none; no parameters. With one stream, the baseline.

    With several, it is what sublayers have that a configuration leaves out (`connection.where`, `first_layer`).
    """

    name = "residual"
    guarantees = tuple(Guarantee(law, 0.0) for law in Law)

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """1/n, 1 and the identity."""
        n = self.streams
        ones = widen(streams.new_ones(streams.shape[:-1]))
        return Maps(ones / n, ones, torch.eye(n, dtype=ones.dtype, device=ones.device).expand(*ones.shape, n))

    def read(
        self, streams: Float[Tensor, "batch seq n C"], pre: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq C"]:
        """The stream itself, where there is only one."""
        return streams.squeeze(-2) if self.streams == 1 else super().read(streams, pre)

    def write(
        self, streams: Float[Tensor, "batch seq n C"], output: Float[Tensor, "batch seq C"], maps: Maps
    ) -> Float[Tensor, "batch seq n C"]:
        """The sum."""
        return streams + output.unsqueeze(-2)

    def flops_per_token(self) -> int:
        """One addition an entry, and the mean of several streams."""
        return self.dim * self.streams + (2 * self.dim * self.streams if self.streams > 1 else 0)
