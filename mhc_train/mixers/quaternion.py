"""Rotations of four streams by two unit quaternions ("oHC", arXiv 2609.02672): energy is conserved exactly."""

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.mixers.interface import ROUNDING, Guarantee, Law, Mixer, widen

# Hamilton's products of the units 1, i, j, k: unit a times unit b is SIGN[a][b] times unit PRODUCT[a][b].
PRODUCT = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
SIGN = ((1, 1, 1, 1), (1, -1, 1, -1), (1, -1, -1, 1), (1, 1, -1, -1))


class Quaternion(Mixer):
    """H x = p x q with the four streams as a quaternion x: every rotation of SO(4), and nothing else.

    Orthogonal, so that neither energy nor differences between streams are ever lost; but neither sums nor signs are
    kept: mass is not conserved, and one stream may be subtracted from another.
    """

    name = "quaternion"
    guarantees = (Guarantee(Law.ENERGY, ROUNDING), Guarantee(Law.DISSIPATION, ROUNDING))
    renounced = frozenset({Law.MASS, Law.TIME_SYMMETRY, Law.POSITIVITY})
    policies = ("equivalent", "home", "saturated")

    def __init__(self, streams: int) -> None:
        if streams != 4:
            raise ValueError(f"mixer quaternion rotates exactly 4 streams, not {streams}; take connection.streams=4")
        super().__init__(streams)
        self.register_buffer("products", sandwich_table(), persistent=False)
        self.products: Tensor

    @property
    def logits(self) -> int:
        """8: the left and the right quaternion before they are normalised, real part first."""
        return 8

    def forward(self, logits: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens n n"]:
        """The matrix of x -> p x q."""
        left, right = widen(logits).unflatten(-1, (2, 4)).unbind(-2)
        pairs = (unit(left).unsqueeze(-1) * unit(right).unsqueeze(-2)).flatten(-2)
        return (pairs @ self.products.to(pairs)).unflatten(-1, (4, 4))

    def bias(self, policy: str) -> Float[Tensor, " k"]:
        """p = q = 1, the identity; `saturated`: eight times as long, so that gradients are an eighth."""
        return torch.tensor([1.0, 0, 0, 0] * 2) * (8.0 if policy == "saturated" else 1.0)


def unit(quaternion: Float[Tensor, "*tokens 4"]) -> Float[Tensor, "*tokens 4"]:
    """Its direction; a quaternion that vanishes counts as 1."""
    largest = quaternion.detach().abs().amax(-1, keepdim=True)
    one = torch.eye(4, dtype=quaternion.dtype, device=quaternion.device)[0]
    # Dividing by the largest entry first keeps squares from overflowing and underflowing.
    direction = torch.where(largest < 1e-6, one, quaternion / largest.clamp(min=1e-6))
    return direction / direction.square().sum(-1, keepdim=True).sqrt()


def sandwich_table() -> Float[Tensor, "16 16"]:
    """Row (a, b) is the flat matrix of x -> e_a x e_b."""
    table = torch.zeros(4, 4, 4, 4)  # a, b, receiver, sender
    for a in range(4):
        for b in range(4):
            for sender in range(4):
                middle = PRODUCT[a][sender]
                table[a, b, PRODUCT[middle][b], sender] = SIGN[a][sender] * SIGN[middle][b]
    return table.flatten(2).flatten(0, 1)
