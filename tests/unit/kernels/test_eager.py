"""Projection, read and write: values against NumPy, hand-written backward passes against finite differences."""

from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from oracle import Array
from torch import Tensor

from mhc_train import kernels

FEATURES, EPS = 7, 1e-6
Operator = Callable[..., Tensor]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def project(streams: Tensor, weight: Tensor) -> Tensor:
    return kernels.project(streams, weight, EPS)


def projected(streams: Array, weight: Array) -> Array:
    return oracle.rms_norm(streams.reshape(*streams.shape[:-2], weight.shape[-1]), EPS) @ weight.T


def read(streams: Array, pre: Array) -> Array:
    return oracle.read(pre, streams)


OPERATORS: dict[str, tuple[Operator, Callable[..., Array]]] = {
    "project": (project, projected),
    "read": (kernels.read, read),
    "write": (kernels.write, oracle.write),
}
"""Each with its formula; both take the same inputs."""
EACH = pytest.mark.parametrize("name", OPERATORS)


def inputs(
    name: str, tokens: tuple[int, ...] = (2, 3), n: int = 4, dim: int = 5, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Random inputs of an operator, leaves that need gradients."""
    streams = normal(0, *tokens, n, dim, dtype=dtype)
    others = {
        "project": [normal(1, FEATURES, n * dim, dtype=dtype)],
        "read": [normal(2, *tokens, n, dtype=dtype)],
        "write": [normal(seed, *tokens, *shape, dtype=dtype) for seed, shape in ((3, [dim]), (4, [n]), (5, [n, n]))],
    }[name]
    return [tensor.requires_grad_() for tensor in (streams, *others)]


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, laid out with the first dimension varying fastest and with holes between them."""
    holes = torch.full((*reversed(tensor.shape), 2), torch.nan, dtype=tensor.dtype)
    holes[..., 0] = tensor.detach().permute(*reversed(range(tensor.ndim)))
    return holes[..., 0].permute(*reversed(range(tensor.ndim))).requires_grad_()


def results(operator: Operator, leaves: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """The value, and the gradients of all inputs."""
    value = operator(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves, upstream)


@EACH
@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [(6,), (2, 3), (2, 3, 2), (0,), (2, 0)])
def test_values_agree_with_the_formula(name: str, n: int, tokens: tuple[int, ...]) -> None:
    operator, formula = OPERATORS[name]
    leaves = inputs(name, tokens, n)
    expected = formula(*(leaf.detach().double().numpy() for leaf in leaves))
    actual = operator(*leaves)
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    np.testing.assert_allclose(actual.detach().double().numpy(), expected, atol=2e-6, rtol=2e-6)


@EACH
@pytest.mark.parametrize("n", [1, 4])
def test_gradients_agree_with_finite_differences(name: str, n: int) -> None:
    assert torch.autograd.gradcheck(OPERATORS[name][0], inputs(name, (2, 2), n, 3, torch.float64))


@EACH
def test_gradient_of_each_input_alone_agrees_with_finite_differences(name: str) -> None:
    leaves = inputs(name, (2,), 2, 3, torch.float64)
    for chosen in leaves:
        for leaf in leaves:
            leaf.requires_grad_(leaf is chosen)
        assert torch.autograd.gradcheck(OPERATORS[name][0], leaves)


@EACH
def test_inputs_of_any_layout_give_the_same(name: str) -> None:
    operator, _ = OPERATORS[name]
    leaves = inputs(name)
    upstream = normal(6, *operator(*leaves).shape)
    expected = results(operator, leaves, upstream)
    elsewhere = [strided(leaf) for leaf in leaves]
    assert not any(leaf.is_contiguous() for leaf in elsewhere)
    torch.testing.assert_close(results(operator, elsewhere, strided(upstream).detach()), expected)


@EACH
def test_a_sum_can_be_differentiated(name: str) -> None:
    operator, _ = OPERATORS[name]
    leaves = inputs(name)
    expected = results(operator, leaves, torch.ones_like(operator(*leaves)))
    operator(*leaves).sum().backward()  # whose gradient is one number, expanded
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected[1:]))


@pytest.mark.parametrize("name", ["read", "write"])
def test_coefficients_that_all_tokens_share_collect_the_gradients_of_all(name: str) -> None:
    operator, _ = OPERATORS[name]
    streams, *others = inputs(name)
    shared = [other.detach()[:1, :1].clone().requires_grad_() for other in others]
    copied = [one.detach().expand_as(other).clone().requires_grad_() for one, other in zip(shared, others, strict=True)]
    for leaves in (shared, copied):
        expanded = [leaf.expand_as(other) for leaf, other in zip(leaves, others, strict=True)]
        operator(streams, *expanded).square().sum().backward()
    for one, each in zip(shared, copied, strict=True):
        assert one.grad is not None and each.grad is not None
        torch.testing.assert_close(one.grad, each.grad.sum((0, 1), keepdim=True))


@EACH
def test_compiled_without_a_break_it_computes_the_same(name: str) -> None:
    operator, _ = OPERATORS[name]
    leaves = inputs(name)
    upstream = normal(6, *operator(*leaves).shape)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, leaves, upstream), results(operator, leaves, upstream))


# What a token may leave behind for the backward pass, in numbers, besides the inputs themselves.
@pytest.mark.parametrize(("name", "numbers"), [("project", FEATURES + 1), ("read", 0), ("write", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hardly_anything_is_kept_for_the_backward_pass_but_the_inputs(
    name: str, numbers: int, dtype: torch.dtype
) -> None:
    leaves = inputs(name)
    large = 2 if name == "write" else 1  # streams and output, which may be of less precision
    leaves[:large] = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves[:large]]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = OPERATORS[name][0](*leaves)
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    assert sum(size for storage, size in kept.items() if storage not in own) == 4 * 6 * numbers  # bytes of six tokens
    value.sum().backward()


def test_projection_of_nothing_is_zero_with_a_finite_gradient() -> None:
    streams, weight = torch.zeros(2, 3, 4, 5, requires_grad=True), inputs("project")[1]
    value = project(streams, weight)
    (gradient,) = torch.autograd.grad(value.sum(), streams)
    assert (value == 0).all()
    torch.testing.assert_close(gradient, (weight.sum(0) / EPS**0.5).view(4, 5).expand_as(gradient))


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_projection_of_tiny_and_huge_streams_keeps_its_digits(scale: float) -> None:
    streams, weight = inputs("project")
    root = (scale * streams.double()).flatten(-2).square().mean(-1, keepdim=True).add(EPS).sqrt()
    expected = ((scale * streams.double()).flatten(-2) @ weight.double().T / root).float()
    torch.testing.assert_close(project(scale * streams, weight), expected, atol=0, rtol=1e-4)
