"""Observes a model of ours: one forward and one backward pass over fixed tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from mhc_train.connections import Connection, Maps, Path, State
from mhc_train.diagnostics.observation import Backward, Crossing, Observation
from mhc_train.model import Transformer

TEXT = "validation tokens"


@dataclass(frozen=True)
class _Seen:
    """What the model hands out of a sublayer, still part of the graph.

    No tuple: in those, a sharded model puts views of its own in the place of tensors, outside of the graph.
    """

    state: State
    x: Tensor
    output: Tensor

    @property
    def maps(self) -> Maps:
        """In a single pass, `pre` is what the sublayer before projected."""
        assert self.state.maps is not None
        return self.state.maps

    @property
    def own(self) -> Maps:
        """The maps that were made of this sublayer's streams, whichever sublayer uses them."""
        projected = self.state.projected
        return self.maps if projected is None else self.maps._replace(pre=projected)


def observe(
    model: Transformer, blocks: Int[Tensor, "blocks seq_plus_1"], initial: Path | None = None, basis: str = TEXT
) -> Observation:
    """Run the model in float32 over `blocks` and keep streams, maps, outputs and the loss's true gradients.

    The model's own gradients are not touched.

    Args:
        model: on any device; it may be sharded.
        blocks: sequences of tokens, each with the token that follows it.
        initial: the path as it was before training, to see how far its mixers have moved.
        basis: what the tokens are, in words.
    """
    blocks = blocks.to(model.rotation.device)
    with torch.enable_grad():
        logits, (*seen, end) = model(blocks[:, :-1], observe=lambda _, *what: _Seen(*what))
        loss = F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten())
        backward = _backward(model, loss, seen, end)
    crossings = [
        _crossing(model.path[index], what, returned, None if initial is None else initial[index])
        for index, (what, returned) in enumerate(zip(seen, backward, strict=True))
    ]
    return Observation(
        names=list(model.sublayer_names()),
        crossings=crossings,
        basis=basis,
        last=_tokens(end.state.streams),
        loss=loss.item(),
        guarantees=model.path.guarantees,
        renounced=model.path.renounced,
    )


def _backward(model: Transformer, loss: Tensor, seen: list[_Seen], end: _Seen) -> list[Backward]:
    """How the loss's gradient passes every sublayer: one pass through the whole model, then a local one each."""
    streams = [*(what.state.streams for what in seen), end.state.streams]
    inputs = [what.x for what in seen]
    coefficients = [part for what in seen for part in what.own]
    found = _gradients([loss], [*streams, *inputs, *coefficients])
    totals, found = found[: len(streams)], found[len(streams) :]
    reads, found = found[: len(inputs)], found[len(inputs) :]
    made = [Maps(*found[first : first + 3]) for first in range(0, len(found), 3)]
    return [
        Backward(
            after=_tokens(totals[index + 1]),
            read=_tokens(reads[index]),
            coefficients=_tokens(_gradients(list(what.own), [what.state.streams], list(made[index]))[0]),
            total=_tokens(totals[index]),
            logits=_at_logits(model.path[index], what, made[index].res),
        )
        for index, what in enumerate(seen)
    ]


def _at_logits(connection: Connection, what: _Seen, at_res: Tensor) -> Tensor | None:
    """The gradient at the mixer's logits: the mixer alone, run again on them."""
    mixing = connection.mixing(what.state.streams.detach())
    if mixing is None:
        return None
    mixer, logits = mixing[0], mixing[1].detach().requires_grad_()
    return _tokens(_gradients([mixer(logits)], [logits], [at_res])[0])


def _gradients(outputs: list[Tensor], inputs: list[Tensor], upstream: list[Tensor] | None = None) -> list[Tensor]:
    """The derivative of `outputs` along `upstream` by every input; zero where no way leads from one to the other.

    The graph stays.
    """
    along = upstream or [torch.ones_like(output) for output in outputs]
    ends = [(output, weight) for output, weight in zip(outputs, along, strict=True) if output.requires_grad]
    wanted = [number for number, x in enumerate(inputs) if x.requires_grad]
    found = [torch.zeros_like(x) for x in inputs]
    if ends and wanted:
        roots, weights = zip(*ends, strict=True)
        leaves = [inputs[number] for number in wanted]
        gradients = torch.autograd.grad(roots, leaves, weights, retain_graph=True, materialize_grads=True)
        for number, gradient in zip(wanted, gradients, strict=True):
            found[number] = gradient
    return found


def _crossing(connection: Connection, what: _Seen, backward: Backward, initial: Connection | None) -> Crossing:
    streams = what.state.streams.detach()
    with torch.no_grad():
        mixing = connection.mixing(streams)
        start = None if initial is None else initial.to(streams.device).maps(streams).res
    return Crossing(
        pre=_tokens(what.maps.pre),
        post=_tokens(what.maps.post),
        res=_tokens(what.maps.res),
        logits=None if mixing is None else _tokens(mixing[1]),
        initial=None if start is None else _tokens(start),
        streams=_tokens(streams),
        output=_tokens(what.output),
        backward=backward,
    )


def _tokens(values: Tensor) -> Tensor:
    """On the CPU, without graph, batch and sequence in one: (batch, seq, ...) to (tokens, ...)."""
    return values.detach().flatten(0, 1).cpu()
