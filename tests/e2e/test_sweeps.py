"""Sweeps as a user types them, and the ways out of one machine as docs/sweeps.md has them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import overrides, run_command

from mhc_train.config.compose import compose
from mhc_train.files import read_json_lines

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sweeps.md").read_text()


def test_an_interrupted_sweep_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two trainings is stopped after its first checkpoint."""

    def stop() -> None:
        end = time.monotonic() + 100
        while not list(tmp_path.glob("runs/*/checkpoints/step-*/manifest.json")) and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    quick = ("train.eval_every=40", "train.save_every=20", "diagnostics=none")  # but for the steps
    typed = [*overrides(tmp_path), "train.steps=80", *quick, "connection=residual,mhc"]
    code = run_command(monkeypatch, "fit", "-m", "--json", *typed)
    thread.join()
    assert code == 75
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert [job["state"] for job in document["jobs"]] == ["stopped", "waiting"]
    assert f"0 of 2 jobs are done. Go on with `mhc-train fit -m --resume {document['sweep']}`" in output.err

    assert run_command(monkeypatch, "fit", "-m", "--resume", document["sweep"]) == 0
    table = capsys.readouterr().out
    finished = json.loads((Path(document["sweep"]) / "ledger.json").read_text())
    assert finished["jobs"][0]["run"] == document["jobs"][0]["run"]
    for job in finished["jobs"]:
        metrics = read_json_lines(Path(job["run"]) / "metrics.jsonl")
        assert [line["step"] for line in metrics] == list(range(0, 81, 2))
        assert job["state"] == "done" and job["val_loss"] == metrics[-1]["val_loss"] and job["exit_code"] == 0
        assert re.search(rf"{job['overrides'][-1]} +done +{job['val_loss']:.4f} .* {job['run']}\n", table)
    assert len(list((tmp_path / "runs").iterdir())) == 3  # two runs and the sweep


def test_dry_run_shows_the_jobs_and_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["fit", "-m", "--dry-run", f"runs_dir={tmp_path / 'runs'}", "connection=hc,mhc", "seed=range(1,4)"]
    assert run_command(monkeypatch, *typed, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and [job["number"] for job in document["jobs"]] == list(range(6))
    assert document["jobs"][3]["overrides"][1:] == ["connection=mhc", "seed=1"]
    assert run_command(monkeypatch, *typed) == 0
    assert re.search(r"connection=mhc seed=3 +waiting", capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("typed", "code", "advice"),
    [
        (["connection=hc,mhc"], 2, "Type `mhc-train fit -m`"),
        (["-m", "--cfg", "job"], 2, "Leave out -m"),
        (["--fail-fast"], 2, "Type -m, too"),
        (["-m", "--resume", "SWEEP", "seed=1"], 2, "goes on as it was begun"),
        (["-m", "--resume", "nowhere"], 4, "no sweep: it has no ledger.json"),
        (["--resume", "SWEEP"], 2, "fit -m --resume SWEEP"),
    ],
)
def test_what_to_type_instead(
    typed: list[str],
    code: int,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "SWEEP").mkdir()
    (tmp_path / "SWEEP" / "ledger.json").touch()
    assert run_command(monkeypatch, "fit", *typed) == code
    assert advice in capsys.readouterr().err


def documented(name: str) -> str:
    """The file that the page shows after the words File `name`."""
    found = re.search(rf"File `{re.escape(name)}`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the page's files, where `mhc-train` notes its arguments instead of training."""
    stand_in = '#!/bin/sh\nfor word in "$@"; do printf \'%s\\n\' "$word"; done > job-$$.txt\n'
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mhc-train").write_text(stand_in)
    (tmp_path / "bin" / "mhc-train").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("launch.py", "array.sh"):
        (tmp_path / name).write_text(documented(name))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noted(directory: Path) -> list[list[str]]:
    return sorted(path.read_text().splitlines() for path in directory.glob("**/job-*.txt"))


def run(*command: str, **environment: Any) -> None:
    subprocess.run(command, check=True, timeout=100, env=os.environ | environment)


def test_hydras_own_launchers_start_fit(elsewhere: Path) -> None:
    run(sys.executable, "launch.py", "-m", "connection=hc,mhc", "seed=range(1,3)", "++data.lanes=8")
    jobs = noted(elsewhere)
    assert [job[1:] for job in jobs] == [
        [f"connection={option}", f"seed={seed}", "++data.lanes=8"] for option in ("hc", "mhc") for seed in (1, 2)
    ]
    config = compose(jobs[-1][1:])
    assert (config.connection.kind, config.seed, config.data.lanes) == ("mhc", 2, 8)


def test_a_job_array_starts_each_job(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["connection=hc,mhc", "data=json", "data.path='with blanks/*.jsonl'"]
    assert run_command(monkeypatch, "fit", "-m", "--dry-run", "--json", *typed) == 0
    (elsewhere / "jobs.json").write_text(capsys.readouterr().out)
    for number in range(2):
        run("bash", "array.sh", SLURM_ARRAY_TASK_ID=str(number))
    assert noted(elsewhere) == [
        ["fit", "-cn", "config", f"connection={option}", *typed[1:]] for option in ("hc", "mhc")
    ]
