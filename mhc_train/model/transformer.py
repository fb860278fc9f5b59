"""A decoder-only transformer that knows its residual streams only through a path."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mhc_train.connections import Path, State
from mhc_train.model.attention import Attention, document_mask, rotation_table
from mhc_train.model.feedforward import FeedForward
from mhc_train.model.initialise import initial_path, initialise_backbone
from mhc_train.model.recompute import KEEP_ALL, RebuiltStreams, Segments, keep_costly, segments
from mhc_train.schema import ConnectionConfig, ModelConfig, TrainConfig

Observer = Callable[[int, State, Tensor, Tensor], Any]
"""A function of (sublayer index, state before the write, sublayer input before its norm, sublayer output), and after
the last sublayer of (number of sublayers, final state, read-out, read-out). What it returns, the model returns: without
side effects, it sees the same on a checkpoint and in training, compiled and with recomputation."""


class Transformer(nn.Module):
    """Embedding, a path through pre-norm sublayers (attention and feed-forward in turn), final norm, output head.

    Args:
        model: the backbone.
        connection: what ties its sublayers together.
        vocab_size: token ids.
        seed: of the weights.
        end_of_text: the id that closes a document, for `document_mask`; loading weights restores it.
    """

    recompute: Segments
    """What the backward pass computes again. Neither results nor checkpoints depend on it: set it at any time."""

    def __init__(
        self,
        model: ModelConfig,
        connection: ConnectionConfig,
        vocab_size: int,
        seed: int = 0,
        end_of_text: int = 0,
    ) -> None:
        super().__init__()
        self.recompute = KEEP_ALL
        self.config, self.vocab_size = model, vocab_size
        self.sublayers = 2 * model.layers
        self.embedding = nn.Embedding(vocab_size, model.dim)
        self.attention = nn.ModuleList(Attention(model) for _ in range(model.layers))
        self.feedforward = nn.ModuleList(FeedForward(model) for _ in range(model.layers))
        self.norms = nn.ModuleList(nn.RMSNorm(model.dim, eps=model.norm_eps) for _ in range(self.sublayers))
        self.path = initial_path(model, connection, seed)
        self.final_norm = nn.RMSNorm(model.dim, eps=model.norm_eps)
        self.head = None if model.tie_embeddings else nn.Linear(model.dim, vocab_size, bias=False)
        table = rotation_table(model.max_seq_len, model.dim // model.heads, model.rope_theta)
        self.rotation: Tensor
        self.register_buffer("rotation", table, persistent=False)
        self.end_of_text: Tensor | None
        self.register_buffer("end_of_text", torch.tensor(end_of_text) if model.document_mask else None)
        initialise_backbone(self, seed, self.sublayers)

    def adapt(self, config: TrainConfig) -> None:
        """Take on what a training asks for and nothing that is learnt depends on, but for rounding."""
        self.recompute = segments(config.recompute, self.path.streams, self.sublayers)
        self.path.stream_dtype = torch.bfloat16 if config.stream_precision == "bfloat16" else torch.float32

    def forward(
        self, tokens: Int[Tensor, "batch seq"], observe: Observer | None = None
    ) -> Float[Tensor, "batch seq vocab"] | tuple[Float[Tensor, "batch seq vocab"], list[Any]]:
        """Next-token logits of every position; with an observer, also all that it returned, in order."""
        mask = None if self.end_of_text is None else document_mask(tokens, self.end_of_text)
        state, seen = self._all_sublayers(self.path.expand(self.embedding(tokens)), mask, observe)
        state, x = self.path.read(self.sublayers, state)
        weight = self.embedding.weight if self.head is None else self.head.weight
        logits = F.linear(_normed(self.final_norm, x), weight)
        return logits if observe is None else (logits, [*seen, observe(self.sublayers, state, x, x)])

    def _all_sublayers(self, state: State, mask: Tensor | None, observe: Observer | None) -> tuple[State, list[Any]]:
        """All of them, cut as `recompute` says."""
        # Without gradients there is nothing to keep.
        length, streams_only = self.recompute if torch.is_grad_enabled() else KEEP_ALL
        if length == 0:
            return self._segment(self.path, 0, self.sublayers, state, mask, observe)
        if streams_only and not torch.compiler.is_compiling():
            return self._segment(RebuiltStreams(self.path, length), 0, self.sublayers, state, mask, observe)
        seen: list[Any] = []
        options: dict[str, Any] = {"use_reentrant": False}
        if streams_only:
            options["context_fn"] = partial(create_selective_checkpoint_contexts, keep_costly)
        for first in range(0, self.sublayers, length):
            last = min(first + length, self.sublayers)
            state, part = checkpoint(self._segment, self.path, first, last, state, mask, observe, **options)
            seen += part
        return state, seen

    def _segment(
        self,
        path: Path | RebuiltStreams,
        first: int,
        last: int,
        state: State,
        mask: Tensor | None,
        observe: Observer | None,
    ) -> tuple[State, list[Any]]:
        """Sublayers `first` to `last` - 1: from the streams before the first one's read to those after a write."""
        seen = []
        state, x = path.read(first, state)
        for index in range(first, last):
            output = self._sublayer(index, x, mask)
            if observe is not None:
                seen.append(observe(index, state, x, output))
            if index + 1 < last:
                state, x = path.cross(index, state, output)
        return path.write(last - 1, state, output), seen

    def _sublayer(
        self, index: int, x: Float[Tensor, "batch seq C"], mask: Tensor | None
    ) -> Float[Tensor, "batch seq C"]:
        layer, is_feedforward = divmod(index, 2)
        normed = _normed(self.norms[index], x)
        if is_feedforward:
            return self.feedforward[layer](normed)
        return self.attention[layer](normed, self.rotation[:, : x.shape[1]], mask)

    def sublayer_names(self) -> Iterator[str]:
        """`layers.0.attention`, `layers.0.feedforward`, `layers.1.attention`, ..."""
        for layer in range(self.config.layers):
            yield f"layers.{layer}.attention"
            yield f"layers.{layer}.feedforward"


def _normed(norm: nn.Module, x: Float[Tensor, "batch seq C"]) -> Float[Tensor, "batch seq C"]:
    """In the streams' precision under autocast, which takes any, else in the weights'; sums within are of float32."""
    assert isinstance(norm, nn.RMSNorm)
    dtype = x.dtype if torch.is_autocast_enabled(x.device.type) else norm.weight.dtype
    return F.rms_norm(x.to(dtype), norm.normalized_shape, norm.weight.to(dtype), norm.eps)
