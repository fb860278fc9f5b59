"""What the operators launch, compiled for an H100 or H200, which needs no such device: into what it can hold."""

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import crossings
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="in the interpreter nothing is compiled"),
]

SHARED_MEMORY = 227 * 1024
"""Bytes that a block of threads can have."""
TOKENS, DIM = 33, 2048
FEATURES, STREAMS = "_features_kernel", "_streams_kernel"
Launched = dict[str, list[Any]]
"""Binaries by their kernel's name."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launched]:
    """Tensors on the CPU are taken for a GPU's: every launch compiles what it would run there, and runs nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    honest, binaries = JITFunction.run, {}

    def compile_only(self: Any, *given: Any, warmup: bool, **others: Any) -> None:
        binaries.setdefault(self.__name__, []).append(honest(self, *given, warmup=True, **others))

    target = GPUTarget("cuda", 90, 32)
    device: dict[str, Callable[..., Any]] = {
        "get_current_device": lambda: "none",
        "get_current_stream": lambda device: None,
        "get_current_target": lambda: target,
    }
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", SimpleNamespace(**device))
    yield binaries
    assert all(binary.metadata.shared <= SHARED_MEMORY for each in binaries.values() for binary in each)


def launch(kind: str, n: int, dtype: torch.dtype, forward: bool = True, backward: bool = True) -> None:
    """A crossing's two directions; what they return is uninitialised."""
    from mhc_train.kernels.triton import cross, cross_backward

    case = crossings.case(kind, TOKENS, n, DIM, True, dtype, crossings.fresh_generator())
    results = cross(**case.arguments) if forward else (None, None, *uninitialised(n))
    if backward:
        upstream = (case.upstream[name] for name in ("written", "x", "features"))
        cross_backward(*upstream, **case.arguments, features=results[2], scale=results[3])


def uninitialised(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and scale, as the forward pass makes them."""
    return torch.empty(TOKENS, 1, n * n + 2 * n), torch.empty(TOKENS, 1)


def spilled(binary: Any) -> int:
    """Bytes a thread that did not fit into registers, stored and loaded, by the assembler's own word."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(binary.asm["ptx"])
        file.flush()
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = re.findall(r"(\d+) bytes spill", said)
    assert found, said
    return sum(map(int, found))


def test_the_crossing_forward(launched: Launched) -> None:
    launch("crossing", 4, torch.bfloat16, backward=False)
    (binary,) = launched["_cross"]
    assert binary.asm["cubin"] and not spilled(binary)
    # The projection runs on the matrix units, and the streams are read 16 bytes at a time.
    assert "mma" in binary.asm["ptx"] and "v4.b32" in binary.asm["ptx"]
    # While it computes, the next tiles are on their way: it does not wait for all that was asked for.
    assert re.search(r"cp\.async\.wait_group\s+[1-9]", binary.asm["ptx"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_crossing_backward(launched: Launched, dtype: torch.dtype) -> None:
    launch("crossing", 4, dtype, forward=False)
    (first,), (second,) = launched[FEATURES], launched[STREAMS]
    assert not spilled(first)
    # Products in float32 want more registers than there are; the precision that trainings have does not.
    assert dtype != torch.bfloat16 or not spilled(second)
    # Not even sums over all tokens need an atomic operation: the same bits every time.
    assert "mma" in second.asm["ptx"] and not any("atom." in one.asm["ptx"] for one in (first, second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_eight_streams_fit_without_their_projection(launched: Launched, dtype: torch.dtype) -> None:
    launch("crossing", 8, dtype)
    # A kernel that writes, in both directions, and one that reads; the projection is torch's.
    assert {name: len(binaries) for name, binaries in launched.items()} == {"_cross": 3, FEATURES: 1, STREAMS: 1}
    assert not any(spilled(binary) for binaries in launched.values() for binary in set(binaries))


@pytest.mark.parametrize(("n", "columns_first"), [(2, True), (4, True), (4, False), (8, True)])
def test_sinkhorn_forward_and_backward(launched: Launched, n: int, columns_first: bool) -> None:
    from mhc_train.kernels.triton import sinkhorn, sinkhorn_backward

    logits = torch.empty(TOKENS, n, n)
    for eps in (0.0, 1e-6):
        sinkhorn_backward(sinkhorn(logits, 20, columns_first, eps), logits, 20, columns_first, eps)
    assert {name: len(binaries) for name, binaries in launched.items()} == {"_sinkhorn": 2, "_sinkhorn_backward": 2}
    assert not any(spilled(binary) for binaries in launched.values() for binary in binaries)
    # A matrix is a warp's own: sums exchange registers, not memory.
    assert not any(binary.metadata.shared for binary in launched["_sinkhorn"])
