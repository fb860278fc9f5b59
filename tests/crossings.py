"""Crossings with random inputs, and their float64 oracle: what kernels of every device are held against."""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

EPS, OFFSET = 1e-6, 0.1
INPUTS = ("streams", "output", "post", "res", "weight", "gate", "bias", "pre")
RESULTS = ("written", "x", "features", "scale")

KINDS = (
    "crossing", "single pass", "without mixing", "read", "given read", "projection", "write", "write without mixing",
)  # fmt: skip
"""Which halves of a crossing there are, and what they are made of."""


class Case(NamedTuple):
    """Arguments of `cross`, and the gradients that arrive at its results (None for none)."""

    arguments: dict[str, Any]
    upstream: dict[str, Tensor | None]


def fresh_generator(device: str = "cpu") -> torch.Generator:
    """Seeded by the clock; pytest shows the seed with whatever fails."""
    seed = time.time_ns() % 2**31
    print("seed", seed)
    return torch.Generator(device).manual_seed(seed)


def case(kind: str, tokens: int, n: int, dim: int, joint: bool, dtype: torch.dtype, generator: torch.Generator) -> Case:
    """Random inputs of one kind of crossing, on the generator's device; coefficients are float32."""

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device) * size

    k = n * n + 2 * n if joint else n + 2
    writes, reads = "read" not in kind and kind != "projection", "write" not in kind and kind != "projection"
    given = kind in ("single pass", "given read")
    projects = kind == "projection" or (reads and kind != "given read")
    mixes = writes and "without" not in kind
    arguments = {
        "streams": normal(tokens, n, dim).to(dtype),
        "output": normal(tokens, dim).to(dtype) if writes else None,
        # Maps lie in memory as a mixer or connection may leave them.
        "post": normal(n, tokens).T if writes else None,
        "res": normal(tokens, n, n).mT if mixes else None,
        "weight": normal(k, n * dim if joint else dim, size=(n * dim if joint else dim) ** -0.5) if projects else None,
        "eps": EPS,
        "gate": normal() if reads and not given else None,
        "bias": normal(n) if reads and not given else None,
        "offset": OFFSET,
        "pre": normal(n, tokens).T if given else None,
    }
    upstream = {
        "written": normal(tokens, n, dim).to(dtype) if writes else None,
        "x": normal(tokens, dim).to(dtype) if reads else None,
        "features": normal(tokens, 1 if joint else n, k) if projects else None,
    }
    return Case(arguments, upstream)


def to(case: Case, device: str) -> Case:
    """The same numbers elsewhere."""

    def moved(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}

    return Case(moved(case.arguments), moved(case.upstream))


def expected(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results and gradients of all inputs in float64, the new state rounded to its dtype as if stored."""
    doubles = {
        name: value.double().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in case.arguments.items()
    }
    results = formula(**doubles, dtype=case.arguments["streams"].dtype)
    arrived = [(results[name], gradient.double()) for name, gradient in case.upstream.items() if gradient is not None]
    loss = torch.stack([(value * gradient).sum() for value, gradient in arrived]).sum()
    names = [name for name in INPUTS if doubles[name] is not None]
    gradients = torch.autograd.grad(loss, [doubles[name] for name in names], materialize_grads=True)
    return {name: value.detach() for name, value in results.items()}, dict(zip(names, gradients, strict=True))


def formula(
    streams: Tensor,
    output: Tensor | None,
    post: Any,
    res: Tensor | None,
    weight: Tensor | None,
    eps: float,
    gate: Tensor | None,
    bias: Any,
    offset: float,
    pre: Tensor | None,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The crossing as equations."""
    results, state = {}, streams
    if output is not None:
        mixed = streams if res is None else torch.einsum("tij,tjc->tic", res, streams)
        exact = mixed + torch.einsum("ti,tc->tic", post, output)
        state = exact + (exact.to(dtype).double() - exact).detach()
        results["written"] = state
    if weight is not None:
        vectors = state.reshape(len(streams), -1, weight.shape[1])
        results["scale"] = (vectors.square().mean(-1) + eps) ** -0.5
        results["features"] = torch.einsum("tg,kv,tgv->tgk", results["scale"], weight, vectors)
    if gate is not None:
        features, n = results["features"], streams.shape[1]
        joint = features.shape[1] == 1
        gated = gate * (features[:, 0, :n] if joint else features[..., 0].tanh()) + bias
        pre = torch.sigmoid(gated) + offset if joint else gated
    if pre is not None:
        results["x"] = torch.einsum("ti,tic->tc", pre, state)
    return results


def check(cross: Any, cross_backward: Any, case: Case, tolerance: float) -> None:
    """Hold both directions against the oracle: values, shapes, and emptiness of what there is not."""
    results, gradients = expected(case)
    actual = dict(zip(RESULTS, cross(**case.arguments), strict=True))
    compare(actual, results, tolerance)
    upstream = (case.upstream[name] for name in ("written", "x", "features"))
    found = cross_backward(*upstream, **case.arguments, features=actual["features"], scale=actual["scale"])
    compare(dict(zip(INPUTS, found, strict=True)), gradients, tolerance)


def compare(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Each relative to its size; of gate and bias, sums of as many random terms as streams have numbers, to those'."""
    for name, value in actual.items():
        if name not in wanted:
            assert value.numel() == 0, name
            continue
        assert value.shape == wanted[name].shape, name
        least = wanted["streams"].numel() ** 0.5 if name in ("gate", "bias") else 1e-30
        error = (value.double() - wanted[name]).norm() / wanted[name].norm().clamp_min(least)
        assert error < tolerance, f"{name}: {float(error):.2e}"


def sinkhorn(logits: Tensor, rounds: int, columns_first: bool, eps: float) -> Tensor:
    """The truncated map in float64, all of it in log space where there is no eps."""
    axes = (-2, -1) if columns_first else (-1, -2)
    if not eps:
        for axis in axes * rounds:
            logits = logits.log_softmax(axis)
        return logits.exp()
    matrices = logits.softmax(axes[0]) + eps
    for axis in (axes * rounds)[1:]:
        matrices = matrices / (matrices.sum(axis, keepdim=True) + eps)
    return matrices
