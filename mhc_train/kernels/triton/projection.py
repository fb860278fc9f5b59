"""The projection of more streams than a kernel's registers can hold the weight of: by torch's matrix products."""

import torch
from torch import Tensor


def project(state: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Features and scales of a crossing's new state (T, n, C), in float32: (T, G, k) and (T, G)."""
    vectors = _vectors(state, weight)
    scale = (vectors.square().mean(-1) + eps).rsqrt()
    return (vectors @ weight.T).mul_(scale.unsqueeze(-1)), scale


def project_backward(
    g_written: Tensor | None, state: Tensor, weight: Tensor, projected: Tensor, shrink: Tensor
) -> tuple[Tensor, Tensor]:
    """What arrives at the new state through its features too, float32 (T, n, C), and the weight's gradient.

    Args:
        g_written: (T, n, C), what arrives there otherwise; None for nothing.
        state: (T, n, C).
        weight: (k, n C) or (k, C).
        projected: (T, G, k), the gradient of the products with the weight.
        shrink: (T, G), what the norm's gradient multiplies the state with.
    """
    vectors = _vectors(state, weight)
    g_state = (projected @ weight).addcmul_(vectors, shrink.unsqueeze(-1)).view(state.shape)
    if g_written is not None:
        g_state += g_written
    return g_state, projected.flatten(0, 1).T @ vectors.flatten(0, 1)


def _vectors(state: Tensor, weight: Tensor) -> Tensor:
    """What is projected: all streams of a token jointly, or each of them alone."""
    return state.to(torch.float32).view(state.shape[0], -1, weight.shape[1])
