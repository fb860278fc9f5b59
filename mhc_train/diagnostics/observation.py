"""What is known of a model's residual path over some tokens, whoever's model it is: what measurements are made of."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mhc_train.mixers import Guarantee, Law


@dataclass(frozen=True)
class Backward:
    """How the loss's gradient comes back through one sublayer, on three ways that add up to `total`.

    Through the mixer, `H_res^T after`; through the branch, `H_pre (x) read`; and through the maps, `coefficients`.
    """

    after: Float[Tensor, "tokens n C"]
    """At the streams after the write, g."""
    read: Float[Tensor, "tokens C"]
    """At the sublayer's input before its norm, dL/dx."""
    coefficients: Float[Tensor, "tokens n C"]
    """What comes back through the maps, which depend on the streams too."""
    total: Float[Tensor, "tokens n C"]
    """At the streams before the write, as autograd has it."""
    logits: Float[Tensor, "tokens k"] | None = None
    """At the mixer's logits, by H_res alone; None if it has none."""


@dataclass(frozen=True)
class Crossing:
    """What one sublayer did to the streams of some tokens. The maps are always known, the rest if it was observed."""

    pre: Float[Tensor, "tokens n"]
    post: Float[Tensor, "tokens n"]
    res: Float[Tensor, "tokens n n"]
    logits: Float[Tensor, "tokens k"] | None = None
    """What the mixer made H_res of; None if it has none."""
    initial: Float[Tensor, "tokens n n"] | None = None
    """The H_res that the connection would have made before it was ever trained."""
    streams: Float[Tensor, "tokens n C"] | None = None
    """Before the write."""
    output: Float[Tensor, "tokens C"] | None = None
    """The sublayer's own, before H_post."""
    backward: Backward | None = None


@dataclass(frozen=True)
class Observation:
    """A residual path over some tokens, one crossing a sublayer."""

    names: list[str]
    """Of the sublayers, in order."""
    crossings: list[Crossing]
    basis: str
    """What the tokens are, in words: validation tokens, sampled inputs, or none at all (the biases alone)."""
    last: Float[Tensor, "tokens n C"] | None = None
    """The streams after the last sublayer."""
    loss: float | None = None
    """Nats a token."""
    guarantees: tuple[Guarantee, ...] = ()
    """The laws that its mixers declare."""
    renounced: frozenset[Law] = field(default_factory=frozenset)
    """The laws that its mixers do not aim at, which it is no fault to break."""
