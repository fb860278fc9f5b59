"""The most memory that a process has had, from any moment on."""

import mmap
import resource
import sys
from pathlib import Path

import pytest
import torch

from mhc_train.training import device
from mhc_train.training.device import Device

CPU = Device(torch.device("cpu"), torch.float32, "a test")
LARGE = 2**27
"""Bytes of a block that the C library has nothing to do with: the system gets it back as soon as it is closed."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process do this")
def test_a_peak_can_start_anew() -> None:
    block = mmap.mmap(-1, LARGE)
    for page in range(0, LARGE, mmap.PAGESIZE):
        block[page] = 1
    with_it, counted = CPU.peak_memory()
    block.close()
    assert CPU.peak_memory()[0] > with_it - LARGE // 2
    CPU.reset_peak_memory()
    assert CPU.peak_memory()[0] < with_it - LARGE // 2
    assert counted == "resident, whole process"


def test_a_system_that_does_not_tell_of_it_is_asked_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROCESS", tmp_path)
    unit = 1 if sys.platform == "darwin" else 1024
    for status in (None, "Name:\tpython\nVmRSS:\t1 kB\n"):
        if status:
            (tmp_path / "status").write_text(status)
        assert 0 < CPU.peak_memory()[0] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_a_peak_that_cannot_start_anew_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROCESS", tmp_path / "nowhere")
    CPU.reset_peak_memory()
    assert CPU.peak_memory()[0] > 0
