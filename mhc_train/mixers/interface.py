"""What a mixer is: logits in, H_res out, and a declaration of what holds for it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROUNDING = 1e-5
"""Tolerance of a law that holds by construction: what float32 makes of it, for any logits."""


class Law(StrEnum):
    """A conservation law of the residual path that a mixer can guarantee for every token."""

    MASS = "mass"
    """Columns sum to 1: what streams hold in total is neither created nor lost."""
    DISSIPATION = "dissipation"
    """The largest singular value is at most 1: energy out is at most energy in."""
    ENERGY = "energy"
    """All singular values are 1: energy out is energy in."""
    TIME_SYMMETRY = "time_symmetry"
    """Rows sum to 1: the same for gradients, which travel through the transpose."""
    POSITIVITY = "positivity"
    """No entry is negative: no flow runs backwards."""


@dataclass(frozen=True)
class Guarantee:
    """`law` holds within `tolerance` wherever the logits' range (max - min) is at most `logit_range`.

    An infinite range means logits of any size up to 1e9, beyond which float64 has no digits left for them.
    """

    law: Law
    tolerance: float
    logit_range: float = math.inf


DOUBLY_STOCHASTIC = (
    Guarantee(Law.MASS, ROUNDING),
    Guarantee(Law.TIME_SYMMETRY, ROUNDING),
    Guarantee(Law.DISSIPATION, ROUNDING),
    Guarantee(Law.POSITIVITY, 0.0),
)
"""What a mixer declares that is doubly stochastic by construction."""


class Mixer(nn.Module, ABC):
    """Turns a token's logits into the matrix that mixes its streams: row i receives, column j sends.

    A mixer has no parameters. A new one is a subclass in a file of its own and an option in `conf/connection/`
    (docs/your-own.md); the generic property tests then check what it declares. Its constructor takes `streams`, and by
    their names any keys of `connection` (or of `connection.options`) and `sublayers`, the model's number of them; it
    raises ValueError, saying what to change, where it is not defined.
    """

    name: ClassVar[str]
    """What `connection.mixer` calls it."""
    guarantees: tuple[Guarantee, ...] = ()
    """What holds, per token; anything not listed is not promised."""
    renounced: ClassVar[frozenset[Law]] = frozenset()
    """Laws that its constraint replaces by another, so that it is no fault to break them."""
    policies: ClassVar[tuple[str, ...]] = ("equivalent", "home", "uniform", "saturated")
    """Init policies that `bias` knows."""
    mixes: ClassVar[bool] = True
    """False where H_res is always the identity, so that no product is needed."""
    float64: ClassVar[bool] = False
    """Whether it computes in float64, which Apple's GPUs cannot."""

    def __init__(self, streams: int) -> None:
        super().__init__()
        self.streams = streams

    @property
    @abstractmethod
    def logits(self) -> int:
        """Number of logits a token needs."""

    @abstractmethod
    def forward(self, logits: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens n n"]:
        """H_res of every token: float64 for float64 logits, else float32."""

    @abstractmethod
    def bias(self, policy: str) -> Float[Tensor, " k"]:
        """The logits' constant part at the start of training, by init policy."""

    def flops_per_token(self) -> int:
        """Floating-point operations of `forward` a token; zero where they are not worth counting."""
        return 0


def widen(logits: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens k"]:
    """At least float32: mixers never compute in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def matrix_bias(streams: int, diagonal: float, off_diagonal: float) -> Float[Tensor, " {streams}**2"]:
    """Flat n x n logits with one value on the diagonal and another off it."""
    eye = torch.eye(streams)
    return (diagonal * eye + off_diagonal * (1 - eye)).flatten()


def start_logits(policy: str) -> tuple[float, float]:
    """Logits of what leaves the streams where they are, and of everything else: 6 apart, or as the policy says."""
    return {"uniform": (0.0, 0.0), "saturated": (0.0, -8.0)}.get(policy, (3.0, -3.0))


def leak(streams: int) -> float:
    """Off-diagonal entry of the `equivalent` start: what a projection makes of exp(6I - 3), 0.00246 for n = 4.

    Mixers whose logits are not matrix entries aim at the same H_res, so that all members of the family start alike.
    """
    return 1 / (math.exp(6.0) + streams - 1)
