"""Observes a model of ours: one forward and one backward pass over fixed tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from mhc_train.connections import Connection, Maps, Path, State
from mhc_train.diagnostics.observation import Backward, Crossing, Observation
from mhc_train.mixers import Mixer
from mhc_train.model import Transformer

TEXT = "validation tokens"


class _Seen(NamedTuple):
    """What passes a sublayer, still part of the graph."""

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
    everything: list[_Seen] = []
    with torch.enable_grad(), model.path.step_by_step():  # also where the backward pass runs sublayers again
        # Kept here, not returned: a sharded model replaces the tensors that it returns by others.
        logits, _ = model(blocks[:, :-1], observe=lambda _, *what: everything.append(_Seen(*what)))
        *seen, end = everything
        loss = F.cross_entropy(logits.float().flatten(0, 1), blocks[:, 1:].flatten())
        totals, reads, made = _through_all(loss, seen, end)
        with _whole(model):
            crossings = [
                _crossing(
                    model.path[index],
                    what,
                    None if initial is None else initial[index],
                    totals[index : index + 2],
                    at_x,
                    at_maps,
                )
                for index, (what, at_x, at_maps) in enumerate(zip(seen, reads, made, strict=True))
            ]
    return Observation(
        names=list(model.sublayer_names()),
        crossings=crossings,
        basis=basis,
        last=tokens_of(end.state.streams),
        loss=loss.item(),
        guarantees=model.path.guarantees,
        renounced=model.path.renounced,
    )


@contextmanager
def _whole(model: Transformer) -> Iterator[None]:
    """Where a model is sharded, the path's parameters are gathered inside, as they are in its own passes."""
    if not hasattr(model, "unshard"):
        yield
        return
    sharded: Any = model
    sharded.unshard()
    yield
    sharded.reshard()


def _through_all(loss: Tensor, seen: list[_Seen], end: _Seen) -> tuple[list[Tensor], list[Tensor], list[Maps]]:
    """The loss's gradient at the streams before every sublayer and at the end, at its input, and at the maps."""
    streams = [*(what.state.streams for what in seen), end.state.streams]
    inputs = [what.x for what in seen]
    found = iter(_gradients([loss], [*streams, *inputs, *(part for what in seen for part in what.own)]))
    totals, reads = [next(found) for _ in streams], [next(found) for _ in inputs]
    return totals, reads, [Maps(next(found), next(found), next(found)) for _ in seen]


def gradient_at_logits(mixer: Mixer, logits: Tensor, at_res: Tensor) -> Tensor:
    """The gradient at the mixer's logits: the mixer alone, run again on them."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        return _gradients([mixer(leaf)], [leaf], [at_res])[0]


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


def _crossing(
    connection: Connection,
    what: _Seen,
    initial: Connection | None,
    at_streams: list[Tensor],
    at_x: Tensor,
    at_maps: Maps,
) -> Crossing:
    """One sublayer, from what was seen of it and the loss's gradient at all that it touches."""
    streams = what.state.streams.detach()
    with torch.no_grad():
        mixing = connection.mixing(streams)
        start = None if initial is None else initial.to(streams.device).maps(streams).res
    return Crossing(
        pre=tokens_of(what.maps.pre),
        post=tokens_of(what.maps.post),
        res=tokens_of(what.maps.res),
        logits=None if mixing is None else tokens_of(mixing[1]),
        initial=None if start is None else tokens_of(start),
        streams=tokens_of(streams),
        output=tokens_of(what.output),
        backward=Backward(
            after=tokens_of(at_streams[1]),
            read=tokens_of(at_x),
            coefficients=tokens_of(_gradients(list(what.own), [what.state.streams], list(at_maps))[0]),
            total=tokens_of(at_streams[0]),
            logits=None if mixing is None else tokens_of(gradient_at_logits(*mixing, at_maps.res)),
        ),
    )


def tokens_of(values: Tensor) -> Tensor:
    """On the CPU, without graph, batch and sequence in one: (batch, seq, ...) to (tokens, ...)."""
    return values.detach().flatten(0, 1).cpu()
