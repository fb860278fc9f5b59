"""What a connection is: maps from the streams, a read through H_pre, a write through H_res and H_post."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from mhc_train import kernels
from mhc_train.mixers import Guarantee, Law, Mixer
from mhc_train.schema import ConnectionConfig


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

    A subclass gives `maps`; it may replace `read` and `write` by something faster that means the same. A new one is a
    subclass in a file of its own and an option in `conf/connection/` (docs/your-own.md).

    Args:
        config: the connection's configuration.
        dim: width C.
        index: of the sublayer, from 0.
        sublayers: the model's number of them.

    Raises:
        ValueError: not defined for this configuration; the message says what to change.
    """

    name: ClassVar[str]
    """What `connection.kind` calls it."""
    guarantees: tuple[Guarantee, ...] = ()
    """The laws that H_res obeys for every token (see `mhc_train.mixers.interface`)."""
    renounced: frozenset[Law] = frozenset()
    """The laws that H_res does not aim at, though its maps are constrained."""
    float64: bool = False
    """Whether its maps are computed in float64, which Apple's GPUs cannot."""

    def __init__(self, config: ConnectionConfig, dim: int, index: int, sublayers: int) -> None:
        super().__init__()
        self.config, self.dim, self.index, self.sublayers = config, dim, index, sublayers
        self.streams = config.streams

    @abstractmethod
    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """H_pre, H_post and H_res of every token, from its streams alone (so the connection is causal)."""

    def mixing(self, streams: Float[Tensor, "batch seq n C"]) -> tuple[Mixer, Float[Tensor, "batch seq k"]] | None:
        """The mixer and the logits that it makes H_res of, for a diagnosis; None where H_res is made of nothing."""
        return None

    def read(
        self, streams: Float[Tensor, "batch seq n C"], pre: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq C"]:
        """The sublayer's input, before its norm."""
        return kernels.read(streams, pre)

    def write(
        self, streams: Float[Tensor, "batch seq n C"], output: Float[Tensor, "batch seq C"], maps: Maps
    ) -> Float[Tensor, "batch seq n C"]:
        """The streams after the sublayer: mixed by H_res, with the sublayer's output added through H_post."""
        return kernels.write(streams, output, maps.post, maps.res)

    def anneal(self, progress: float) -> None:
        """Called with the share of the training that is over, 0 to 1, for what changes as training goes on."""

    def flops_per_token(self) -> int:
        """Forward floating-point operations of read and write a token; a subclass adds those of its maps."""
        n = self.streams
        return 2 * n * self.dim * (n + 2)
