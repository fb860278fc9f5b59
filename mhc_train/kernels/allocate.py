"""Tensors for what the operators return, empty ones for what a call has none of; the fake operators are this alone."""

from collections.abc import Callable

import torch
from torch import Tensor


def crossing(
    streams: Tensor, output: Tensor | None, weight: Tensor | None, reads: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Written streams, x, features and scale of a crossing."""
    tokens, n, dim = streams.shape
    groups = 0 if weight is None else n * dim // weight.shape[1]
    return (
        streams.new_empty(0 if output is None else streams.shape),
        streams.new_empty((tokens, dim) if reads else 0),
        streams.new_empty(0 if weight is None else (tokens, groups, weight.shape[0]), dtype=torch.float32),
        streams.new_empty(0 if weight is None else (tokens, groups), dtype=torch.float32),
    )


def gradients(streams: Tensor, output: Tensor | None, *coefficients: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of a crossing's inputs: those of streams and output uninitialised, the small others zero."""
    large = [_like(uninitialised, streams, given) for given in (streams, output)]
    return *large, *(_like(zeros, streams, given) for given in coefficients)


def uninitialised(like: Tensor) -> Tensor:
    """Of the same kind and shape, contiguous: kernels fill memory in order, however the inputs lie in theirs."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def zeros(like: Tensor) -> Tensor:
    """The same, of zeros."""
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _like(make: Callable[[Tensor], Tensor], streams: Tensor, given: Tensor | None) -> Tensor:
    # Results of an operator must not share memory: each absent one is a tensor of its own.
    return streams.new_empty(0) if given is None else make(given)
