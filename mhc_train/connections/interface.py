"""What a connection is: maps from the streams, a read through H_pre, a write through H_res and H_post."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from mhc_train.config.schema import ConnectionConfig
from mhc_train.mixers import Guarantee


class Maps(NamedTuple):
    """The three maps of one sublayer, per token, float32."""

    pre: Float[Tensor, "batch seq n"]
    """H_pre: the sublayer sees `sum_i pre[i] X[i]`."""
    post: Float[Tensor, "batch seq n"]
    """H_post: stream i receives `post[i] y`."""
    res: Float[Tensor, "batch seq n n"]
    """H_res: stream i becomes `sum_j res[i, j] X[j]`; row i receives, column j sends."""


class Connection(nn.Module, ABC):
    """Ties one sublayer to n residual streams: X' = H_res X + H_post^T F(norm(H_pre X)).

    A subclass gives `maps`; it may replace `read` and `write` by something faster that means the same.
    """

    guarantees: tuple[Guarantee, ...] = ()
    """The laws that H_res obeys for every token (see `mhc_train.mixers.interface`)."""

    def __init__(self, config: ConnectionConfig, dim: int, index: int) -> None:
        super().__init__()
        self.config, self.dim, self.index = config, dim, index
        self.streams = config.streams

    @abstractmethod
    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """H_pre, H_post and H_res of every token, from its streams alone (so the connection is causal)."""

    def read(self, streams: Float[Tensor, "batch seq n C"]) -> tuple[Float[Tensor, "batch seq C"], Maps]:
        """The sublayer's input, before its norm, and the maps that the write will need."""
        maps = self.maps(streams)
        # A product and a sum, not a batched matrix product of one row: seven times faster on a CPU.
        return (maps.pre.unsqueeze(-1) * streams).sum(-2), maps

    def write(
        self, streams: Float[Tensor, "batch seq n C"], output: Float[Tensor, "batch seq C"], maps: Maps
    ) -> Float[Tensor, "batch seq n C"]:
        """The streams after the sublayer: mixed by H_res, with the sublayer's output added through H_post."""
        return maps.res @ streams + maps.post.unsqueeze(-1) * output.unsqueeze(-2)

    def flops_per_token(self) -> int:
        """Forward floating-point operations of read and write a token; a subclass adds those of its maps."""
        n = self.streams
        return 2 * n * self.dim * (n + 2)
