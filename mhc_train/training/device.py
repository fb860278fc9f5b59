"""Which device and precision a run uses, and why."""

import contextlib
import ctypes
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from mhc_train.errors import ConfigError
from mhc_train.kernels.choice import override
from mhc_train.schema import DataConfig, TrainConfig

MOST_WORKERS = 8
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
PROCESS = Path("/proc/self")
"""Where Linux tells of this process."""


@dataclass(frozen=True)
class Device:
    """A device, the type that matrix products run in, and the reason for each choice."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> torch.autocast:
        """Lower precision for the sublayers, where it was chosen."""
        # Every weight is used once in a forward pass: kept copies would only fill the memory.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device, on its way there while the host goes on."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # or the copy would wait for the GPU
        return tensor.to(self.device, non_blocking=True)

    def peak_memory(self) -> tuple[int, str]:
        """Bytes, and what was counted: allocations on a GPU, the whole process elsewhere."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device), "allocated on the GPU"
        return _peak_resident(), "resident, whole process"

    def reset_peak_memory(self) -> None:
        """Let the peak start anew from what is in use now; it stays where the system offers no way to do so."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")


def choose_device(config: TrainConfig, only_planned: bool = False) -> Device:
    """Resolve `train.device` and `train.precision`.

    Raises:
        ConfigError: a device was asked for that this machine does not have, unless it is only planned for; or the
            environment asks for kernels that there are not.
    """
    override()  # before a run is begun in vain
    if config.threads:
        torch.set_num_threads(config.threads)
    name, why = _best_device() if config.device == "auto" else (config.device, "asked for")
    if config.device != "auto" and not _exists(name) and not only_planned:
        raise ConfigError(f"train.device = {name}: torch {torch.__version__} sees none here. Type train.device=auto.")
    if name == "cpu":
        _keep_freed_memory()
    dtype, why_dtype = _precision(config.precision, name)
    return Device(torch.device(name), dtype, f"{name} ({why}), {str(dtype).removeprefix('torch.')} ({why_dtype})")


def _keep_freed_memory() -> None:
    """Let the C library keep what tensors give back, for those of the next step, instead of returning it to the system.

    The system hands memory out in zeroed pages of 4 kB, which took 5 % of a step of hyper-connections. Only glibc can
    be told, and whoever has told it already, in the environment, is left alone.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # what has pages of its own gives them back when it is freed
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def loader_workers(device: Device, config: DataConfig) -> int:
    """How many loader workers the training process has: `data.workers`, or what suits the device.

    A CPU's cores are all at work already; a GPU must not wait, and half of the cores are enough for it.
    """
    if config.workers is not None:
        return config.workers
    if device.device.type == "cpu":
        return 0
    lanes, most = config.lanes, min(MOST_WORKERS, _cores() // 2)
    return max((number for number in range(1, most + 1) if lanes % number == 0), default=0)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_float64(device: Device, needed: bool) -> None:
    """Refuse a device that has no float64 where a mixer computes in it.

    Raises:
        ConfigError: it says what to type.
    """
    if needed and device.device.type == "mps":
        raise ConfigError(
            "connection.mixer computes in float64, which Apple's GPUs cannot. Type train.device=cpu, or connection=mhc."
        )


def _peak_resident() -> int:
    """The most bytes of memory that this process has had."""
    with contextlib.suppress(OSError, StopIteration):  # not Linux, or one that does not tell
        # What getrusage counts there begins with the peak of the process that started this one.
        lines = (PROCESS / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    # macOS counts bytes, others kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _best_device() -> tuple[str, str]:
    if _exists("cuda"):
        return "cuda", torch.cuda.get_device_name()
    if _exists("mps"):
        return "mps", "Apple's Metal is available, CUDA is not"
    return "cpu", f"neither CUDA nor Metal is available; {torch.get_num_threads()} threads"


def _exists(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    return name == "cpu" or torch.backends.mps.is_available()


def _precision(precision: str, device: str) -> tuple[torch.dtype, str]:
    if precision != "auto":
        return (torch.bfloat16 if precision == "bfloat16" else torch.float32), "asked for"
    if device == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported()):
        return torch.bfloat16, "the GPU computes in bfloat16"
    return torch.float32, f"the exact choice on {device}"
