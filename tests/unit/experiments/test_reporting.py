"""Comparisons and sweeps that are read again: failed and lost runs go on guarding against a false win."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mhc_train.errors import CheckpointError
from mhc_train.experiments.comparison import Arm, Comparison, Options
from mhc_train.experiments.ledger import Job, Ledger
from mhc_train.experiments.reporting import of_directories
from mhc_train.files import write_json
from mhc_train.report.comparison import compare_runs
from mhc_train.schema import Config, ConnectionConfig

KINDS = ("comparison", "sweep")
DECISIVE = {
    "order_fingerprint": "order", "backbone_fingerprint": "backbone", "tokenizer_sha256": "tokens", "tokens": 90,
    "validation_sha256": "text", "precision": "float32", "parameters": {}, "flops_per_token": 1, "peak_memory": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def end(job: Job, kind: str, seed: int, state: str, loss: float) -> None:
    """Leave the run that a job might have."""
    path = Path(f"run-{job.number}")
    path.mkdir()
    config = Config(name="run", seed=seed, connection=ConnectionConfig(kind=kind))
    (path / "config.yaml").write_text(json.dumps(asdict(config)))
    (path / "overrides.txt").write_text("".join(f"{text}\n" for text in job.overrides))
    write_json(path / "status.json", DECISIVE | {"status": state, "seed": seed, "steps": 9})
    lines = [{"step": step, "tokens": 10 * step, "val_loss": loss + 1 / (1 + step)} for step in (0, 3, 9)]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job.run, job.state, job.exit_code = str(path), state, 0 if state == "done" else 5


def planned(kind: str) -> Ledger:
    """Three seeds of residual, then of mhc."""
    typed = [[f"connection={arm}", f"seed={seed}"] for arm in ("residual", "mhc") for seed in (1, 2, 3)]
    jobs = [Job(number, overrides) for number, overrides in enumerate(typed)]
    if kind == "sweep":
        return Ledger(Path("sweep"), "config", None, jobs)
    arms = [Arm("residual", ["connection=residual"], [0, 1, 2], []), Arm("mhc", ["connection=mhc"], [3, 4, 5], [])]
    return Comparison(Path("comparison"), "config", None, jobs, arms=arms)


def carried_out(kind: str, third: str) -> Path:
    """A ledger whose mhc is lower with every seed, but for what becomes of its third run."""
    ledger = planned(kind)
    for job in ledger.jobs[:5]:
        arm, seed = divmod(job.number, 3)
        end(job, ("residual", "mhc")[arm], seed + 1, "done", 3.0 + 0.1 * seed - arm * (0.5 + 0.001 * seed))
    last = ledger.jobs[5]
    if third == "lost":
        last.state, last.exit_code = "failed", 1
    else:
        end(last, "mhc", 3, third, 2.702)
    ledger.create([])
    return ledger.path


def verdict(path: Path) -> Any:
    material = of_directories([path], Options())
    (row,) = compare_runs(material.runs, material.setting())["differences"]
    return row["verdict"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("third", "expected"),
    [
        ("done", "lower"),
        ("failed", "not settled: 1 of 3 runs of mhc failed"),
        ("lost", "not settled: 1 of 3 runs of mhc failed"),
    ],
)
def test_an_arm_that_lacks_a_run_wins_nothing_when_it_is_read_again(kind: str, third: str, expected: str) -> None:
    assert verdict(carried_out(kind, third)) == expected


def test_what_was_lost_is_named() -> None:
    (row,) = of_directories([carried_out("sweep", "lost")], Options()).lost
    assert row["name"] == "connection=mhc seed=3"
    assert row["error"] == "it ended with exit code 1 before there was anything to report"


def test_a_run_knows_better_than_the_ledger_of_a_killed_process() -> None:
    path = carried_out("sweep", "failed")
    document = json.loads((path / "ledger.json").read_text())
    for job in document["jobs"]:
        job["state"] = "running"
    write_json(path / "ledger.json", document)
    assert verdict(path) == "not settled: 1 of 3 runs of mhc failed"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_finished_nothing_to_compare(kind: str) -> None:
    ledger = planned(kind)
    end(ledger.jobs[0], "residual", 1, "failed", 3.0)
    ledger.create([])
    with pytest.raises(CheckpointError, match="none of its runs is finished"):
        of_directories([ledger.path], Options())
