"""Observes a training step: of a few of its tokens, what its own forward pass has made of them anyway."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.connections import Path, State
from mhc_train.diagnostics.measurement import rounded
from mhc_train.diagnostics.observation import Crossing, Observation
from mhc_train.model import Transformer

TEXT = "training tokens"
LEFT_OUT = {"convention", "spans", "halves", "of_token_means", "meaning", "advice", "declared", "evidence"}
"""What a line of a watched training lacks of a whole document: matrices over the depth, and texts."""
COMPOSITE = {"index", "name", "forward_gain", "backward_gain", "spectral_norm", "difference_gain"}
"""What it has of every composite but the last one, of which it has all."""


class Glance(NamedTuple):
    """Copies of a few tokens' part of what passes a sublayer."""

    streams: Float[Tensor, "tokens n C"]
    output: Float[Tensor, "tokens C"]
    maps: tuple[Tensor, ...]
    """H_pre, H_post and H_res, (tokens, ...) each; none at the end."""


def glance(rows: int, stride: int, index: int, state: State, x: Tensor, output: Tensor) -> Glance:
    """An observer, once `rows` and `stride` are given: every `stride`-th token of the first `rows` sequences."""
    streams, output, *maps = (_some(part, rows, stride) for part in (state.streams, output, *(state.maps or ())))
    return Glance(streams, output, tuple(maps))


def _some(values: Tensor, rows: int, stride: int) -> Tensor:
    # A copy: a view would keep the whole tensor, which recomputation is there to let go.
    return values.detach()[:rows, ::stride].flatten(0, 1).clone()


class Watch:
    """Looks through a model's forward pass at a few tokens, and remembers the last look.

    Args:
        model: on any device; it may be sharded, compiled or wrapped where it is looked through.
        tokens: how many at most: the first whole sequences, or as many at even distances in the first one.
        seq_len: of the sequences.
        initial: the model's path as it was before training, on the same device.
    """

    def __init__(self, model: Transformer, tokens: int, seq_len: int, initial: Path) -> None:
        self._model, self._initial = model, initial
        self._rows, self._stride = max(1, tokens // seq_len), -(-seq_len // tokens)
        # One object for all steps, so that a compiled model knows it again.
        self._observer = partial(glance, self._rows, self._stride)
        self._loss = torch.tensor(0.0)
        self.forget()

    def forget(self) -> None:
        """Let go of what was seen, which is on the model's device."""
        self._seen: list[Glance] = []
        self._made: list[tuple[Tensor | None, Tensor]] = []

    def through(self, forward: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        """The forward pass with a look at its tokens."""

        def seeing(tokens: Tensor) -> Tensor:
            logits: Tensor
            logits, self._seen = forward(tokens, observe=self._observer)
            return logits

        return seeing

    @torch.no_grad()
    def note(self, losses: Float[Tensor, "batch seq"]) -> None:
        """Take in the losses, and what only the path can tell: before the backward pass, which lets its shards go."""
        self._loss = losses.detach()[: self._rows, :: self._stride].mean()
        self._made = [self._make(index, what.streams[None]) for index, what in enumerate(self._seen[:-1])]

    def _make(self, index: int, streams: Float[Tensor, "1 tokens n C"]) -> tuple[Tensor | None, Tensor]:
        """What H_res was made of, and the one that would have been made before training."""
        mixing = self._model.path[index].mixing(streams)
        return None if mixing is None else mixing[1][0], self._initial[index].maps(streams).res[0]

    def observation(self, moved: bool = True) -> Observation:
        """What was seen last, on the CPU, and forget it; the device is waited for here.

        Args:
            moved: whether there has been a step that mixers could have moved in; before it, nothing is told of their
                drift.
        """
        *seen, end = self._seen
        pairs = zip(seen, self._made, strict=True)
        crossings = [_crossing(what, logits, initial if moved else None) for what, (logits, initial) in pairs]
        self.forget()
        return Observation(
            names=list(self._model.sublayer_names()),
            crossings=crossings,
            basis=TEXT,
            last=end.streams.cpu(),
            loss=self._loss.item(),
            guarantees=self._model.path.guarantees,
            renounced=self._model.path.renounced,
        )


def _crossing(what: Glance, logits: Tensor | None, initial: Tensor | None) -> Crossing:
    pre, post, res = (part.cpu() for part in what.maps)
    return Crossing(
        pre=pre,
        post=post,
        res=res,
        logits=None if logits is None else logits.cpu(),
        initial=None if initial is None else initial.cpu(),
        streams=what.streams.cpu(),
        output=what.output.cpu(),
    )


def line(document: dict[str, Any]) -> dict[str, Any]:
    """A measurement document short enough for thousands: without texts and matrices over the depth, six digits.

    Whatever is not finite is null.
    """
    short: dict[str, Any] = rounded(_shortened(document))
    for curve, whole in (("forward", -1), ("backward", 0)):
        entries = short["composite"][curve]
        short["composite"][curve] = [
            entry if entry is entries[whole] else {key: value for key, value in entry.items() if key in COMPOSITE}
            for entry in entries
        ]
    return short


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(part) for key, part in value.items() if key not in LEFT_OUT}
    return [_shortened(part) for part in value] if isinstance(value, list) else value
