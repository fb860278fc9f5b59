"""The Triton kernels in Triton's interpreter, on the CPU, against float64.

Triton decides when it is imported whether kernels are interpreted, and torch may have imported it already: the tests
that run kernels run in a process of their own, which the last test starts and reports.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import crossings
import pytest
import torch
from crossings import EPS, KINDS, RESULTS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in the interpreter, in a process of its own")

# Triton's interpreter cannot multiply matrices of bfloat16.
DTYPES = {torch.float32: 3e-6, torch.float16: 2e-3}
"""With the largest relative error: what a result that is stored in it may lose, and sums of such."""


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory is full of NaN until a kernel has written it."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def check(kind: str, n: int, dim: int, joint: bool, dtype: torch.dtype, tokens: int, silent: str = "") -> None:
    """One case, forward and all gradients; the gradient of the result `silent` is none."""
    from mhc_train.kernels.triton import cross, cross_backward

    case = crossings.case(kind, tokens, n, dim, joint, dtype, crossings.fresh_generator())
    if silent:
        case.upstream[silent] = None
    crossings.check(cross, cross_backward, case, DTYPES[dtype])


@inside
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_kind_of_crossing_and_its_gradients(n: int, joint: bool, dtype: torch.dtype) -> None:
    for kind in KINDS:
        check(kind, n, 64, joint, dtype, tokens=21)


@inside
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dim", [128, 192])
@pytest.mark.parametrize("joint", [True, False])
def test_widths_of_several_tiles(dim: int, joint: bool) -> None:
    check("crossing", 4, dim, joint, torch.float32, tokens=1)
    check("crossing", 2, dim, joint, torch.float16, tokens=3)


@inside
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [1, 63, 65, 201])
def test_any_number_of_tokens(tokens: int) -> None:
    check("crossing", 2, 64, True, torch.float32, tokens)
    check("single pass", 2, 64, True, torch.float32, tokens)


@inside
def test_no_tokens() -> None:
    from mhc_train.kernels.triton import cross, cross_backward, sinkhorn, sinkhorn_backward

    case = crossings.case("crossing", 0, 4, 64, True, torch.float32, crossings.fresh_generator())
    results = cross(**case.arguments)
    assert [value.shape[0] for value in results] == [0, 0, 0, 0]
    found = cross_backward(None, None, None, **case.arguments, features=results[2], scale=results[3])
    assert found[4].shape == case.arguments["weight"].shape and not found[4].any()
    empty = torch.empty(0, 4, 4)
    assert sinkhorn(empty, 3, True, 0.0).shape == sinkhorn_backward(empty, empty, 3, True, 0.0).shape == empty.shape


@inside
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("silent", ["written", "x", "features"])
@pytest.mark.parametrize("joint", [True, False])
def test_a_gradient_that_does_not_arrive_is_zero(joint: bool, silent: str) -> None:
    check("crossing", 2, 64, joint, torch.float32, 5, silent)
    check("single pass", 2, 64, joint, torch.float32, 5, silent)
    check("crossing", 8, 64, joint, torch.float32, 5, silent)


@inside
def test_a_token_of_zeros_has_the_bias_for_logits() -> None:
    from mhc_train.kernels.triton import cross

    case = crossings.case("read", 3, 4, 64, True, torch.float32, crossings.fresh_generator())
    case.arguments["streams"].zero_()
    _, x, features, scale = cross(**case.arguments)
    assert not x.any() and not features.any()
    torch.testing.assert_close(scale, torch.full((3, 1), EPS**-0.5))


@inside
@pytest.mark.parametrize("kind", ["read", "write"])
def test_the_gradient_of_an_empty_result_may_be_empty(kind: str) -> None:
    from mhc_train.kernels.triton import cross, cross_backward

    case = crossings.case(kind, 5, 4, 64, True, torch.float32, crossings.fresh_generator())
    results = cross(**case.arguments)
    absent = list(case.upstream.values())
    empty = [torch.empty(0) if gradient is None else gradient for gradient in absent]
    made = {**case.arguments, "features": results[2], "scale": results[3]}
    for one, other in zip(cross_backward(*absent, **made), cross_backward(*empty, **made), strict=True):
        assert torch.equal(one, other)


@inside
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [4, 8])
def test_torch_accepts_every_kind_as_an_operator(n: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mhc_train.kernels import operators

    monkeypatch.setenv("MHC_KERNELS", "triton")
    case = crossings.case(kind, 5, n, 64, True, torch.float16, crossings.fresh_generator())
    results = operators.cross(**case.arguments)
    upstream = tuple(case.upstream[name] for name in ("written", "x", "features"))
    given = (*upstream, *case.arguments.values(), *results[2:])
    # Results share no memory, and fake ones are of the same shapes and dtypes.
    for operator, arguments in ((operators.cross, tuple(case.arguments.values())), (operators.cross_backward, given)):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@inside
@pytest.mark.parametrize("k", [5, 33])
def test_any_number_of_features(k: int) -> None:
    from mhc_train.kernels.triton import cross

    case = crossings.case("read", 7, 4, 64, True, torch.float32, crossings.fresh_generator())
    case.arguments["weight"] = torch.randn(k, 256, generator=crossings.fresh_generator())
    case.upstream["features"] = None
    results, _ = crossings.expected(case)
    crossings.compare(dict(zip(RESULTS, cross(**case.arguments), strict=True)), results, 3e-6)


@inside
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("deviation", [1.0, 50.0, 1e4])
@pytest.mark.parametrize(("n", "iterations"), [(2, 20), (4, 20), (4, 1), (8, 20)])
def test_sinkhorn_and_its_gradient(n: int, iterations: int, deviation: float) -> None:
    from mhc_train.kernels.triton import sinkhorn, sinkhorn_backward

    generator = crossings.fresh_generator()
    # Multiples of 1/16, small enough that float32 holds their differences exactly: what is left is the map's own error.
    logits = (torch.randn(1031, n, n, generator=generator) * deviation * 16).round() / 16
    upstream = torch.randn(1031, n, n, generator=generator)
    for columns_first in (True, False):
        for eps in (0.0, 1e-6):
            exact = logits.double().requires_grad_()
            wanted = crossings.sinkhorn(exact, iterations, columns_first, eps)
            (gradient,) = torch.autograd.grad(wanted, exact, upstream.double())
            # At 1e4 the logarithms of float32 itself are 1e-3 apart.
            tolerance = {1.0: 2e-6, 50.0: 2e-5, 1e4: 4e-3}[deviation]
            how = (iterations, columns_first, eps)
            torch.testing.assert_close(sinkhorn(logits, *how).double(), wanted.detach(), atol=tolerance, rtol=0)
            found = sinkhorn_backward(upstream, logits, *how)
            torch.testing.assert_close(found.double(), gradient, atol=tolerance, rtol=0)


@inside
def test_forbidden_entries_stay_zero() -> None:
    from mhc_train.kernels.triton import sinkhorn, sinkhorn_backward

    logits = torch.randn(5, 4, 4, generator=crossings.fresh_generator())
    logits[:, 0, 1] = -torch.inf
    matrices = sinkhorn(logits, 20, True, 0.0)
    assert not matrices[:, 0, 1].any() and matrices.isfinite().all()
    assert sinkhorn_backward(torch.ones_like(logits), logits, 20, True, 0.0).isfinite().all()


@installed
def test_what_is_not_supported_is_said() -> None:
    from mhc_train.kernels.triton import supports

    assert supports(4, 2048, torch.bfloat16) is None
    assert "3" in str(supports(3, 64, torch.float32))
    assert "100" in str(supports(4, 100, torch.float32))
    assert "float64" in str(supports(4, 64, torch.float64))


@installed
@pytest.mark.skipif(INTERPRETED, reason="is the interpreter")
def test_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
