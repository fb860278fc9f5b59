"""The residual path of a whole model: expand, one connection a sublayer, read out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mhc_train.connections.interface import Connection, Maps
from mhc_train.mixers import Guarantee, Law

SCALE_STD = 0.1


class State(NamedTuple):
    """What travels between two sublayers."""

    streams: Float[Tensor, "batch seq n C"]
    """The residual streams, float32, or less if `Path.stream_dtype` says so."""
    maps: Maps | None
    """The maps of the sublayer that comes next; None before they are made, and after the last sublayer."""
    projected: Float[Tensor, "batch seq n"] | None = None
    """The read weights that the sublayer which comes next has projected: those of its successor in a single pass."""


class Path(nn.Module):
    """Strings the connections of a model together; all that the transformer knows of its residual streams.

    `cross` is one write and the next read, in one pass over the streams where there is a kernel for it. Where a model
    is cut in two, `write` and `read` stand alone: a state without maps is the least that can be kept there.

    `stream_dtype` is what the streams are kept in, where it is less than the embedding's precision. It is no part of a
    checkpoint and may be set at any time.

    Args:
        connections: one a sublayer, all of the same number of streams.
        read_out: from streams, and in a single pass the last projected read weights, to what the final norm sees.
        scaled: whether streams start from the embedding times a learned scale, instead of from copies of it.
    """

    def __init__(self, connections: list[Connection], read_out: nn.Module, scaled: bool = False) -> None:
        super().__init__()
        self.connections = nn.ModuleList(connections)
        self.read_out = read_out
        self.stream_dtype = torch.float32
        self.scale = nn.Parameter(_mean_one(self.streams, connections[0].dim)) if scaled else None

    @property
    def streams(self) -> int:
        """Number n of residual streams."""
        return self[0].streams

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """The laws that every sublayer's H_res obeys, each with the widest tolerance and the narrowest domain."""
        return tuple(joint for law in Law if (joint := self._guarantee(law)) is not None)

    @property
    def renounced(self) -> frozenset[Law]:
        """The laws that a sublayer's H_res does not aim at."""
        return frozenset(law for connection in self for law in connection.renounced)

    @property
    def float64(self) -> bool:
        """Whether any sublayer's maps are computed in float64."""
        return any(connection.float64 for connection in self)

    def __getitem__(self, index: int) -> Connection:
        connection = self.connections[index]
        assert isinstance(connection, Connection)
        return connection

    def __len__(self) -> int:
        return len(self.connections)

    def __iter__(self) -> Iterator[Connection]:
        return (self[index] for index in range(len(self)))

    def enter(self, embedding: Float[Tensor, "batch seq C"]) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """Give every stream the embedding and read the first sublayer's input."""
        return self.read(0, self.expand(embedding))

    def expand(self, embedding: Float[Tensor, "batch seq C"]) -> State:
        """Give every stream the embedding; nothing has been read yet."""
        streams = embedding.unsqueeze(-2)
        if self.scale is not None:
            streams = streams * self.scale
        elif self.streams > 1:
            streams = streams.expand(-1, -1, self.streams, -1).contiguous()
        return State(streams if self.stream_dtype == torch.float32 else streams.to(self.stream_dtype), None)

    def cross(
        self, index: int, state: State, output: Float[Tensor, "batch seq C"]
    ) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """Write sublayer `index`'s output, then read the next one's input; after the last, read the streams out."""
        if index + 1 == len(self):
            return self.read(index + 1, self.write(index, state, output))
        assert state.maps is not None
        following, pre = self[index + 1], self._given(state)
        with _float32(state.streams):
            output = output.to(state.streams.dtype)
            streams, maps, x = following.cross(self[index], state.streams, output, state.maps, pre)
        return self._reached(streams, maps, pre), x

    def write(self, index: int, state: State, output: Float[Tensor, "batch seq C"]) -> State:
        """Write sublayer `index`'s output; the next sublayer's maps are yet to be made."""
        assert state.maps is not None
        with _float32(state.streams):
            streams = self[index].write(state.streams, output.to(state.streams.dtype), state.maps)
        return State(streams, None, state.projected)

    def read(self, index: int, state: State) -> tuple[State, Float[Tensor, "batch seq C"]]:
        """Make sublayer `index`'s maps and read its input; after the last, read the streams out."""
        with _float32(state.streams):
            if index == len(self):
                return State(state.streams, None), self.read_out(state.streams, state.projected)
            pre = self._given(state)
            maps, x = self[index].enter(state.streams, pre)
        return self._reached(state.streams, maps, pre), x

    @contextmanager
    def step_by_step(self) -> Iterator[None]:
        """Within, every step of a crossing is an operator of its own, so that there are gradients at all maps."""
        fused = [(connection, connection.fuses) for connection in self]
        for connection, _ in fused:
            connection.fuses = False
        try:
            yield
        finally:
            for connection, fuses in fused:
                connection.fuses = fuses

    def anneal(self, progress: float) -> None:
        """Tell every connection what share of the training is over, 0 to 1."""
        for connection in self:
            connection.anneal(progress)

    def _given(self, state: State) -> Tensor | None:
        """The read weights that the next sublayer is given; None where it makes its own."""
        return None

    def _reached(self, streams: Tensor, maps: Maps, pre: Tensor | None) -> State:
        """The state before a sublayer, of which these maps were made; it read through `pre`, if that was given."""
        return State(streams, maps)

    def _guarantee(self, law: Law) -> Guarantee | None:
        found = [g for connection in self for g in connection.guarantees if g.law == law]
        if len(found) < len(self):
            return None
        return Guarantee(law, max(g.tolerance for g in found), min(g.logit_range for g in found))


class SinglePassPath(Path):
    """Every sublayer reads with the weights that its predecessor projected (DeepSeek-V4.1).

    A read then needs no norm and projection of the state that was just written, so that a boundary between sublayers
    can be one pass over the streams. The first sublayer reads stream 0.
    """

    def _given(self, state: State) -> Tensor:
        if state.projected is not None:
            return state.projected
        streams = state.streams
        first = torch.eye(self.streams, dtype=torch.float32, device=streams.device)[0]
        return first.expand(streams.shape[:-1])

    def _reached(self, streams: Tensor, maps: Maps, pre: Tensor | None) -> State:
        assert pre is not None
        return State(streams, maps._replace(pre=pre), maps.pre)


def _mean_one(streams: int, dim: int) -> Float[Tensor, "n C"]:
    """Random scales whose mean over the streams is 1, so that the mean of the streams is the embedding."""
    noise = torch.empty(streams, dim).normal_(std=SCALE_STD)
    return 1 + noise - noise.mean(0)


def _float32(streams: Tensor) -> torch.autocast:
    """Coefficients and stream arithmetic keep float32 whatever precision the sublayers run in."""
    return torch.autocast(streams.device.type, enabled=False)
