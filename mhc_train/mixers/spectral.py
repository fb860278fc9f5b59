"""The mean kept, differences turned and shrunk ("sHC", arXiv 2603.20896): energy bounded, signs free."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.mixers.cayley import cayley
from mhc_train.mixers.interface import ROUNDING, Guarantee, Law, Mixer, leak, widen


class Spectral(Mixer):
    """H = J/n + P M P^T, with M = U diag(tanh s) V^T on the n - 1 differences between streams (P spans them).

    Rows and columns sum to 1 because P is orthogonal to the ones, and no singular value exceeds 1, without an
    iteration. Entries may be negative: streams can be subtracted from one another.
    """

    name = "spectral"
    float64 = True
    guarantees = (
        Guarantee(Law.MASS, ROUNDING),
        Guarantee(Law.TIME_SYMMETRY, ROUNDING),
        Guarantee(Law.DISSIPATION, ROUNDING),
    )
    renounced = frozenset({Law.POSITIVITY})

    def __init__(self, streams: int) -> None:
        super().__init__(streams)
        rank = streams - 1
        self.sizes = [rank * (rank - 1) // 2, rank * (rank - 1) // 2, rank]
        self.register_buffer("differences", difference_basis(streams), persistent=False)
        self.differences: Tensor

    @property
    def logits(self) -> int:
        """(n - 1)^2: the rotations U and V as Cayley transforms, then s."""
        return sum(self.sizes)

    def forward(self, logits: Float[Tensor, "*tokens k"]) -> Float[Tensor, "*tokens n n"]:
        """J/n plus the turned and shrunk differences."""
        left, right, strength = logits.split(self.sizes, dim=-1)
        rank, basis = self.streams - 1, self.differences.to(logits.device, torch.float64)
        turned = (cayley(left, rank) * strength.double().tanh().unsqueeze(-2)) @ cayley(right, rank).mT
        return (1 / self.streams + basis @ turned @ basis.mT).to(widen(logits).dtype)

    def bias(self, policy: str) -> Float[Tensor, " k"]:
        """`uniform`: s = 0, hence 1/n everywhere; `saturated`: s = 8; else near I like the rest of the family."""
        strength = {"uniform": 0.0, "saturated": 8.0}.get(policy, math.atanh(1 - self.streams * leak(self.streams)))
        turns, rank = 2 * self.sizes[0], self.sizes[2]
        return torch.cat([torch.zeros(turns), torch.full((rank,), strength)])


def difference_basis(streams: int) -> Float[Tensor, "n n_minus_1"]:
    """Orthonormal columns that sum to zero (Helmert's): column k compares stream k + 1 with those before it."""
    basis = torch.zeros(streams, streams - 1, dtype=torch.float64)
    for k in range(1, streams):
        basis[:k, k - 1] = 1 / math.sqrt(k * (k + 1))
        basis[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return basis
