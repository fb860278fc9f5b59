"""One site of mHC for `gpu.py`: by these kernels and by plain torch, compiled or not, and by liger-kernel."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_kernels import ROUNDS, Scale, times
from gpu_run import brief
from torch import Tensor
from torch._functorch import config as functorch

from mhc_train import kernels
from mhc_train.kernels.choice import TRITON, VARIABLE

EPS = 1e-6
PARTS = ("read", "write", "crossing")
LIGER = "liger-kernel"
NOTE = (
    "liger-kernel's maps are another function: it sums over rows first, adds an eps to every sum, and its projection's "
    "weight is in the streams' precision. Only the times can be compared."
)


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
    n, dtype = scale.streams, scale.dtype
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


def ours(part: str, given: Site) -> tuple[Tensor, ...]:
    """The operators that trainings use."""
    n = given.streams.shape[1]
    write = None if part == "read" else kernels.Write(given.output, given.post, given.res)
    if part == "write":
        return (kernels.cross(given.streams, write, None, None)[0],)
    reading = kernels.Reading(given.gates[0], given.bias[:n])
    written, x, features = kernels.cross(given.streams, write, kernels.Projection(given.weight, EPS), reading)
    logits = features[:, n:] * spread(given.gates, n)[n:] + given.bias[n:]
    matrices = kernels.sinkhorn(logits[:, n:].unflatten(-1, (n, n)), ROUNDS, True, 0.0)
    maps = 2 * logits[:, :n].sigmoid(), matrices
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


def liger(part: str, given: Site) -> tuple[Tensor, ...]:
    """See `NOTE`."""
    from liger_kernel.transformers.functional import liger_mhc_coeffs, liger_mhc_post_res, liger_mhc_pre

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


def ways(device: str) -> dict[str, Way]:
    found: dict[str, Way] = {"ours": ours, "plain": plain}
    if device == "cpu":
        return found
    # A backward pass that is timed again and again must leave what it was given alone.
    functorch.donated_buffer = False
    compiled: dict[str, Way] = {f"{name}, compiled": torch.compile(way, dynamic=False) for name, way in found.items()}
    return {**found, **compiled, LIGER: liger}


def acts(way: Way, part: str, given: Site) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and the backward pass alone, of one that is kept; each has been run once."""
    results = way(part, given)
    upstream = [torch.randn_like(result) for result in results]

    def backward() -> Any:
        return torch.autograd.grad(results, given, upstream, retain_graph=True, allow_unused=True)

    backward()
    return {"forward": lambda: way(part, given), "backward": backward}


def beside(scale: Scale, dim: int) -> dict[str, Any]:
    """Milliseconds of every part by every way, those of one part taken in turn; and why some are missing."""
    # These kernels or none: not the eager path, silently, in their place.
    with mock.patch.dict(os.environ, {VARIABLE: TRITON}):
        given, found = site(dim, scale), ways(scale.device)
        rows: list[dict[str, Any]] = []
        refused: dict[str, str] = {}
        for part in PARTS:
            for direction, taken in part_times(part, given, found, scale, refused).items():
                row = {"part": part, "dim": dim, "direction": direction}
                rows += [{**row, "way": name, **values} for name, values in taken.items()]
    return {"rows": rows, "refused": refused, "note": NOTE}


def part_times(
    part: str, given: Site, found: dict[str, Way], scale: Scale, refused: dict[str, str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Of both directions of one part; a way that fails is noted among `refused`."""
    entered = {}
    for name, way in found.items():
        try:
            entered[name] = acts(way, part, given)
        except Exception as error:
            refused[f"{name}, {part}"] = brief(error)
    return {
        direction: times({name: act[direction] for name, act in entered.items()}, scale.device, scale.repeats)
        for direction in ("forward", "backward")
    }
