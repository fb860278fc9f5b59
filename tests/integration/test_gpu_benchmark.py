"""`benchmarks/gpu.py` from beginning to end, tiny, on the CPU; what is left when parts of it fail; without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_every_part_runs_and_every_table_is_printed(tmp_path: Path) -> None:
    # The steps of the wide model, and of mHC otherwise recomputed, are the same but for what is typed.
    parts = ("correctness", "kernels", "steps-1b", "peers")
    done = run("--smoke", "--output", tmp_path, "--recompute", "streams", "--parts", *parts)
    assert done.returncode == 0, done.stderr
    for words in (
        "0 wrong",
        "of the copy",
        "cross, read weights given",
        "One site",
        "ours",
        "plain",
        "time ratio",
        "The head has",
    ):
        assert words in done.stdout
    assert "not to be had" not in done.stdout and "Left out" not in done.stdout
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["failed"] == {} and document["left_out"] == [] and document["kernels"]["rows"]
    arms = document["steps-1b"]["arms"]
    assert {one["streams"] for one in arms.values()} == {"bfloat16"} and all(one["kernels"] for one in arms.values())
    kept = {name: tuple(one["segments"]) for name, one in arms.items()}
    assert kept == {"residual": (0, False), "mhc, recompute streams": (2, True)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 1 and "--smoke" in done.stderr and "Traceback" not in done.stderr


def test_a_part_that_fails_or_comes_too_late_is_listed_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu
    from gpu_run import Clock

    def fail() -> dict[str, Any]:
        raise RuntimeError("no memory\nand more")

    def late() -> dict[str, Any]:
        clock._seconds = 0.0
        return {"cases": 1, "wrong": ["read"]}

    acts = {"kernels": fail, "correctness": late, "steps-1b": fail}
    clock, kept = Clock(1.0), []
    monkeypatch.setattr(gpu, "parts", lambda *given: {name: gpu.Part(act, 1) for name, act in acts.items()})
    found = gpu.measure(Namespace(smoke=True), clock, lambda document: kept.append(json.dumps(document)))
    assert found["failed"] == {"kernels": "RuntimeError: no memory"} and found["left_out"] == ["steps-1b"]
    assert found["correctness"]["wrong"] == ["read"]
    # After every part, all that there is.
    assert "no memory" in kept[0] and "correctness" not in kept[0] and json.loads(kept[-1]) == found


def test_a_process_that_fails_ends_or_hangs_is_told_apart() -> None:
    from gpu_run import apart

    assert apart(max, 3, 4, seconds=60.0) == 4
    with pytest.raises(RuntimeError, match="ValueError: invalid literal"):
        apart(int, "three", seconds=60.0)
    with pytest.raises(RuntimeError, match="status 3"):
        apart(os._exit, 3, seconds=60.0)
    with pytest.raises(TimeoutError):
        apart(time.sleep, 60.0, seconds=0.0)


def test_a_way_that_fails_is_noted_and_the_others_are_timed() -> None:
    import gpu_kernels
    import gpu_peers

    def broken(*given: Any) -> Any:
        raise ImportError("not installed")

    refused: dict[str, str] = {}
    site, ways = gpu_peers.site(64, gpu_kernels.SMOKE), {"broken": broken, "plain": gpu_peers.plain}
    found = gpu_peers.part_times("read", site, ways, gpu_kernels.SMOKE, refused)
    assert refused == {"broken, read": "ImportError: not installed"}
    assert {direction: list(times) for direction, times in found.items()} == {
        "forward": ["plain"],
        "backward": ["plain"],
    }


def test_every_arm_for_a_gpu_can_be_composed() -> None:
    import gpu_steps

    from mhc_train.config.compose import compose

    for typed in gpu_steps.FULL.values():
        for words in gpu_steps.arms(typed, ["none", "streams"]).values():
            config = compose(words)
            assert config.train.compile and config.train.stream_precision == "bfloat16"
    # Four layers are few: their head weighs more than in the model that they stand for.
    shares = [gpu_steps.head_share(compose(list(typed))) for typed in gpu_steps.FULL.values()]
    assert shares == pytest.approx([0.0634, 0.1567], abs=1e-3)


def test_all_that_is_timed_is_checked() -> None:
    import gpu_checks
    from gpu_kernels import FULL, OPERATORS

    checked = {(case.kind, case.dim) for case in gpu_checks.cases(FULL) if case.dtype == FULL.dtype}
    assert checked >= {(kind, dim) for kind in OPERATORS.values() for dim in FULL.dims}
