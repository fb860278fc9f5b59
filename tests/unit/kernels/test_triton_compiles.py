"""The Triton kernels compile for an H100 or H200, which needs no such device: into what it can hold."""

import importlib
import importlib.util
import os
import re
import subprocess
import tempfile
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="in the interpreter nothing is compiled"),
]

SHARED_MEMORY = 227 * 1024
"""Bytes that a block of threads can have."""
N, DIM = 4, 2048
STREAMS = ("streams", "output", "written", "x", "g_written", "g_x", "g_streams", "g_output")
"""Arguments in the streams' dtype."""
DTYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SCALARS = {"T": "i32", "eps": "fp32", "offset": "fp32"}


def compiled(
    module: str, kernel: str, warps: int, depth: int, dtype: torch.dtype = torch.bfloat16, /, **constants: Any
) -> Any:
    """The kernel for compute capability 9.0, every pointer aligned to 16 bytes as torch's are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"mhc_train.kernels.triton.{module}"), kernel)
    types, aligned = {}, {}
    for place, name in enumerate(function.arg_names):
        pointer = DTYPES[dtype] if name in STREAMS else "*fp32"
        types[name] = "constexpr" if name in constants else SCALARS.get(name, pointer)
        if types[name].startswith("*"):
            aligned[place,] = [["tt.divisibility", 16]]
    source = ASTSource(function, types, constants, aligned)
    return triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps, "num_stages": depth})


def crossing(module: str, kernel: str, tile: Any, dtype: torch.dtype, n: int = N, /, **others: Any) -> Any:
    k = n * n + 2 * n
    sizes = {"n": n, "C": DIM, "k": k, "padded": max(16, 2 ** (k - 1).bit_length()), "groups": 1}
    cut = {"tile_tokens": tile.tokens, "tile_columns": tile.columns}
    return compiled(module, kernel, tile.warps, tile.stages, dtype, **sizes, **cut, **others)


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


def test_the_crossing_forward() -> None:
    from mhc_train.kernels.triton.tiles import forward_tile

    tile = forward_tile(N, DIM, torch.bfloat16)
    binary = crossing("forward", "_cross", tile, torch.bfloat16, pre=None, read_columns=128, stages=tile.stages)
    assert binary.asm["cubin"] and not spilled(binary) and binary.metadata.shared <= SHARED_MEMORY
    # The projection runs on the matrix units, and the streams are read 16 bytes at a time.
    assert "mma" in binary.asm["ptx"] and "v4.b32" in binary.asm["ptx"]
    # While it computes, the next tiles are on their way: it does not wait for all that was asked for.
    assert re.search(r"cp\.async\.wait_group\s+[1-9]", binary.asm["ptx"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_crossing_backward(dtype: torch.dtype) -> None:
    from mhc_train.kernels.triton.tiles import backward_tile, gradients_tile

    first = crossing("backward", "_features_kernel", gradients_tile(N, DIM), dtype)
    tile = backward_tile(N, DIM, dtype)
    second = crossing("backward", "_streams_kernel", tile, dtype, pre=None, g_pre=None, steps=tile.steps)
    assert max(first.metadata.shared, second.metadata.shared) <= SHARED_MEMORY
    assert not spilled(first)
    # Products in float32 want more registers than there are; the precision that trainings have does not.
    assert dtype != torch.bfloat16 or not spilled(second)
    # Not even sums over all tokens need an atomic operation: the same bits every time.
    assert "mma" in second.asm["ptx"] and not any("atom." in one.asm["ptx"] for one in (first, second))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_eight_streams_fit_without_their_projection(dtype: torch.dtype) -> None:
    from mhc_train.kernels.triton.tiles import backward_tile, forward_tile, gradients_tile

    alone: dict[str, Any] = {"weight": None, "pre": None}
    without = {"projected": None, "shrink": None, "g_pre": None, "g_weight": None}
    tile, back = forward_tile(8, DIM, dtype), backward_tile(8, DIM, dtype)
    writing = alone | {"gate": None, "bias": None, "x": None, "features": None, "scale": None}
    binaries = [
        crossing("forward", "_cross", tile, dtype, 8, read_columns=128, stages=tile.stages, **writing),
        crossing("backward", "_features_kernel", gradients_tile(8, DIM), dtype, 8),
        crossing("backward", "_streams_kernel", back, dtype, 8, steps=back.steps, **alone, **without),
    ]
    assert max(binary.metadata.shared for binary in binaries) <= SHARED_MEMORY
    assert [spilled(binary) for binary in binaries] == [0, 0, 0]


@pytest.mark.parametrize("n", [4, 8])
def test_sinkhorn_forward_and_backward(n: int) -> None:
    how = {"n": n, "rounds": 19, "with_eps": False, "columns_first": True, "tile": 128}
    forward, backward = (compiled("sinkhorn", name, 4, 1, **how) for name in ("_sinkhorn", "_sinkhorn_backward"))
    # A token a thread: nothing is shared.
    assert forward.metadata.shared == backward.metadata.shared == 0
    assert spilled(forward) == spilled(backward) == 0
