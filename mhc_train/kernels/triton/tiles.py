"""How the work is cut: tokens and columns of one tile, warps, and what these kernels support.

The sizes are chosen from what is known of a call before it runs, never from timings: the order of every sum, and so
the result to the last bit, is the same in every process.
"""

from dataclasses import dataclass

import torch
import triton

STREAMS = (2, 4, 8)
PROJECTED = 4
"""Streams up to which the kernels project, too: the weight of 8 and its gradient need many times their registers."""
CAPABILITY = (9, 0)
"""Of GPUs that have the registers and the shared memory for these tiles: Hopper's, and later ones."""
SHARED_MEMORY = 160 * 1024
"""Bytes that a block of threads must be able to have: no kernel asks for more."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COLUMNS = 64
"""The width must be a multiple of it."""


@dataclass(frozen=True)
class Tile:
    """Tokens and columns that a program holds at once, and its warps."""

    tokens: int
    columns: int
    warps: int
    stages: int = 1
    """Of the software pipeline: `stages - 2` tiles load while one is computed with. With 2 they load in between."""
    steps: int = 1
    """Tiles of tokens that one program of the streams' backward pass adds up the weight's gradient over."""


def supports(n: int, C: int, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot be used for n streams of width C; None where they can."""
    if n not in STREAMS:
        return f"the Triton kernels are for {', '.join(map(str, STREAMS))} streams, not {n}"
    if C % COLUMNS:
        return f"the Triton kernels need a width that is a multiple of {COLUMNS}, not {C}"
    if dtype not in DTYPES:
        return f"the Triton kernels know bfloat16, float16 and float32, not {str(dtype).removeprefix('torch.')}"
    return None


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: slow by the operation, whatever its size."""
    return bool(triton.knobs.runtime.interpret)


def forward_tile(n: int, C: int, dtype: torch.dtype) -> Tile:
    """Of the crossing. Every tile of tokens reads the whole weight: the more tokens share it, the better."""
    if interpreted():
        return Tile(64, divisor(C, 256), 4)
    if n > PROJECTED:
        return Tile(16, 64, 8, stages=3)
    if dtype == torch.float32:
        return Tile(16, 32, 4, stages=3)
    # As many registers as there are: one program a multiprocessor, which waits for all that is not under way already.
    return Tile(64, 32, 8, stages=4)


def gradients_tile(n: int, C: int) -> Tile:
    """Of the features' gradients. What a tile has read is read again soon: few tokens, so that it is still in cache."""
    if interpreted():
        return Tile(64, divisor(C, 256), 4)
    if n > PROJECTED:
        return Tile(16, 64, 8)
    return Tile(16, divisor(C, 128), 4)


def backward_tile(n: int, C: int, dtype: torch.dtype) -> Tile:
    """Of the streams' gradients. A program holds the weight of its columns and that weight's gradient in registers."""
    if interpreted():
        return Tile(64, divisor(C, 256), 4, steps=2)
    if n > PROJECTED:
        return Tile(16, 64, 8, steps=4)
    if dtype == torch.float32:
        return Tile(16, 32, 8, steps=32)
    # Products of float16 with gradients are of float32: twice the registers.
    columns = divisor(C, 64 if dtype == torch.float16 else 128)
    return Tile(16, columns, 8, stages=3, steps=32)


def divisor(C: int, most: int) -> int:
    """The largest power of two that divides C, up to `most`."""
    return min(C & -C, most)


def padded(features: int) -> int:
    """Rows of the weight as the matrix units need them: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(features))
