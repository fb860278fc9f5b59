"""The C++ operators: values and all gradients against float64, whatever the threads; where they are not taken."""

import itertools
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crossings import INPUTS, KINDS, Case, case, check, expected, fresh_generator
from torch import Tensor

from mhc_train import kernels
from mhc_train.errors import ConfigError
from mhc_train.kernels import allocate, build, choice, native, operators
from mhc_train.mixers.sinkhorn import sinkhorn

pytestmark = pytest.mark.skipif(isinstance(build.library(4), str), reason="no C++ compiler")

TOLERANCE = 2e-5
SHAPES = {
    "": {},
    "one token": {"tokens": 1},
    "two streams": {"n": 2},
    "three streams": {"n": 3, "dim": 48},
    "eight streams": {"tokens": 9, "n": 8, "dim": 128},
    "each stream alone": {"joint": False},
    "each of eight alone": {"tokens": 5, "n": 8, "joint": False},
    "narrow": {"dim": 16},
    "wide": {"tokens": 3, "dim": 320},
}


def a_case(kind: str, tokens: int = 37, n: int = 4, dim: int = 64, joint: bool = True) -> Case:
    return case(kind, tokens, n, dim, joint, torch.float32, fresh_generator())


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an operator is to fill begins as NaN, so that nothing can be left out unseen."""

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan)

    crossing, large = allocate.crossing, allocate.uninitialised
    monkeypatch.setattr(allocate, "crossing", lambda *given: tuple(map(poison, crossing(*given))))
    monkeypatch.setattr(allocate, "uninitialised", lambda tensor: poison(large(tensor)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_those_of_the_formula(kind: str, shape: dict) -> None:
    check(native.cross, native.cross_backward, a_case(kind, **shape), TOLERANCE)


def leaves(given: Case) -> dict[str, Any]:
    """The arguments, all of which need gradients."""
    return {
        name: value.requires_grad_() if isinstance(value, Tensor) else value for name, value in given.arguments.items()
    }


def test_gradients_that_nothing_arrives_at_count_as_zero() -> None:
    given = leaves(a_case("crossing"))
    written, x, _, _ = operators.cross(**given)
    (by_written,) = torch.autograd.grad(written.sum(), given["weight"], retain_graph=True)
    assert not by_written.any()
    (by_x,) = torch.autograd.grad(x.sum(), given["output"])
    assert torch.isfinite(by_x).all() and by_x.any()


@pytest.mark.parametrize("joint", [True, False])
def test_threads_share_the_tokens(joint: bool) -> None:
    given, threads = a_case("crossing", joint=joint), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        check(native.cross, native.cross_backward, given, TOLERANCE)
        first, second = (native.cross(**given.arguments) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


WITHOUT_TORCH = """
import ctypes, json, sys
library, logits = ctypes.CDLL(sys.argv[1]), json.loads(sys.argv[2])
assert not hasattr(ctypes.CDLL(None), "GOMP_parallel")
given = (ctypes.c_float * len(logits))(*logits)
result = (ctypes.c_float * len(logits))()
names = ["tokens", "iterations", "first", "threads"], ["logits", "gradient", "result"]

class Rounds(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in names[0]), ("eps", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in names[1]),
    ]

rounds = Rounds(len(logits) // 4, 20, 0, 3, 0.0, ctypes.addressof(given), None, ctypes.addressof(result))
assert library.mhc_sinkhorn(ctypes.byref(rounds)) == 0
print(json.dumps(list(result)))
"""
"""Sinkhorn in a process that has no OpenMP runtime, by the library alone."""


@pytest.mark.skipif(sys.platform != "linux", reason="where the interpreter itself may have such a runtime")
def test_threads_are_started_where_there_are_none() -> None:
    logits = torch.randn(100, 2, 2)
    built = build.library(2)
    assert not isinstance(built, str)
    command = [sys.executable, "-c", WITHOUT_TORCH, built._name, json.dumps(logits.flatten().tolist())]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert torch.equal(torch.tensor(json.loads(said)).view_as(logits), native.sinkhorn(logits, 20, True, 0.0))


def test_a_write_and_a_read_apart_are_a_crossing_to_the_last_bit() -> None:
    """What recomputation relies on, which cuts the path between the two."""
    given = leaves(a_case("crossing"))
    streams, output, post, res = (given[name] for name in ("streams", "output", "post", "res"))
    reading = kernels.Reading(given["gate"], given["bias"], given["offset"])
    projection = kernels.Projection(given["weight"], given["eps"])
    whole = kernels.cross(streams, kernels.Write(output, post, res), projection, reading)
    written = kernels.write(streams, output, post, res)
    apart = (written, *kernels.cross(written, None, projection, reading)[1:])
    wanted = [given[name] for name in INPUTS if given[name] is not None]
    upstream = [torch.randn_like(x) for x in whole]
    for one, other in zip(whole, apart, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(*(torch.autograd.grad(x, wanted, upstream) for x in (whole, apart)), strict=True):
        assert torch.equal(one, other)


def test_a_saturated_sigmoid_keeps_its_slope() -> None:
    """Whose value, with the offset on it, has no digits of it left."""
    given = a_case("read")
    given.arguments["bias"] = torch.full((4,), -16.0)
    given.upstream["features"] = None
    _, wanted = expected(given)
    results = native.cross(**given.arguments)
    found = native.cross_backward(
        None, given.upstream["x"], None, **given.arguments, features=results[2], scale=results[3]
    )
    bias = INPUTS.index("bias")
    torch.testing.assert_close(found[bias].double(), wanted["bias"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_coefficients_of_another_precision_have_gradients_too(dtype: torch.dtype) -> None:
    """As a connection of one's own may make them."""
    given = a_case("single pass").arguments
    names = ("post", "res", "weight", "pre")

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        # What bfloat16 cannot hold is lost before, so that the rest is the same in all precisions.
        own = {name: given[name].bfloat16().to(dtype).requires_grad_() for name in names}
        write, projection = (
            kernels.Write(given["output"], own["post"], own["res"]),
            kernels.Projection(own["weight"], 0),
        )
        written, x, features = kernels.cross(given["streams"], write, projection, own["pre"])
        loss = written.square().sum() + x.square().sum() + features.sum()
        return torch.autograd.grad(loss, list(own.values()))

    for one, other in zip(gradients(dtype), gradients(torch.float32), strict=True):
        assert one.dtype == dtype and torch.equal(one, other.to(dtype))


def test_coefficients_are_repeated_for_tokens_that_share_them() -> None:
    streams, output, post, res = torch.randn(2, 5, 4, 32), torch.randn(2, 5, 32), torch.rand(4), torch.rand(1, 1, 4, 4)
    written = kernels.write(streams, output, post, res)
    assert torch.equal(written, kernels.write(streams, output, post.expand(2, 5, 4), res.expand(2, 5, 4, 4)))


@pytest.mark.parametrize("wrong", [{"output": (2, 5, 16)}, {"post": (2, 4, 4)}, {"res": (2, 5, 4, 2)}, {"pre": (5, 5)}])
def test_shapes_that_do_not_go_with_the_streams_are_refused(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"output": (2, 5, 32), "post": (2, 5, 4), "res": (2, 5, 4, 4), "pre": (2, 5, 4)} | wrong
    output, post, res, pre = (torch.zeros(shape) for shape in shapes.values())
    with pytest.raises(RuntimeError, match="must match"):
        kernels.cross(torch.zeros(2, 5, 4, 32), kernels.Write(output, post, res), None, pre)


def test_a_projection_of_other_streams_is_refused() -> None:
    with pytest.raises(RuntimeError, match="64 columns"):
        kernels.project(torch.zeros(2, 5, 4, 32), torch.zeros(3, 64), 1e-6)


def test_no_tokens_are_as_good_as_some() -> None:
    streams, weight = torch.zeros(0, 5, 4, 32, requires_grad=True), torch.ones(24, 128, requires_grad=True)
    write = kernels.Write(torch.zeros(0, 5, 32), torch.zeros(0, 5, 4), torch.zeros(0, 5, 4, 4))
    reading = kernels.Reading(torch.ones(()), torch.zeros(4))
    results = kernels.cross(streams, write, kernels.Projection(weight, 1e-6), reading)
    assert [tuple(result.shape) for result in results] == [(0, 5, 4, 32), (0, 5, 32), (0, 5, 24)]
    by_streams, by_weight = torch.autograd.grad([*results], [streams, weight], [*map(torch.ones_like, results)])
    assert by_streams.shape == streams.shape and not by_weight.any()


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("spread", [1.0, 50.0, 1e4])
@pytest.mark.parametrize(("order", "eps"), list(itertools.product(("columns_first", "rows_first"), (0.0, 1e-6))))
def test_sinkhorn_is_the_truncated_map_and_its_derivative(n: int, spread: float, order: str, eps: float) -> None:
    seed = torch.seed()
    print(f"seed {seed}")
    logits = spread * torch.randn(19, n, n, dtype=torch.float64)
    exact, single = logits.clone().requires_grad_(), logits.float().requires_grad_()
    expected, found = sinkhorn(exact, 20, order, eps), sinkhorn(single, 20, order, eps)
    upstream = torch.randn_like(logits)
    (by_exact,) = torch.autograd.grad(expected, exact, upstream)
    (by_single,) = torch.autograd.grad(found, single, upstream.float())
    assert found.min() >= 0
    # Logits of 1e4 differ by what float32 rounds 1e4 to, a few 1e-4, once a column's maximum was subtracted.
    tolerance = 5e-5 if spread < 1e3 else 5e-3
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(by_single.double(), by_exact, rtol=0, atol=tolerance)


def test_sinkhorn_takes_minus_infinity_for_zero_and_refuses_a_row_of_it() -> None:
    logits = torch.randn(3, 4, 4)
    logits[0, 1, 2] = -torch.inf
    logits[1, 2] = -torch.inf
    matrices = sinkhorn(logits)
    assert matrices[0, 1, 2] == 0 and torch.isfinite(matrices[[0, 2]]).all()
    assert torch.isnan(matrices[1]).any()


def test_sinkhorn_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        sinkhorn(torch.zeros(3, 4, 4), 0)


def test_one_token_is_as_good_as_many() -> None:
    logits = torch.randn(33, 4, 4)
    assert torch.equal(sinkhorn(logits)[-1], sinkhorn(logits[-1:])[0])


def test_compiled_models_leave_the_operator_alone() -> None:
    streams, output = torch.randn(2, 5, 4, 32, requires_grad=True), torch.randn(2, 5, 32)
    post, res, pre = torch.rand(2, 5, 4), torch.rand(2, 5, 4, 4), torch.rand(2, 5, 4)

    def crossing(X: Tensor) -> Tensor:
        written, x, _ = kernels.cross(X, kernels.Write(output, post, res), None, pre)
        return written.square().sum() + x.sum()

    (expected,) = torch.autograd.grad(crossing(streams), streams)
    (found,) = torch.autograd.grad(torch.compile(crossing, backend="aot_eager", fullgraph=True)(streams), streams)
    torch.testing.assert_close(found, expected)


# Which path is taken


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine on which nothing has been chosen or built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remembered = (choice._choose, choice._say_once, build.library, build._version)
    for function in remembered:
        function.cache_clear()
    yield monkeypatch
    for function in remembered:
        function.cache_clear()


def chosen(n: int = 4, dim: int = 64, dtype: torch.dtype = torch.float32, device: str = "cpu") -> choice.Choice:
    return choice.choose(torch.device(device), dtype, n, dim)


def gone(process: str) -> bool:
    """Whether a process that was killed is no more, within some seconds; one not yet reaped has no command."""
    command, deadline = Path("/proc", process, "cmdline"), time.monotonic() + 10
    while command.exists() and command.read_bytes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def compiler_that(path: Path, script: str) -> str:
    program = path / "compiler"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_a_cpu_takes_what_was_compiled_for_it_and_says_why() -> None:
    assert chosen().path == "compiled"
    assert "C++" in str(chosen())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dim": 20}, "multiple of 16"),
        ({"n": 9}, "up to 8 streams"),
        ({"n": 1}, "one stream"),
        ({"dtype": torch.float64}, "float64"),
        ({"device": "mps"}, "no kernels for mps"),
    ],
)
def test_what_it_cannot_do_torch_does(given: dict, reason: str) -> None:
    assert chosen(**given).path == "eager"
    assert reason in chosen(**given).reason


def test_the_environment_decides(choosing: pytest.MonkeyPatch) -> None:
    choosing.setenv("MHC_KERNELS", "eager")
    assert chosen() == ("eager", "MHC_KERNELS asks for it")
    choosing.setenv("MHC_KERNELS", "fast")
    with pytest.raises(ConfigError, match="take eager, compiled or triton"):
        chosen()


def test_without_a_compiler_torch_computes(choosing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    choosing.setenv("PATH", str(tmp_path))
    choosing.delenv("CXX", raising=False)
    assert chosen().path == "eager"
    assert "no C++ compiler" in chosen().reason


def test_a_compiler_that_fails_is_told_once(
    choosing: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = 'test "$1" = --version && echo broken 1.0 && exit; echo "no such header" >&2; exit 1'
    choosing.setenv("CXX", compiler_that(tmp_path, script))
    assert chosen().path == chosen(dim=128).path == "eager"
    assert capsys.readouterr().err.count("no such header") == 1


def test_a_compiler_that_hangs_is_given_up(
    choosing: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choosing.setenv(
        "CXX", compiler_that(tmp_path, f"echo a warning >&2; sleep 60 & echo $! > {tmp_path / 'child'}; wait")
    )
    choosing.setattr(build, "SECONDS", 0.5)
    assert chosen().path == "eager"
    assert "timed out" in capsys.readouterr().err
    assert gone((tmp_path / "child").read_text().strip())


def test_a_compiler_may_have_arguments(choosing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher = compiler_that(tmp_path, f'echo "$@" >> {tmp_path / "calls"}; exec "$@"')
    choosing.setenv("CXX", f"{launcher} g++ -Wall")
    assert chosen().path == "compiled"
    assert (tmp_path / "calls").read_text().startswith("g++ -Wall --version")


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (("H200", 9, 0, 227, None), None),
        (("A100", 8, 0, 163, None), "A100 has 8.0"),
        (("RTX 5090", 12, 0, 99, None), "shared memory"),
        (("MI300X", 9, 4, 64, "7.0"), "NVIDIA"),
    ],
)
def test_gpus_that_the_kernels_do_not_fit_compute_by_torch(
    gpu: tuple[str, int, int, int, str | None], reason: str | None, choosing: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    name, major, minor, kibibytes, hip = gpu
    found = SimpleNamespace(name=name, major=major, minor=minor, shared_memory_per_block_optin=kibibytes * 1024)
    choosing.setattr(torch.cuda, "current_device", lambda: 0)
    choosing.setattr(torch.cuda, "get_device_properties", lambda _: found)
    choosing.setattr(torch.version, "hip", hip)
    taken = chosen(device="cuda", dtype=torch.bfloat16)
    assert taken.path == ("eager" if reason else "triton")
    assert reason is None or reason in taken.reason


def test_a_triton_that_cannot_be_imported_is_done_without(choosing: pytest.MonkeyPatch) -> None:
    choosing.setitem(sys.modules, "mhc_train.kernels.triton", None)
    choosing.delattr(kernels, "triton", raising=False)
    assert chosen(device="cuda").path == "eager"
    assert "cannot be imported" in chosen(device="cuda").reason


def test_what_is_forced_in_vain_is_told(choosing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    choosing.setenv("MHC_KERNELS", "compiled")
    assert chosen(dim=20).path == chosen(n=8, dim=20).path == "eager"
    assert capsys.readouterr().err.count("MHC_KERNELS=compiled is not possible") == 1


def test_it_is_built_once(choosing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert chosen().path == "compiled"
    (built,) = (tmp_path / "cache" / "mhc-train" / "kernels").iterdir()
    made = built.stat().st_mtime_ns
    build.library.cache_clear()
    assert not isinstance(build.library(4), str)
    assert built.stat().st_mtime_ns == made


def test_what_is_damaged_is_built_again(choosing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "cache" / "mhc-train" / "kernels"
    assert chosen().path == "compiled"
    (built,) = directory.iterdir()
    damaged = directory / "damaged"
    damaged.write_bytes(b"not a library")
    damaged.replace(built)  # a new file: the old one is in use
    build.library.cache_clear()
    choice._choose.cache_clear()
    assert chosen().path == "compiled"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's directory for temporary files."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def test_a_cache_that_cannot_be_written_is_done_without(
    choosing: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "cache").write_text("a file, where a directory should be")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "cache")
    assert chosen().path == "compiled"
    assert build._directory() == temporary / f"mhc-train-{os.getuid()}"


def test_a_user_without_a_home_needs_none(choosing: pytest.MonkeyPatch, temporary: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    choosing.delenv("XDG_CACHE_HOME")
    choosing.setattr(Path, "home", homeless)
    assert build._directory().parent == temporary


def test_nothing_is_loaded_from_where_others_can_write(
    choosing: pytest.MonkeyPatch, tmp_path: Path, temporary: Path
) -> None:
    directory = build._directory()
    assert directory.is_relative_to(tmp_path / "cache")
    directory.chmod(0o770)
    shared = build._directory()
    assert shared.parent == temporary
    directory.rmdir()
    directory.symlink_to(shared)
    assert build._directory() == shared
    directory = shared
    choosing.setattr(os, "getuid", lambda: directory.stat().st_uid + 1)  # both are another's now
    assert build._directory().name.startswith("mhc-train-kernels-")
