"""Measurements of stream mixers: pure functions of matrices (..., n, n), row receives and column sends.

One number a matrix; statistics over tokens are taken elsewhere. Definitions and tolerances: docs/measurements.md.
"""

import math
from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from torch import Tensor

Matrices = Float[Tensor, "*tokens n n"]
Numbers = Float[Tensor, "*tokens"]
Spectra = Float[Tensor, "*tokens n"]
"""Singular values."""
FEW_STREAMS = 8
"""Up to so many, all sets of columns are gone through, of all matrices at once; there are 2^n."""

ENTRIES_AT_ONCE = 1 << 16
"""Of the matrices that are measured together; some measurements take n times as much."""


def forward_gain(H: Matrices) -> Numbers:
    """Forward Amax gain: the largest absolute row sum, `max_i |sum_j H_ij|` (arXiv 2512.24880, section 3.1)."""
    return H.sum(-1).abs().amax(-1)


def backward_gain(H: Matrices) -> Numbers:
    """Backward Amax gain: the largest absolute column sum, `max_j |sum_i H_ij|`."""
    return H.sum(-2).abs().amax(-1)


def row_error(H: Matrices) -> Numbers:
    """`max_i |sum_j H_ij - 1|`: zero where gradients keep their total (time symmetry)."""
    return (H.sum(-1) - 1).abs().amax(-1)


def column_error(H: Matrices) -> Numbers:
    """`max_j |sum_i H_ij - 1|`: zero where the streams keep their total (mass)."""
    return (H.sum(-2) - 1).abs().amax(-1)


def log_mass(H: Matrices) -> Numbers:
    """`max_j |log |sum_i H_ij||`: sees leaks, which the one-sided gains do not; infinite where a column sums to 0."""
    return H.sum(-2).abs().log().abs().amax(-1)


def smallest_entry(H: Matrices) -> Numbers:
    """`min_ij H_ij`: negative where flow runs backwards (positivity)."""
    return H.flatten(-2).amin(-1)


def least_sent(H: Matrices) -> Numbers:
    """`min_j sum_i H_ij`, the smallest column sum: near 0 where a stream's content goes nowhere."""
    return H.sum(-2).amin(-1)


def most_received(H: Matrices) -> Numbers:
    """`max_i sum_j H_ij`, the largest row sum: n where one stream receives all that there is."""
    return H.sum(-1).amax(-1)


def received_gini(H: Matrices) -> Numbers:
    """Inequality of what streams receive, the row sums of |H|: 0 where all receive alike, 1 where one takes all."""
    return gini(H.abs().sum(-1))


def entropy(H: Matrices) -> Numbers:
    """Mean over rows of the normalised entropy of |H|: 0 for a permutation, 1 for the uniform map; 0 for n = 1."""
    n = H.shape[-1]
    shares = H.abs() / H.abs().sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1).mean(-1) / (math.log(n) if n > 1 else 1.0)


def dobrushin(H: Matrices) -> Numbers:
    """Dobrushin's coefficient, `1/2 max_ik sum_j |H_ij - H_kj|`: 1 for a permutation, 0 where all rows are alike.

    The largest share of the spread between entries that a row-stochastic map can leave.
    """
    return (H.unsqueeze(-2) - H.unsqueeze(-3)).abs().sum(-1).flatten(-2).amax(-1) / 2


def permutation_distance(H: Matrices) -> Numbers:
    """`1 - max_s 1/n sum_i H[i, s(i)]` over permutations s: 0 for a permutation, 1 - 1/n for the uniform map."""
    n = H.shape[-1]
    return 1 - (_best_of_sets(H) if n <= FEW_STREAMS else _best_assignment(H)) / n


def _best_of_sets(H: Matrices) -> Numbers:
    """The largest sum of entries, one of each row and column: for few streams."""
    n = H.shape[-1]
    best = {0: torch.zeros_like(H[..., 0, 0])}  # of the first rows, by the set of columns that they took
    for taken in range(1, 2**n):
        row = taken.bit_count() - 1
        columns = [column for column in range(n) if taken >> column & 1]
        totals = [best[taken & ~(1 << column)] + H[..., row, column] for column in columns]
        best[taken] = torch.stack(totals).amax(0)
    return best[2**n - 1]


def _best_assignment(H: Matrices) -> Numbers:
    """The same for many streams, one matrix after the other; NaN where an entry is not finite."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and rarely needed

    totals = [
        matrix[linear_sum_assignment(matrix, maximize=True)].sum().item() if matrix.isfinite().all() else math.nan
        for matrix in H.detach().double().cpu().reshape(-1, *H.shape[-2:])
    ]
    return H.new_tensor(totals).view(H.shape[:-2])


def difference_gain(H: Matrices) -> Numbers:
    """Largest gain of differences between streams: `sigma_max(P H P)`, P = I - J/n; NaN for n = 1.

    Below 1 differences shrink; at 0 the streams are identical, whatever they were before (collapse).
    """
    n = H.shape[-1]
    if n == 1:
        return torch.full_like(H[..., 0, 0], math.nan)
    basis = _differences(n).to(H)
    return singular_values(basis @ H @ basis.mT)[..., 0]


def spectral_norm(s: Spectra) -> Numbers:
    """The largest singular value: at most 1 where energy out is at most energy in (dissipation)."""
    return s[..., 0]


def smallest_singular_value(s: Spectra) -> Numbers:
    """The smallest singular value: 0 where some direction of the streams is deleted."""
    return s[..., -1]


def log_determinant(s: Spectra) -> Numbers:
    """`log |det H|`, what becomes of volume: at most 0 for a doubly stochastic map, 0 for a permutation alone."""
    return s.log().sum(-1)


def effective_rank(s: Spectra) -> Numbers:
    """exp of the entropy of the singular values' shares: n for an orthogonal map, 1 for the uniform one."""
    return torch.special.entr(s / s.sum(-1, keepdim=True)).sum(-1).exp()


def stable_rank(s: Spectra) -> Numbers:
    """`||H||_F^2 / sigma_max^2`: n for an orthogonal map, 1 for one of rank 1."""
    return s.square().sum(-1) / s[..., 0].square()


OF_ENTRIES: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        forward_gain,
        backward_gain,
        row_error,
        column_error,
        log_mass,
        smallest_entry,
        least_sent,
        most_received,
        received_gini,
        entropy,
        dobrushin,
        permutation_distance,
        difference_gain,
    )
}
OF_SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (spectral_norm, smallest_singular_value, log_determinant, effective_rank, stable_rank)
}
NAMES = (*OF_ENTRIES, *OF_SPECTRA)
"""Every measurement of a matrix, as it is called in reports and in `--fail-on`."""


def measures(H: Matrices, names: Collection[str] = NAMES) -> dict[str, Numbers]:
    """Those measurements of every matrix, by their names; singular values are computed once, if at all."""
    found = {name: function(H) for name, function in OF_ENTRIES.items() if name in names}
    if OF_SPECTRA.keys().isdisjoint(names):
        return found
    s = singular_values(H)
    return found | {name: function(s) for name, function in OF_SPECTRA.items() if name in names}


def measures_of_each(maps: list[Tensor]) -> list[dict[str, Numbers]]:
    """All measurements of each of several maps of one shape: together, as far as memory allows, for speed."""
    together = max(1, ENTRIES_AT_ONCE // maps[0].numel())
    stacks = (torch.stack(maps[first : first + together]) for first in range(0, len(maps), together))
    return [
        dict(zip(found, numbers, strict=True))
        for found in map(measures, stacks)
        for numbers in zip(*found.values(), strict=True)
    ]


def forward_composites(maps: list[Tensor]) -> list[Tensor]:
    """`H_l ... H_2 H_1` for every l: what has become of the embedding's streams after sublayer l."""
    composites = [maps[0]]
    for H in maps[1:]:
        composites.append(H @ composites[-1])
    return composites


def backward_composites(maps: list[Tensor]) -> list[Tensor]:
    """`H_L ... H_l` for every l: how a gradient at the end reaches the streams before sublayer l (transposed)."""
    composites = [maps[-1]]
    for H in reversed(maps[:-1]):
        composites.append(composites[-1] @ H)
    return composites[::-1]


def gini(shares: Float[Tensor, "*tokens n"]) -> Numbers:
    """Inequality of n non-negative shares, between 0 (all alike) and 1 (one has all); 0 for n = 1.

    `sum_ij |x_i - x_j| / (2 (n - 1) sum_i x_i)`: the Gini coefficient over its largest value, 1 - 1/n.
    """
    n = shares.shape[-1]
    distances = (shares.unsqueeze(-1) - shares.unsqueeze(-2)).abs().sum((-2, -1))
    return distances / (2 * max(1, n - 1) * shares.sum(-1))


def singular_values(H: Matrices) -> Spectra:
    """In falling order; NaN where a map has an entry that is not finite, for which the library would raise."""
    finite = H.isfinite().flatten(-2).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], H, torch.zeros_like(H)))
    return torch.where(finite[..., None], values, torch.full_like(values, math.nan))


def _differences(n: int) -> Float[Tensor, "n_minus_1 n"]:
    """Orthonormal rows that span the differences between n streams (Helmert's)."""
    rows = torch.tril(torch.ones(n, n, dtype=torch.float64), -1) - torch.diag(torch.arange(n, dtype=torch.float64))
    return torch.nn.functional.normalize(rows[1:], dim=-1)
