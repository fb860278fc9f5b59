"""The fused operators as torch knows them: for autograd, for compilers that must not look inside, for fake tensors."""

from typing import Any

import torch
from torch import Tensor

from mhc_train.kernels import allocate
from mhc_train.kernels.choice import ANY_WIDTH, TRITON, chosen


def _kernels(like: Tensor, streams: int, dim: int) -> Any:
    """The module that has the operators for n streams of C channels on this tensor's device, in its precision."""
    if chosen(like.device.type, like.dtype, streams, dim) == TRITON:
        from mhc_train.kernels import triton

        return triton
    from mhc_train.kernels import native

    return native


@torch.library.custom_op("mhc_train::cross", mutates_args=())
def cross(
    streams: Tensor, output: Tensor | None, post: Tensor | None, res: Tensor | None, weight: Tensor | None, eps: float,
    gate: Tensor | None, bias: Tensor | None, offset: float, pre: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Write a sublayer's output and read the next one's input, in one pass over the streams; either may be absent.

    Args:
        streams: (T, n, C), float32 or, on a GPU, half precision; all coefficients are float32.
        output: (T, C), the sublayer's, in the streams' dtype; None: nothing is written.
        post: (T, n), what each stream receives of it.
        res: (T, n, n), row i receives; None: the identity.
        weight: (k, n C) projects the streams of a token jointly (mHC), (k, C) each stream alone (HC); None: neither.
        eps: added to the mean square that the projection is divided by the root of.
        gate: scalar, and `bias`, (n): make the read weights of features: mHC's `sigmoid(gate f[i] + bias[i]) + offset`
            of the first n, HC's `gate tanh(f[i, 0]) + bias[i]` of each stream's first.
        bias: see `gate`.
        offset: see `gate`.
        pre: (T, n), the read weights, where they are not made of features. Without it and `gate`, nothing is read.

    Returns:
        X'[i] = sum_j res[i, j] X[j] + post[i] output, (T, n, C); x = sum_i pre[i] X'[i], (T, C); the features of X',
        float32, (T, 1 or n, k), and what they were multiplied by, (T, 1 or n). Without a write, X' is X and not
        returned. What is not there is an empty tensor.
    """
    with torch.cuda.device_of(streams):
        return _kernels(streams, *streams.shape[1:]).cross(
            streams, output, post, res, weight, eps, gate, bias, offset, pre
        )


@torch.library.custom_op("mhc_train::cross_backward", mutates_args=())
def cross_backward(
    g_written: Tensor | None, g_x: Tensor | None, g_features: Tensor | None,
    streams: Tensor, output: Tensor | None, post: Tensor | None, res: Tensor | None, weight: Tensor | None, eps: float,
    gate: Tensor | None, bias: Tensor | None, offset: float, pre: Tensor | None, features: Tensor, scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of a crossing's streams, output, post, res, weight, gate, bias and pre; empty ones for what is None.

    X' is not needed: it is written again, tile by tile.
    """
    arriving = (g_written, g_x, g_features)
    inputs = (streams, output, post, res, weight, eps, gate, bias, offset, pre)
    with torch.cuda.device_of(streams):
        return _kernels(streams, *streams.shape[1:]).cross_backward(*arriving, *inputs, features, scale)


@torch.library.custom_op("mhc_train::sinkhorn", mutates_args=())
def sinkhorn(logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """The rounds of `mhc_train.mixers.sinkhorn`: (T, n, n), float32."""
    with torch.cuda.device_of(logits):
        return _kernels(logits, logits.shape[-1], ANY_WIDTH).sinkhorn(logits, iterations, columns_first, eps)


@torch.library.custom_op("mhc_train::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(gradient: Tensor, logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    """The exact derivative of the truncated map, from its logits."""
    kernels = _kernels(logits, logits.shape[-1], ANY_WIDTH)
    with torch.cuda.device_of(logits):
        return kernels.sinkhorn_backward(gradient, logits, iterations, columns_first, eps)


@cross.register_fake
def _(streams: Tensor, output: Tensor | None, post: Any, res: Any, weight: Tensor | None, eps: float, gate: Any,
      bias: Any, offset: float, pre: Any) -> tuple[Tensor, ...]:  # fmt: skip
    return allocate.crossing(streams, output, weight, gate is not None or pre is not None)


@cross_backward.register_fake
def _(g_written: Any, g_x: Any, g_features: Any, streams: Tensor, output: Any, post: Any, res: Any, weight: Any,
      eps: float, gate: Any, bias: Any, offset: float, pre: Any, features: Any,
      scale: Any) -> tuple[Tensor, ...]:  # fmt: skip
    return allocate.gradients(streams, output, post, res, weight, gate, bias, pre)


@sinkhorn.register_fake
def _(logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    return allocate.uninitialised(logits)


@sinkhorn_backward.register_fake
def _(gradient: Tensor, logits: Tensor, iterations: int, columns_first: bool, eps: float) -> Tensor:
    return allocate.uninitialised(logits)


def _keep_crossing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    streams, out, post, res, weight, ctx.eps, gate, bias, ctx.offset, pre = inputs
    ctx.save_for_backward(streams, out, post, res, weight, gate, bias, pre, *output[2:])


def _crossing_backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
    streams, output, post, res, weight, gate, bias, pre, *made = ctx.saved_tensors
    inputs = (streams, output, post, res, weight, ctx.eps, gate, bias, ctx.offset, pre)
    given = cross_backward(*arriving[:3], *inputs, *made)
    g_streams, g_output, g_post, g_res, g_weight, g_gate, g_bias, g_pre = (
        gradient if value is not None else None
        for gradient, value in zip(given, (streams, output, post, res, weight, gate, bias, pre), strict=True)
    )
    return g_streams, g_output, g_post, g_res, g_weight, None, g_gate, g_bias, None, g_pre


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.how = inputs[1:]


def _sinkhorn_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return sinkhorn_backward(gradient, *ctx.saved_tensors, *ctx.how), None, None, None


cross.register_autograd(_crossing_backward, setup_context=_keep_crossing)
sinkhorn.register_autograd(_sinkhorn_backward, setup_context=_keep_logits)
