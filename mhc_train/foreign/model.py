"""A foreign checkpoint's residual path as connections of ours, and what can be observed of it without its data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mhc_train.connections import Maps
from mhc_train.connections.manifold import ManifoldConnection
from mhc_train.diagnostics.observation import Crossing, Observation
from mhc_train.foreign.families import Family
from mhc_train.mixers import Guarantee, Law, build_mixer

BIASES = "the biases alone: no data"
SAMPLED = "sampled unit-RMS inputs: no data"
AT_ONCE = 256
"""Tokens whose streams are held at a time."""


@dataclass(frozen=True)
class ForeignModel:
    """The hyper-connections of somebody else's checkpoint; nothing else of it has been read."""

    source: str
    """Where it lies."""
    family: Family
    names: list[str]
    """Of the sublayers, in order."""
    connections: list[ManifoldConnection]
    """One a sublayer, in our convention: rows receive, columns send."""
    tensors: list[str]
    """Those that were read."""
    left_out: list[str]
    """Those that look like hyper-connections but are not on the main path: of layers that predict further tokens, of
    a read-out, of names that are not known."""
    bytes_read: int
    """From all files together, headers and config.json included."""
    depth_given: bool = True
    """Whether config.json says how many layers there are; otherwise the last one with tensors is the last."""
    head: list[float | None] | None = None
    """The read-out's weights of the biases alone, one a stream, None if not finite; None if it is not gated."""

    @property
    def streams(self) -> int:
        """Number n of residual streams."""
        return self.connections[0].streams

    @property
    def width(self) -> int:
        """C."""
        return self.connections[0].dim

    @property
    def convention(self) -> str:
        """How the family indexes and normalises its matrix, and how it is shown here."""
        family, config = self.family, self.connections[0].config
        if family.mixer == "identity":
            text = f"{family.title} mixes nothing: H_res = I"
        else:
            stored, shown = ("sender, receiver", "its transpose") if family.transposed else ("receiver, sender", "it")
            last = "columns" if config.order == "rows_first" else "rows"
            text = (
                f"{family.title} indexes its matrix ({stored}) and normalises {family.order.replace('_', ' ')}, "
                f"{config.iterations} rounds, eps {config.eps:g}; H_res is {shown}: rows receive, columns send, {last} "
                "are normalised last"
            )
        assumed = "; ".join(filter(None, (family.assumed, self._assumed_depth)))
        return f"{text}. Assumed: {assumed}" if assumed else text

    @property
    def _assumed_depth(self) -> str:
        if self.depth_given:
            return ""
        layers = len(self.names) // 2
        return f"there are {layers} layers, as many as have tensors, since config.json gives no number of them"

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it, as plain JSON data."""
        return {
            "source": self.source,
            "family": self.family.name,
            "title": self.family.title,
            "convention": self.convention,
            "streams": self.streams,
            "width": self.width,
            "sublayers": self.names,
            "depth": "config.json" if self.depth_given else "inferred from the tensors",
            "single_pass": self.family.single_pass,
            "read_out": self.family.read_out,
            "read_out_weights_of_biases": self.head,
            "tensors_read": len(self.tensors),
            "bytes_read": self.bytes_read,
            "left_out": self.left_out,
        }

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """What the family's mixer promises of H_res, given which side its declaration says is exact."""
        config = self.connections[0].config
        if self.family.exact is None and self.family.mixer != "identity":
            return (Guarantee(Law.POSITIVITY, 0.0),)
        order = "rows_first" if self.family.exact is Law.MASS else "columns_first"
        keys = {**vars(config), "order": order, "sublayers": len(self.names)}
        return build_mixer(config.mixer, self.streams, keys, {}).guarantees

    @torch.no_grad()
    def observe(self, tokens: int, seed: int = 0) -> Observation:
        """Every sublayer's maps of that many random tokens, drawn for each sublayer anew.

        Streams are normalised before they are projected: unit-RMS Gaussian vectors give the logits that streams
        without structure would. What a trained model's streams give, only text shows.

        Args:
            tokens: at least one.
            seed: of the drawing.
        """
        generator = torch.Generator().manual_seed(seed)
        sizes = [min(AT_ONCE, tokens - first) for first in range(0, tokens, AT_ONCE)]
        return self._observation((self._sampled(sizes, generator, c) for c in self.connections), SAMPLED)

    @torch.no_grad()
    def observe_biases(self) -> Observation:
        """The maps of one token whose streams are zero, so that only the biases are left."""
        zero = torch.zeros(1, 1, self.streams, self.width)
        return self._observation((_mapped(connection, zero) for connection in self.connections), BIASES)

    def _sampled(
        self, sizes: list[int], generator: torch.Generator, connection: ManifoldConnection
    ) -> tuple[Maps, Tensor | None]:
        drawn = (torch.randn(1, size, self.streams, self.width, generator=generator) for size in sizes)
        maps, logits = zip(*(_mapped(connection, streams) for streams in drawn), strict=True)
        whole = Maps(*(torch.cat(parts, 1) for parts in zip(*maps, strict=True)))
        return whole, None if logits[0] is None else torch.cat(logits, 1)

    def _observation(self, mapped: Iterator[tuple[Maps, Tensor | None]], basis: str) -> Observation:
        crossings: list[Crossing] = []
        projected: Tensor | None = None
        for maps, logits in mapped:
            own = maps.pre
            crossings.append(_crossing(maps._replace(pre=self._reads(own, projected)), logits))
            projected = own
        return Observation(self.names, crossings, basis, guarantees=self.guarantees)

    def _reads(self, own: Tensor, projected: Tensor | None) -> Tensor:
        """The read weights of a sublayer that projects `own`, after one that projected `projected`.

        In a single pass they are the earlier ones, and stream 0 alone for the first sublayer.
        """
        if not self.family.single_pass:
            return own
        return torch.eye(self.streams)[0].expand_as(own) if projected is None else projected


def _mapped(connection: ManifoldConnection, streams: Tensor) -> tuple[Maps, Tensor | None]:
    mixing = connection.mixing(streams)
    return connection.maps(streams), None if mixing is None else mixing[1]


def _crossing(maps: Maps, logits: Tensor | None) -> Crossing:
    pre, post, res = (part.flatten(0, 1) for part in maps)
    return Crossing(pre, post, res, None if logits is None else logits.flatten(0, 1))
