"""`mhc-train bench`, as a user types it: tables, files, the document, and its end by a signal."""

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from tiny import TINY, run_command

from mhc_train.cli.bench import _made

ARGUMENTS = [*TINY, "train.threads=1", "train.batch_tokens=512", "train.micro_batch=4"]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_every_connection_is_measured_beside_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", "mhc", "--arm", "hc connection.streams=2", "--arm", "mhc connection.where=attention"]
    options = [*arms, "data.seq_len=128", "train.batch_tokens=2048", "--seconds", "1", "-o", str(tmp_path / "out")]
    assert run_command(monkeypatch, "bench", *ARGUMENTS, *options, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["rounds"] >= 3
    residual, mhc, hc, attention = document["arms"]
    assert (residual["name"], mhc["name"]) == ("residual", "mhc where=all") and hc["streams"] == 2
    assert residual["relative_step_time"] == {"median": 1, "low": 1, "high": 1}
    assert mhc["relative_memory"] > 1 and mhc["relative_step_time"]["median"] > 0.5
    assert mhc["tokens_per_step"] == 2048 and mhc["micro_batches"] == 4
    assert mhc["predicted_overhead"] > hc["predicted_overhead"] > residual["predicted_overhead"] == 0
    assert attention["step_seconds"] and attention["predicted_overhead"] is None and attention["operators"] == []
    assert all(arm["error"] is None and arm["operators_error"] is None for arm in document["arms"])
    assert [(found["operator"], found["direction"]) for found in mhc["operators"]] == [
        (operator, direction) for operator in ("read", "write", "cross") for direction in ("forward", "backward")
    ]
    for found in mhc["operators"]:
        assert found["bytes_per_second"] == pytest.approx(found["minimal_bytes"] / found["seconds"])
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == document
    assert "| mhc where=all | crossing | backward |" in (tmp_path / "out" / "bench.md").read_text()
    assert ElementTree.parse(tmp_path / "out" / "bench.svg").getroot().tag.endswith("svg")


def test_people_get_tables_and_a_directory_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, f"runs_dir={tmp_path / 'runs'}", "connection=residual", "--arm", "ihc", "--seconds", "1"]
    assert run_command(monkeypatch, "bench", *arguments) == 0
    out = capsys.readouterr().out
    assert "What connections cost" in out and "Operators by themselves" in out and "A copy moves" in out
    assert "A read and a crossing make the sublayer's maps" in out
    assert "Memory: resident, whole process; its growth from just before the model was built" in out
    (directory,) = (tmp_path / "runs").iterdir()
    assert f"Written: {directory / 'bench.json'}" in out
    assert run_command(monkeypatch, "runs", str(tmp_path / "runs")) == 0
    assert "No run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "mch"], "mhc"),
        (["model.dim=33"], "model.dim"),
        (["connection=hc,mhc"], "several values"),
        (["--arm", ""], "names no arm"),
        (["--seconds", "inf"], "--seconds inf: type a number from 1 to 604800"),
        (["--seconds", "nan"], "--seconds"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run_command(monkeypatch, "bench", *ARGUMENTS, f"runs_dir={tmp_path / 'runs'}", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(monkeypatch, "bench", *ARGUMENTS, "-o", str(tmp_path / "file" / "out")) == 7
    said = capsys.readouterr().err
    assert "Bench:" not in said and "--output" in said


@pytest.mark.parametrize("command", ["bench", "fit"])
def test_kernels_that_there_are_not_are_refused_before_anything_starts(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MHC_KERNELS", "nonsense")
    assert run_command(monkeypatch, command, *ARGUMENTS, f"runs_dir={tmp_path / 'runs'}") == 2
    said = capsys.readouterr().err
    assert "MHC_KERNELS" in said and "Bench:" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_there_is_not_is_refused_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*ARGUMENTS, "train.device=cuda", f"runs_dir={tmp_path / 'runs'}"]
    assert run_command(monkeypatch, "bench", *asked) == 2
    said = capsys.readouterr().err
    assert said.count("sees none here") == 1 and "Bench:" not in said


def test_a_directory_that_was_there_before_stays(tmp_path: Path) -> None:
    for name in ("before", "new"):
        (tmp_path / "before").mkdir(exist_ok=True)
        with pytest.raises(RuntimeError), _made(tmp_path / name, asked_for=True) as directory:
            assert directory.is_dir()
            raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "before"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_all_its_processes(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mhc_train", "bench", *ARGUMENTS, "--seconds", "600", "-o", str(tmp_path / "out")]
    bench = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(workers := children_of(bench.pid)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    bench.send_signal(number)
    _, said = bench.communicate(timeout=60)
    assert bench.returncode == 130 and f"{number.name} ended the benchmark" in said
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    assert not (tmp_path / "out" / "bench.json").exists()
