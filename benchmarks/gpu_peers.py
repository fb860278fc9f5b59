"""One site of mHC for `gpu.py`: by these kernels, by plain torch, compiled or not, by liger-kernel."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpu_kernels import ROUNDS, Scale, times
from torch import Tensor

from mhc_train.kernels import triton as kernels

EPS = 1e-6
PARTS = ("read", "write", "crossing")


class Site(NamedTuple):
    """What a site of mHC works on; everything but the streams' dtype is float32."""

    streams: Tensor
    output: Tensor
    post: Tensor
    res: Tensor
    weight: Tensor
    gates: Tensor
    """Of pre, post and res."""
    bias: Tensor


Way = Callable[[str, Site], tuple[Tensor, ...]]
"""From a part and a site to what the part makes: new streams, the sublayer's input, H_post and H_res."""


def site(dim: int, scale: Scale) -> Site:
    """Random, every tensor a leaf that wants its gradient."""
    n, dtype = scale.streams, scale.dtypes[-1]
    k = n * n + 2 * n

    def normal(*shape: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, device=scale.device) * size).to(dtype).requires_grad_()

    return Site(
        normal(scale.tokens, n, dim, dtype=dtype), normal(scale.tokens, dim, dtype=dtype),
        normal(scale.tokens, n), normal(scale.tokens, n, n), normal(k, n * dim, size=0.02), normal(3), normal(k),
    )  # fmt: skip


def spread(gates: Tensor, n: int) -> Tensor:
    """A gate for every feature."""
    return torch.cat([gates[:1].expand(n), gates[1:2].expand(n), gates[2:].expand(n * n)])


class Cross(torch.autograd.Function):
    """The kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        results = kernels.cross(*arguments)
        ctx.arguments, ctx.features, ctx.scale = arguments, results[2], results[3]
        ctx.mark_non_differentiable(results[3])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        found = kernels.cross_backward(*upstream[:3], *ctx.arguments, ctx.features, ctx.scale)
        streams, output, post, res, weight, gate, bias, pre = (grad if grad.numel() else None for grad in found)
        return streams, output, post, res, weight, None, gate, bias, None, pre


class Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return kernels.sinkhorn(logits, ROUNDS, True, 0.0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return kernels.sinkhorn_backward(upstream[0], *ctx.saved_tensors, ROUNDS, True, 0.0)


def ours(part: str, given: Site) -> tuple[Tensor, ...]:
    n = given.streams.shape[1]
    writing = (None, None, None) if part == "read" else (given.output, given.post, given.res)
    reading: tuple[Any, ...] = (None, EPS, None, None, 0.0, None)
    if part != "write":
        reading = (given.weight, EPS, given.gates[0], given.bias[:n], 0.0, None)
    written, x, features, _ = Cross.apply(given.streams, *writing, *reading)
    if part == "write":
        return (written,)
    logits = features[:, 0, n:] * spread(given.gates, n)[n:] + given.bias[n:]
    maps = 2 * logits[:, :n].sigmoid(), Sinkhorn.apply(logits[:, n:].unflatten(-1, (n, n)))
    return (x, *maps) if part == "read" else (written, x, *maps)


def plain(part: str, given: Site) -> tuple[Tensor, ...]:
    """As one writes it down."""
    n, dtype, state = given.streams.shape[1], given.streams.dtype, given.streams.float()
    if part != "read":
        state = given.res @ state + given.post[..., None] * given.output.float()[:, None]
        state = state.to(dtype).float()
    if part == "write":
        return (state.to(dtype),)
    joint = state.flatten(1)
    features = joint @ given.weight.T * (joint.square().mean(-1, keepdim=True) + EPS).rsqrt()
    pre, post, res = (features * spread(given.gates, n) + given.bias).split([n, n, n * n], -1)
    matrices = res.unflatten(-1, (n, n)).log_softmax(-2).softmax(-1)
    for _ in range(ROUNDS - 1):
        matrices = matrices / matrices.sum(-2, keepdim=True)
        matrices = matrices / matrices.sum(-1, keepdim=True)
    x = (pre.sigmoid()[..., None] * state).sum(1).to(dtype)
    maps = 2 * post.sigmoid(), matrices
    return (x, *maps) if part == "read" else (state.to(dtype), x, *maps)


def liger() -> Way | None:
    """liger-kernel's operators, where they are installed."""
    try:
        from liger_kernel.transformers.functional import liger_mhc_coeffs, liger_mhc_post_res, liger_mhc_pre
    except ImportError:
        return None

    def way(part: str, given: Site) -> tuple[Tensor, ...]:
        state = given.streams
        if part != "read":
            state = liger_mhc_post_res(state, given.output, given.post, given.res)
        if part == "write":
            return (state,)
        # Its weight is the transpose, in the streams' dtype.
        weight = given.weight.T.to(state.dtype).contiguous()
        pre, post, res = liger_mhc_coeffs(state, weight, given.bias, *given.gates.unbind(), tmax=ROUNDS)
        x = liger_mhc_pre(state, pre)
        return (x, post, res) if part == "read" else (state, x, post, res)

    return way


def ways(scale: Scale) -> dict[str, Way]:
    """Everything that can be had here."""
    found: dict[str, Way] = {"ours": ours, "plain": plain}
    if scale.device == "cuda":
        found["plain, compiled"] = torch.compile(plain, dynamic=False)
        if theirs := liger():
            found["liger-kernel"] = theirs
    return found


def acts(way: Way, part: str, given: Site) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and the backward pass alone, of one that is kept."""
    results = way(part, given)
    upstream = [torch.randn_like(result) for result in results]

    def backward() -> Any:
        return torch.autograd.grad(results, given, upstream, retain_graph=True, allow_unused=True)

    return {"forward": lambda: way(part, given), "backward": backward}


def beside(scale: Scale) -> list[dict[str, Any]]:
    """Milliseconds of every part by every way, those of one part taken in turn."""
    rows = []
    for dim in scale.dims:
        given = site(dim, scale)
        for part in PARTS:
            entered = {name: acts(way, part, given) for name, way in ways(scale).items()}
            for direction in ("forward", "backward"):
                taken = times({name: act[direction] for name, act in entered.items()}, scale.device, scale.repeats)
                rows += [
                    {"part": part, "dim": dim, "direction": direction, "way": name, **row}
                    for name, row in taken.items()
                ]
    return rows
