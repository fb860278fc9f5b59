"""Measurements of what flows: energy ledgers of signal and gradient, and what each stream carries."""

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

Streams = Float[Tensor, "*tokens n C"]
Numbers = Float[Tensor, "*tokens"]


def energy(streams: Streams) -> Numbers:
    """Squared norm of a token's streams, all together."""
    return streams.square().sum((-2, -1))


def energy_ledger(
    streams: Streams,
    res: Float[Tensor, "*tokens n n"],
    post: Float[Tensor, "*tokens n"],
    output: Float[Tensor, "*tokens C"],
) -> dict[str, Numbers]:
    """Where a sublayer's output energy comes from; `residual + injected + cross = out`.

    `energy_gain` is `||H X||^2 / ||X||^2`, what the mixer alone does: at most 1 for a passive one.
    """
    carried = res @ streams
    written = post.unsqueeze(-1) * output.unsqueeze(-2)
    before, residual = energy(streams), energy(carried)
    return {
        "energy_in": before,
        "energy_residual": residual,
        "energy_injected": energy(written),
        "energy_cross": _cross(carried, written),
        "energy_out": energy(carried + written),
        "energy_gain": residual / before,
    }


def gradient_ledger(
    after: Streams, res: Float[Tensor, "*tokens n n"], branch: Streams, coefficients: Streams, total: Streams
) -> dict[str, Numbers]:
    """Where a gradient's energy comes from as it passes a sublayer backwards: three ways and three cross terms.

    `mixer + branch + coefficients + mixer_branch + mixer_coefficients + branch_coefficients = out`.
    `gradient_energy_gain` is `||H^T g||^2 / ||g||^2`, what the mixer alone does.

    Args:
        after: g, the loss's gradient at the streams after the sublayer.
        res: H_res; the way through the mixer is `H_res^T g`.
        branch: what comes back through the sublayer's input.
        coefficients: what comes back through the maps.
        total: at the streams before the sublayer, by autograd.
    """
    mixer = res.mT @ after
    return {
        "gradient_in": energy(after),
        "gradient_mixer": energy(mixer),
        "gradient_branch": energy(branch),
        "gradient_coefficients": energy(coefficients),
        "gradient_mixer_branch": _cross(mixer, branch),
        "gradient_mixer_coefficients": _cross(mixer, coefficients),
        "gradient_branch_coefficients": _cross(branch, coefficients),
        "gradient_out": energy(total),
        "gradient_energy_gain": energy(mixer) / energy(after),
    }


def mass_drift(streams: Streams, res: Float[Tensor, "*tokens n n"]) -> Numbers:
    """How far mixing moves the sum of the streams: `||1^T H X - 1^T X|| / ||1^T X||`."""
    before = streams.sum(-2)
    return ((res @ streams).sum(-2) - before).norm(dim=-1) / before.norm(dim=-1)


def majorisation_excess(streams: Streams, res: Float[Tensor, "*tokens n n"]) -> Numbers:
    """By how much a channel of HX is not majorised by that of X, over X's root mean square; 0 where mixing spreads.

    The largest excess, over channels and k, of the sum of the k largest entries of HX over those of X. A doubly
    stochastic map has none (Hardy, Littlewood and Polya).
    """
    gains = [mixed - before for mixed, before in zip(_falling(res @ streams), _falling(streams), strict=True)]
    excess = torch.stack([partial.amax(-1) for partial in accumulate(gains)]).amax(0).clamp_min(0)
    return excess / streams.square().mean((-2, -1)).sqrt()


def outlier(output: Float[Tensor, "*tokens C"]) -> Numbers:
    """Largest magnitude over root mean square of a sublayer's output: sqrt(C) where one channel has it all."""
    return output.abs().amax(-1) / output.square().mean(-1).sqrt()


def least_energy_share(streams: Streams) -> Numbers:
    """The weakest stream's energy over the mean: 1 where all carry alike, 0 where one carries nothing (starved)."""
    energies = streams.square().sum(-1)
    return energies.amin(-1) / energies.mean(-1)


def stream_difference(streams: Streams) -> Numbers:
    """Share of energy in differences, `||(I - J/n) X||^2 / ||X||^2`: 0 where all streams are equal; NaN for n = 1."""
    if streams.shape[-2] == 1:
        return torch.full_like(streams[..., 0, 0], float("nan"))
    return energy(streams - streams.mean(-2, keepdim=True)) / energy(streams)


def effective_streams(streams: Streams) -> Numbers:
    """`(sum_i e_i)^2 / sum_i e_i^2` of the streams' energies: n where all carry alike, 1 where one carries all."""
    energies = streams.square().sum(-1)
    return energies.sum(-1).square() / energies.square().sum(-1)


def stream_cosine(streams: Streams) -> Numbers:
    """Mean cosine between two different streams; NaN for n = 1."""
    n = streams.shape[-2]
    unit = torch.nn.functional.normalize(streams, dim=-1)
    cosines = unit @ unit.mT
    return (cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1) or float("nan"))


def _falling(streams: Streams) -> list[Float[Tensor, "*tokens C"]]:
    """Every channel's entries in falling order: neighbours change places in n rounds, faster than a sort of so few."""
    rows = list(streams.unbind(-2))
    for turn in range(len(rows)):
        for first in range(turn % 2, len(rows) - 1, 2):
            one, other = rows[first : first + 2]
            rows[first : first + 2] = torch.maximum(one, other), torch.minimum(one, other)
    return rows


def _cross(first: Streams, second: Streams) -> Numbers:
    """What the energy of a sum has beyond the energies of its parts."""
    return 2 * (first * second).sum((-2, -1))
