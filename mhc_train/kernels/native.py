"""The operators on a CPU: `native.cpp`, built by this machine's C++ compiler at the first use, and kept."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from mhc_train.kernels import allocate
from mhc_train.kernels.build import library

MOST_STREAMS, LANES = 8, 16
"""Streams that the registers hold, and channels that the widest vectors do."""


def lacking(device: str, dtype: torch.dtype, streams: int, dim: int) -> str | None:
    """Why there is no operator for such streams; None if there is one, built."""
    if device != "cpu" or dtype != torch.float32:
        return f"the C++ kernels are for float32 on a CPU, not for {str(dtype).removeprefix('torch.')} on {device}"
    if streams > MOST_STREAMS:
        return f"the C++ kernels take up to {MOST_STREAMS} streams, not {streams}"
    if dim % LANES:
        return f"the C++ kernels need a width that is a multiple of {LANES}, not {dim}"
    built = library(streams)
    return built if isinstance(built, str) else None


class _Crossing(ctypes.Structure):
    """Arguments of a call, as native.cpp has them."""

    TENSORS = (
        "streams", "output", "post", "res", "weight", "gate", "bias", "pre",
        "written", "x", "features", "scale", "g_written", "g_x", "g_features",
        "g_streams", "g_output", "g_post", "g_res", "g_weight", "g_gate", "g_bias", "g_pre",
    )  # fmt: skip
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "width", "size", "joint", "threads")),
        *((name, ctypes.c_float) for name in ("eps", "offset")),
        *((name, ctypes.c_void_p) for name in TENSORS),
    ]


class _Rounds(ctypes.Structure):
    TENSORS = ("logits", "gradient", "result")
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "iterations", "first", "threads")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in TENSORS),
    ]


def cross(
    streams: Tensor, output: Tensor | None, post: Tensor | None, res: Tensor | None, weight: Tensor | None, eps: float,
    gate: Tensor | None, bias: Tensor | None, offset: float, pre: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `mhc_train.kernels.operators.cross`."""
    results = allocate.crossing(streams, output, weight, gate is not None or pre is not None)
    inputs = _dense(streams, output, post, res, weight, gate, bias, pre)
    _cross("mhc_cross", eps, offset, [*inputs, *results, None, None, None, *[None] * len(inputs)])
    return results


def cross_backward(
    g_written: Tensor | None, g_x: Tensor | None, g_features: Tensor | None,
    streams: Tensor, output: Tensor | None, post: Tensor | None, res: Tensor | None, weight: Tensor | None, eps: float,
    gate: Tensor | None, bias: Tensor | None, offset: float, pre: Tensor | None, features: Tensor, scale: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """See `mhc_train.kernels.operators.cross_backward`."""
    inputs = _dense(streams, output, post, res, weight, gate, bias, pre)
    gradients = allocate.gradients(streams, output, post, res, weight, gate, bias, pre)
    made = _dense(features, scale, g_written, g_x, g_features)
    _cross("mhc_cross_backward", eps, offset, [*inputs, None, None, *made, *gradients])
    return gradients


def sinkhorn(logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """See `mhc_train.kernels.operators.sinkhorn`."""
    return _sinkhorn("mhc_sinkhorn", iterations, columns_first, eps, logits, None)


def sinkhorn_backward(gradient: Tensor, logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """See `mhc_train.kernels.operators.sinkhorn_backward`."""
    return _sinkhorn("mhc_sinkhorn_backward", iterations, columns_first, eps, logits, gradient)


def _cross(name: str, eps: float, offset: float, tensors: Sequence[Tensor | None]) -> None:
    streams, weight = tensors[0], tensors[4]
    assert streams is not None
    tokens, n, dim = streams.shape
    size, length = (0, dim) if weight is None else weight.shape
    arguments = _Crossing(tokens, dim, size, length == n * dim, torch.get_num_threads(), eps, offset)
    _call(name, n, arguments, _Crossing.TENSORS, tensors)


def _sinkhorn(
    name: str, iterations: int, columns_first: bool, eps: float, logits: Tensor, gradient: Tensor | None
) -> Tensor:
    result = allocate.uninitialised(logits)
    arguments = _Rounds(len(logits), iterations, not columns_first, torch.get_num_threads(), eps)
    _call(name, logits.shape[-1], arguments, _Rounds.TENSORS, [*_dense(logits, gradient), result])
    return result


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(
    name: str, n: int, arguments: ctypes.Structure, names: Sequence[str], tensors: Sequence[Tensor | None]
) -> None:
    """Call a function with the addresses of tensors, null for those that there are not."""
    for field, tensor in zip(names, tensors, strict=True):
        if tensor is not None and tensor.numel():
            assert tensor.dtype == torch.float32 and tensor.is_contiguous()
            setattr(arguments, field, tensor.data_ptr())
    built = library(n)
    assert not isinstance(built, str)  # `lacking` was asked before
    if getattr(built, name)(ctypes.byref(arguments)):
        raise MemoryError(f"{name} found no memory to work in")
