"""`benchmarks/gpu.py` from beginning to end, tiny, on the CPU; and without a GPU it says what to do."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_every_part_runs_and_every_table_is_printed() -> None:
    done = run("--smoke", "--recompute", "none")
    assert done.returncode == 0, done.stderr
    for words in (
        "of the copy",
        "cross, read weights given",
        "One site",
        "ours",
        "plain",
        "time ratio",
        "recompute none",
    ):
        assert words in done.stdout
    assert "not to be had" not in done.stdout and "Left out" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 1 and "--smoke" in done.stderr and "Traceback" not in done.stderr
