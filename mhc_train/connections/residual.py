"""The plain residual connection: one stream, X' = X + F(norm(X))."""

from jaxtyping import Float
from torch import Tensor

from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import Guarantee, Law


class Residual(Connection):
    """n = 1 and all maps equal to 1; no parameters."""

    guarantees = tuple(Guarantee(law, 0.0) for law in Law)

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        """Ones."""
        ones = streams.new_ones(streams.shape[:-1])
        return Maps(ones, ones, ones.unsqueeze(-1))

    def read(self, streams: Float[Tensor, "batch seq n C"]) -> tuple[Float[Tensor, "batch seq C"], Maps]:
        """The stream itself."""
        return streams.squeeze(-2), self.maps(streams)

    def write(
        self, streams: Float[Tensor, "batch seq n C"], output: Float[Tensor, "batch seq C"], maps: Maps
    ) -> Float[Tensor, "batch seq n C"]:
        """The sum."""
        return streams + output.unsqueeze(-2)

    def flops_per_token(self) -> int:
        """One addition an entry."""
        return self.dim
