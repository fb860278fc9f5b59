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

    A subclass gives `maps`; it may replace `read` and `write` by something faster that means the same, and give
    `fused`, which does all of these steps at once. A new one is a subclass in a file of its own and an option in
    `conf/connection/` (docs/your-own.md).

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
    mixes: bool = True
    """False where H_res is always the identity, so that no product is needed."""
    fused_steps: ClassVar[tuple[str, ...]] = ("maps", "read")
    """The methods that `fused` stands for: a subclass that replaces one of them alone is not fused."""

    def __init__(self, config: ConnectionConfig, dim: int, index: int, sublayers: int) -> None:
        super().__init__()
        self.config, self.dim, self.index, self.sublayers = config, dim, index, sublayers
        self.streams = config.streams
        # A subclass that replaces a step, but not what does all at once, wants its own to be called.
        self.fuses = self._depth("fused") <= min(map(self._depth, self.fused_steps))
        self.writes_by_maps = type(self).write is Connection.write
        self.given_pre = config.single_pass or not config.dynamic
        """Whether its read weights are there before the streams are: nothing is made of them to read by."""

    @classmethod
    def _depth(cls, method: str) -> int:
        """How many classes up from here a method is defined."""
        return next(depth for depth, ancestor in enumerate(cls.__mro__) if method in vars(ancestor))

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
        return kernels.write(streams, output, maps.post, maps.res if self.mixes else None)

    def fused(
        self,
        streams: Float[Tensor, "batch seq n C"],
        write: kernels.Write | None,
        pre: Float[Tensor, "batch seq n"] | None,
    ) -> tuple[Float[Tensor, "batch seq n C"], Maps, Float[Tensor, "batch seq C"]]:
        """A write, if there is one, then maps and input of the streams that it leaves, by `kernels.cross`."""
        raise NotImplementedError

    def enter(
        self, streams: Float[Tensor, "batch seq n C"], pre: Float[Tensor, "batch seq n"] | None = None
    ) -> tuple[Maps, Float[Tensor, "batch seq C"]]:
        """Its maps, and what its sublayer reads: through its own H_pre, or through `pre` where that is given."""
        if self.fuses and kernels.fused(streams):
            return self.fused(streams, None, pre)[1:]
        maps = self.maps(streams)
        return maps, self.read(streams, maps.pre if pre is None else pre)

    def cross(
        self,
        previous: "Connection",
        streams: Float[Tensor, "batch seq n C"],
        output: Float[Tensor, "batch seq C"],
        maps: Maps,
        pre: Float[Tensor, "batch seq n"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq n C"], Maps, Float[Tensor, "batch seq C"]]:
        """Write what the previous sublayer put out, through its maps, then `enter`; in one pass where there is one."""
        if self.fuses and previous.writes_by_maps and kernels.fused(streams):
            return self.fused(streams, kernels.Write(output, maps.post, maps.res if previous.mixes else None), pre)
        written = previous.write(streams, output, maps)
        return written, *self.enter(written, pre)

    def anneal(self, progress: float) -> None:
        """Called with the share of the training that is over, 0 to 1, for what changes as training goes on."""

    def flops_per_token(self) -> int:
        """Forward floating-point operations of read and write a token; a subclass adds those of its maps."""
        n = self.streams
        return 2 * n * self.dim * (n + 2)
