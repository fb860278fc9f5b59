"""Measurements of what flows through a sublayer: its energy ledger, and its effect on real gradients."""

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
        "energy_cross": 2 * (carried * written).sum((-2, -1)),
        "energy_out": energy(carried + written),
        "energy_gain": residual / before,
    }


def gradient_energy_gain(gradient: Streams, res: Float[Tensor, "*tokens n n"]) -> Numbers:
    """`||H^T g||^2 / ||g||^2` with the loss's real gradient g at the streams after the sublayer."""
    return energy(res.mT @ gradient) / energy(gradient)


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
