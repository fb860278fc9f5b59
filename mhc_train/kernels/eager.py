"""Projection, read and write as single operators whose backward passes are written by hand.

Autograd on the plain expressions keeps products of the size of all streams for the backward pass and walks over the
streams many times. These keep the streams themselves, which exist anyway, in the precision that they come in, and
numbers of n or n^2 a token. Arithmetic is in the coefficients' precision. Tokens may have any number of dimensions from
one on.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def project(
    streams: Float[Tensor, "*tokens n C"], weight: Float[Tensor, "k n*C"], eps: float
) -> Float[Tensor, "*tokens k"]:
    """`mhc_train.kernels.project`."""
    features: Tensor = _Project.apply(streams.flatten(-2).flatten(0, -2), weight, eps)
    return features.view(*streams.shape[:-2], weight.shape[0])


def read(streams: Float[Tensor, "*tokens n C"], pre: Float[Tensor, "*tokens n"]) -> Float[Tensor, "*tokens C"]:
    """`mhc_train.kernels.read`."""
    if torch.compiler.is_compiling():
        return (pre.unsqueeze(-1) * streams).sum(-2).to(streams.dtype)
    x: Tensor = _Read.apply(streams.flatten(0, -3), pre.flatten(0, -2))
    return x.view(*streams.shape[:-2], streams.shape[-1]).to(streams.dtype)


def write(
    streams: Float[Tensor, "*tokens n C"],
    output: Float[Tensor, "*tokens C"],
    post: Float[Tensor, "*tokens n"],
    res: Float[Tensor, "*tokens n n"] | None,
) -> Float[Tensor, "*tokens n C"]:
    """`mhc_train.kernels.write`."""
    if res is None:
        return (streams + post.unsqueeze(-1) * output.unsqueeze(-2)).to(streams.dtype)
    if torch.compiler.is_compiling():
        mixed = (res.unsqueeze(-1) * streams.unsqueeze(-3)).sum(-2)
        return (mixed + post.unsqueeze(-1) * output.unsqueeze(-2)).to(streams.dtype)
    written: Tensor = _Write.apply(
        streams.flatten(0, -3), output.flatten(0, -2), post.flatten(0, -2), res.flatten(0, -3)
    )
    return written.view(streams.shape).to(streams.dtype)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, weight: Tensor, eps: float) -> Tensor:
        joint = streams.to(weight.dtype)
        # The norm needs no copy of the squares.
        mean_square = torch.linalg.vector_norm(joint, dim=-1, keepdim=True).square() / joint.shape[-1]
        scale = (mean_square + eps).rsqrt()
        features = (joint @ weight.T).mul_(scale)
        ctx.save_for_backward(streams, weight, scale, features)
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        streams, weight, scale, features = ctx.saved_tensors
        joint, (gradient,) = streams.to(weight.dtype), gradients
        # f = s W v with s = (mean v^2 + eps)^(-1/2), hence ds = -s^3 v.dv / size.
        scaled = gradient * scale
        shrink = (gradient * features).sum(-1, keepdim=True) * scale.square() / -joint.shape[-1]
        return (scaled @ weight).addcmul_(joint, shrink).to(streams.dtype), scaled.T @ joint, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(streams, pre)
        return torch.bmm(pre.unsqueeze(-2), streams.to(pre.dtype)).squeeze(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        streams, pre = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-2)
        g_pre = torch.bmm(gradient, streams.to(pre.dtype).mT).squeeze(-2)
        return (pre.unsqueeze(-1) * gradient).to(streams.dtype), g_pre


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, output: Tensor, post: Tensor, res: Tensor) -> Tensor:
        res = res.contiguous()  # a strided matrix would be copied once a token
        ctx.save_for_backward(streams, output, post, res)
        return torch.bmm(res, streams.to(res.dtype)).addcmul_(post.unsqueeze(-1), output.unsqueeze(-2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        streams, output, post, res = ctx.saved_tensors
        (gradient,) = gradients
        return (
            torch.bmm(res.mT, gradient).to(streams.dtype),
            torch.bmm(post.unsqueeze(-2), gradient).squeeze(-2).to(output.dtype),
            torch.bmm(output.to(res.dtype).unsqueeze(-2), gradient.mT).squeeze(-2),
            torch.bmm(gradient, streams.to(res.dtype).mT),
        )
