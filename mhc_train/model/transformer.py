"""A decoder-only transformer that knows its residual streams only through a path."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhc_train.connections import State, build_path
from mhc_train.model.attention import Attention, document_mask, rotation_table
from mhc_train.model.feedforward import FeedForward
from mhc_train.model.initialise import initialise_backbone, seeded
from mhc_train.schema import ConnectionConfig, ModelConfig

Observer = Callable[[int, State, Tensor], None]
"""Called with (sublayer index, state before the write, sublayer output), and after the last sublayer with
(number of sublayers, final state, read-out)."""


class Transformer(nn.Module):
    """Embedding, a path through pre-norm sublayers (attention and feed-forward in turn), final norm, output head.

    Args:
        model: the backbone.
        connection: what ties its sublayers together.
        vocab_size: token ids.
        seed: of the weights.
        end_of_text: the id that closes a document, for `document_mask`; loading weights restores it.
    """

    def __init__(
        self,
        model: ModelConfig,
        connection: ConnectionConfig,
        vocab_size: int,
        seed: int = 0,
        end_of_text: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.vocab_size = model, vocab_size
        self.sublayers = 2 * model.layers
        self.embedding = nn.Embedding(vocab_size, model.dim)
        self.attention = nn.ModuleList(Attention(model) for _ in range(model.layers))
        self.feedforward = nn.ModuleList(FeedForward(model) for _ in range(model.layers))
        self.norms = nn.ModuleList(nn.RMSNorm(model.dim, eps=model.norm_eps) for _ in range(self.sublayers))
        with seeded(seed):
            self.path = build_path(connection, model.dim, self.sublayers)
        self.final_norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.head = None if model.tie_embeddings else nn.Linear(model.dim, vocab_size, bias=False)
        table = rotation_table(model.max_seq_len, model.dim // model.heads, model.rope_theta)
        self.rotation: Tensor
        self.register_buffer("rotation", table, persistent=False)
        self.end_of_text: Tensor | None
        self.register_buffer("end_of_text", torch.tensor(end_of_text) if model.document_mask else None)
        initialise_backbone(self, seed, self.sublayers)

    def forward(
        self, tokens: Int[Tensor, "batch seq"], observe: Observer | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Next-token logits of every position; `observe` sees the streams and maps as they pass."""
        mask = None if self.end_of_text is None else document_mask(tokens, self.end_of_text)
        state, x = self.path.enter(self.embedding(tokens))
        for index in range(self.sublayers):
            output = self._sublayer(index, x, mask)
            if observe is not None:
                observe(index, state, output)
            state, x = self.path.cross(index, state, output)
        if observe is not None:
            observe(self.sublayers, state, x)
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.final_norm(x), weight)

    def _sublayer(
        self, index: int, x: Float[Tensor, "batch seq C"], mask: Tensor | None
    ) -> Float[Tensor, "batch seq C"]:
        layer, is_feedforward = divmod(index, 2)
        normed = self.norms[index](x)
        if is_feedforward:
            return self.feedforward[layer](normed)
        return self.attention[layer](normed, self.rotation[:, : x.shape[1]], mask)

    def sublayer_names(self) -> Iterator[str]:
        """`layers.0.attention`, `layers.0.feedforward`, `layers.1.attention`, ..."""
        for layer in range(self.config.layers):
            yield f"layers.{layer}.attention"
            yield f"layers.{layer}.feedforward"
