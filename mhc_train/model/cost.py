"""What a model costs, known before it is trained: parameters by part, operations a token."""

from torch import nn

from mhc_train.model.recompute import Segments
from mhc_train.model.transformer import Transformer


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters of each top-level part: embedding, attention, feedforward, norms, path, head, ..."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


def training_flops_per_token(model: Transformer, seq_len: int) -> int:
    """Floating-point operations a token of forward and backward together (three times the forward's).

    Matrix products count two operations a weight; attention scores and values the causal half of a full square;
    connections as they count themselves. Norms, activations and the optimizer are left out.
    """
    weights = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not name.startswith(("path.", "embedding."))
    )
    head = model.vocab_size * model.config.dim
    attention = 2 * model.config.layers * seq_len * model.config.dim
    connections = sum(model.path[index].flops_per_token() for index in range(model.sublayers))
    output = head if model.head is None else 0  # a separate head is among the weights already
    return 3 * (2 * (weights + output) + attention + connections)


def recomputed_share(model: Transformer, segments: Segments, seq_len: int) -> float:
    """What recomputation adds to a step, as a share of one forward pass's operations.

    Segments that run again are all but the output head. Streams are rebuilt by a write, 2 n C (n + 1) operations, for
    every state but the first of each segment.
    """
    forward = training_flops_per_token(model, seq_len) / 3
    if not segments.length:
        return 0.0
    if not segments.streams_only:
        return 1 - 2 * model.vocab_size * model.config.dim / forward
    n, rebuilt = model.path.streams, model.sublayers - -(-model.sublayers // segments.length)
    return rebuilt * 2 * n * model.config.dim * (n + 1) / forward
