"""Collects what a measurement needs from a model: one forward and one backward pass over fixed tokens."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhc_train.connections import Maps, State
from mhc_train.model import Transformer


@dataclass(frozen=True)
class Crossing:
    """What one sublayer did to the streams."""

    streams: Float[Tensor, "batch seq n C"]
    """Before the write."""
    maps: Maps
    output: Float[Tensor, "batch seq C"]
    """The sublayer's own output, before H_post."""


@dataclass
class Observation:
    """A model's residual path over some tokens."""

    names: list[str]
    """Of the sublayers, in order."""
    crossings: list[Crossing] = field(default_factory=list)
    gradients: list[Float[Tensor, "batch seq n C"]] = field(default_factory=list)
    """Of the loss, at the streams after each sublayer."""
    last: Tensor | None = None
    """The streams after the last sublayer."""
    loss: float = float("nan")

    def record(self, index: int, state: State, output: Tensor) -> None:
        """The observer that the model calls."""
        if index == len(self.names):
            self.last = state.streams
        else:
            assert state.maps is not None
            self.crossings.append(Crossing(state.streams, state.maps, output))


def observe(model: Transformer, blocks: Int[Tensor, "blocks seq_plus_1"]) -> Observation:
    """Run the model in float32 over `blocks` and keep streams, maps, outputs and the loss's true gradients.

    The model's own gradients are not touched.
    """
    observation = Observation(list(model.sublayer_names()))
    blocks = blocks.to(model.rotation.device)
    with torch.enable_grad():
        logits = model(blocks[:, :-1], observe=observation.record)
        loss = F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten())
        assert observation.last is not None
        after = [crossing.streams for crossing in observation.crossings[1:]] + [observation.last]
        observation.gradients = [gradient.detach() for gradient in torch.autograd.grad(loss, after)]
    observation.crossings = [
        Crossing(c.streams.detach(), Maps(*(part.detach() for part in c.maps)), c.output.detach())
        for c in observation.crossings
    ]
    observation.last = observation.last.detach()
    observation.loss = loss.item()
    return observation
