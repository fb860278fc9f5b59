"""The residual path of a whole model: expand, one connection a sublayer, read out."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train.connections.interface import Connection, Maps


class State(NamedTuple):
    """What travels between two sublayers."""

    streams: Float[Tensor, "batch seq n C"]
    """The residual streams, float32."""
    maps: Maps | None
    """The maps of the sublayer that comes next; None after the last."""


class Path(nn.Module):
    """Strings the connections of a model together; all that the transformer knows of its residual streams.

    `cross` is one write and the next read. A connection that fuses the two, or reads with weights from the sublayer
    before, subclasses this.
    """

    def __init__(self, connections: list[Connection], read_out: nn.Module) -> None:
        super().__init__()
        self.connections = nn.ModuleList(connections)
        self.read_out = read_out

    @property
    def streams(self) -> int:
        """Number n of residual streams."""
        return self[0].streams

    def __getitem__(self, index: int) -> Connection:
        connection = self.connections[index]
        assert isinstance(connection, Connection)
        return connection

    def __len__(self) -> int:
        return len(self.connections)

    def enter(self, embedding: Float[Tensor, "batch seq C"]) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """Copy the embedding to every stream and read the first sublayer's input."""
        streams = embedding.unsqueeze(-2).expand(-1, -1, self.streams, -1)
        return self._read(0, streams)

    def cross(
        self, index: int, state: State, output: Float[Tensor, "batch seq C"]
    ) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """Write sublayer `index`'s output, then read the next one's input; after the last, read the streams out."""
        assert state.maps is not None
        with _float32(state.streams):
            streams = self[index].write(state.streams, output.to(state.streams.dtype), state.maps)
        return self._read(index + 1, streams)

    def _read(self, index: int, streams: Tensor) -> tuple[State, Tensor]:
        with _float32(streams):
            if index == len(self):
                return State(streams, None), self.read_out(streams)
            x, maps = self[index].read(streams)
        return State(streams, maps), x


def _float32(streams: Tensor) -> torch.autocast:
    """Coefficients and stream arithmetic keep float32 whatever precision the sublayers run in."""
    return torch.autocast(streams.device.type, enabled=False)
