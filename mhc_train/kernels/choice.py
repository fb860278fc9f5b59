"""Which kernels the streams' arithmetic takes, and why: chosen once for a device, a precision and a shape."""

import os
from functools import cache
from typing import NamedTuple

import torch

from mhc_train.console import say
from mhc_train.errors import ConfigError

EAGER, COMPILED, TRITON = "eager", "compiled", "triton"
VARIABLE = "MHC_KERNELS"
"""The environment variable that overrides the choice."""
ANY_WIDTH = 64
"""A number of channels that all kernels take, where there are none."""


class Choice(NamedTuple):
    """A path and the reason for it."""

    path: str
    """eager (torch's own operators) | compiled (C++ for this machine's CPU) | triton (CUDA GPUs)."""
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def choose(device: torch.device, dtype: torch.dtype, streams: int, dim: int) -> Choice:
    """The kernels for streams of this kind.

    Args:
        device: that the streams are on.
        dtype: of the streams.
        streams: n.
        dim: C.

    Raises:
        ConfigError: MHC_KERNELS names no path.
    """
    return _choose(override(), device.type, dtype, streams, dim)


def override() -> str | None:
    """The path that the environment asks for; None where it leaves the choice.

    Raises:
        ConfigError: MHC_KERNELS names no path.
    """
    wanted = os.environ.get(VARIABLE) or None
    if wanted not in (None, EAGER, COMPILED, TRITON):
        raise ConfigError(f"{VARIABLE} = {wanted!r}: take {EAGER}, {COMPILED} or {TRITON}, or unset it")
    return wanted


@torch.compiler.assume_constant_result
def chosen(device: str, dtype: torch.dtype, streams: int, dim: int) -> str:
    """The path alone, by the device's type; the compiler takes it for a constant."""
    return _choose(override(), device, dtype, streams, dim).path


@cache
def _choose(wanted: str | None, device: str, dtype: torch.dtype, streams: int, dim: int) -> Choice:
    if wanted == EAGER:
        return Choice(EAGER, f"{VARIABLE} asks for it")
    if streams == 1:
        return Choice(EAGER, "one stream needs no kernel")
    path = wanted or {"cpu": COMPILED, "cuda": TRITON}.get(device)
    if path is None:
        return Choice(EAGER, f"there are no kernels for {device}")
    lacking = _lacking(path, device, dtype, streams, dim)
    if lacking is None:
        return Choice(path, f"{VARIABLE} asks for it" if wanted else _strength(path))
    if wanted:
        _say_once(f"{VARIABLE}={wanted} is not possible: {lacking}. Taking the eager path.")
    return Choice(EAGER, lacking)


def _lacking(path: str, device: str, dtype: torch.dtype, streams: int, dim: int) -> str | None:
    """Why a path cannot be taken; None if it can."""
    if path == COMPILED:
        from mhc_train.kernels import native

        return native.lacking(device, dtype, streams, dim)
    try:
        from mhc_train.kernels import triton
    except Exception as error:  # one of another version may lack anything that the kernels are written with
        return f"the Triton kernels cannot be imported ({error})"
    return triton.supports(streams, dim, dtype) or _unable(device, triton.CAPABILITY, triton.SHARED_MEMORY)


def _unable(device: str, capability: tuple[int, int], shared_memory: int) -> str | None:
    """Why Triton's kernels do not run on this machine's device, or not well; None if they do."""
    if device != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET")
        return None if interpreted else f"Triton's kernels run on GPUs, not on {device}"
    if torch.version.hip:
        return "the Triton kernels are for NVIDIA's GPUs"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    if (found.major, found.minor) < capability:
        return f"the Triton kernels need compute capability 9.0 (Hopper), {found.name} has {found.major}.{found.minor}"
    if found.shared_memory_per_block_optin < shared_memory:  # type: ignore[attr-defined]
        return (
            f"the Triton kernels need {shared_memory // 1024} KiB of shared memory a block, more than {found.name} has"
        )
    return None


@cache
def _say_once(message: str) -> None:
    # Streams of several shapes, and matrices, are chosen for one by one.
    say(message)


def _strength(path: str) -> str:
    return "one pass over the streams in C++" if path == COMPILED else "one pass over the streams on the GPU"
