"""For the tests of faults: what the sweeps counted is recorded, and a machine where nothing can be forked is told."""

import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulted_runs import Place
from faulting import Sweeps

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fault_sweeps.json"


@pytest.fixture(scope="session")
def sweeps() -> Iterator[Sweeps]:
    """Written to `benchmarks/results/fault_sweeps.json` where RECORD_SWEEPS is set, as `make test-slow` does."""
    sweeps = Sweeps()
    yield sweeps
    if not (os.environ.get("RECORD_SWEEPS") and sweeps.found):
        return
    before = json.loads(RESULTS.read_text())["sweeps"] if RESULTS.exists() else {}
    document = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "sweeps": dict(sorted((before | sweeps.found).items())),
    }
    RESULTS.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the corpus lies."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def straight(shared: Path) -> Place:
    """A run that nothing stopped."""
    place = Place(shared, shared / "straight")
    assert place.job().code == 0
    return place


@pytest.fixture(autouse=True)
def _forkable() -> None:
    if torch.cuda.is_available():
        pytest.skip("a process that sees a GPU cannot be forked safely: set CUDA_VISIBLE_DEVICES= to run these tests")
