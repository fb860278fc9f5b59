"""Causal grouped-query attention with rotary positions."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhc_train.schema import ModelConfig


class Attention(nn.Module):
    """Queries of `heads`, keys and values of `kv_heads`, scaled dot-product attention, no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.dim // config.heads
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.query = nn.Linear(config.dim, config.heads * self.head_dim, bias=False)
        self.key_value = nn.Linear(config.dim, 2 * config.kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(config.heads * self.head_dim, config.dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch seq C"],
        rotation: Float[Tensor, "2 seq half"],
        mask: Bool[Tensor, "batch 1 seq seq"] | None = None,
    ) -> Float[Tensor, "batch seq C"]:
        """Attend to this and earlier positions, or to those that `mask` allows."""
        query = self.query(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        key, value = self.key_value(x).unflatten(-1, (2 * self.kv_heads, self.head_dim)).transpose(1, 2).chunk(2, dim=1)
        query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
        )
        return self.output(mixed.transpose(1, 2).flatten(-2))


def document_mask(tokens: Int[Tensor, "batch seq"], end_of_text: Int[Tensor, ""]) -> Bool[Tensor, "batch 1 seq seq"]:
    """Who may attend to whom: a token to itself and to earlier ones of its document, which its end token closes."""
    ends = tokens == end_of_text
    document = ends.cumsum(dim=-1) - ends.long()
    same = document.unsqueeze(-1) == document.unsqueeze(-2)
    return same.tril().unsqueeze(1)


def rotation_table(seq_len: int, head_dim: int, theta: float) -> Float[Tensor, "2 seq half"]:
    """Cosines and sines of the rotary angles, float32 (RoFormer, arXiv 2104.09864)."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"], rotation: Float[Tensor, "2 seq half"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Rotate each pair (first half, second half) of a head's entries by its position's angle."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
