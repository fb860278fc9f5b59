"""The Triton kernels on a CUDA device: against float64, bfloat16 included; the same bits twice; compiled once."""

from collections.abc import Iterator
from typing import Any

import crossings
import pytest
import torch
from crossings import KINDS
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

DTYPES = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""With the largest relative error: float32 products on the matrix units are sums of three of fewer bits."""


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is full of NaN until a kernel has written it."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1, device="cuda").isnan()
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(
    kind: str, tokens: int, n: int, dim: int, joint: bool = True, dtype: torch.dtype = torch.bfloat16
) -> crossings.Case:
    return crossings.to(crossings.case(kind, tokens, n, dim, joint, dtype, crossings.fresh_generator()), "cuda")


def backward(case: crossings.Case, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    from mhc_train.kernels.triton import cross_backward

    upstream = (case.upstream[name] for name in ("written", "x", "features"))
    return cross_backward(*upstream, **case.arguments, features=results[2], scale=results[3])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_kind_of_crossing_and_its_gradients(n: int, joint: bool, dtype: torch.dtype) -> None:
    from mhc_train.kernels.triton import cross, cross_backward

    # Every kind is compiled by itself, in seconds.
    for kind in KINDS if (n, dtype) == (4, torch.bfloat16) else ("crossing", "single pass"):
        crossings.check(cross, cross_backward, on_gpu(kind, 333, n, 192, joint, dtype), DTYPES[dtype])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dim", [64, 1280, 2048, 4096])
def test_widths_of_real_models(dim: int) -> None:
    from mhc_train.kernels.triton import cross, cross_backward

    crossings.check(cross, cross_backward, on_gpu("crossing", 1027, 4, dim), DTYPES[torch.bfloat16])


def test_more_numbers_than_32_bits_count() -> None:
    from mhc_train.kernels.triton import cross

    tokens, dim = 2**15 + 1, 2**14
    streams = torch.ones(tokens, 4, dim, dtype=torch.bfloat16, device="cuda")
    pre = torch.full((tokens, 4), 0.25, device="cuda")
    _, x, _, _ = cross(streams, None, None, None, None, 1e-6, None, None, 0.0, pre)
    assert (x == 1).all()


@pytest.mark.parametrize("kind", ["crossing", "single pass"])
def test_the_same_bits_every_time(kind: str) -> None:
    from mhc_train.kernels.triton import cross

    case = on_gpu(kind, 1999, 4, 2048)
    first = cross(**case.arguments)
    gradients = backward(case, first)
    for _ in range(5):
        again = cross(**case.arguments)
        for one, other in zip((*first, *gradients), (*again, *backward(case, again)), strict=True):
            assert torch.equal(one, other)


def test_another_number_of_tokens_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    from mhc_train.kernels.triton import cross, sinkhorn, sinkhorn_backward

    def act(tokens: int) -> None:
        case = on_gpu("crossing", tokens, 4, 128)
        backward(case, cross(**case.arguments))
        logits = torch.randn(tokens, 4, 4, device="cuda")
        sinkhorn_backward(sinkhorn(logits, 20, True, 0.0), logits, 20, True, 0.0)

    act(48)
    compiled: list[Any] = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **what: compiled.append(what) or False)
    for tokens in (1, 2, 16, 17, 4096):
        act(tokens)
    assert not compiled


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("deviation", [1.0, 50.0, 1e4])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_sinkhorn_and_its_gradient(n: int, deviation: float) -> None:
    from mhc_train.kernels.triton import sinkhorn, sinkhorn_backward

    generator = crossings.fresh_generator()
    logits = (torch.randn(4099, n, n, generator=generator) * deviation * 16).round().div(16).cuda()
    upstream = torch.randn(4099, n, n, generator=generator).cuda()
    tolerance = {1.0: 5e-6, 50.0: 5e-5, 1e4: 4e-3}[deviation]
    for how in ((20, True, 0.0), (20, False, 1e-6)):
        exact = logits.double().requires_grad_()
        wanted = crossings.sinkhorn(exact, *how)
        (gradient,) = torch.autograd.grad(wanted, exact, upstream.double())
        torch.testing.assert_close(sinkhorn(logits, *how).double(), wanted.detach(), atol=tolerance, rtol=0)
        found = sinkhorn_backward(upstream, logits, *how)
        torch.testing.assert_close(found.double(), gradient, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["crossing", "single pass", "read", "write", "projection"])
def test_through_the_operator_compiled_without_a_break(kind: str) -> None:
    import mhc_train.kernels.operators  # noqa: F401  (it defines them)

    case = on_gpu(kind, 257, 4, 256)
    leaves = [value.requires_grad_() if isinstance(value, Tensor) else value for value in case.arguments.values()]
    upstream = [gradient for gradient in case.upstream.values() if gradient is not None]

    def crossing(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.mhc_train.cross(*arguments)[:3])

    def gradients(function: Any) -> tuple[Tensor, ...]:
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        results = [result for result in function(*leaves) if result.numel()]
        return torch.autograd.grad(results, inputs, upstream)

    compiled = torch.compile(crossing, fullgraph=True)
    for one, other in zip(gradients(crossing), gradients(compiled), strict=True):
        assert torch.equal(one, other)
