"""What a run has saved, from the command line: listed, verified, pruned, converted, gone on with or not."""

import json
from pathlib import Path

import pytest
from tiny import overrides, run_command


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}"


def test_they_are_listed_and_verified(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "checkpoint", "verify", str(run)) == 0
    assert capsys.readouterr().out.count(": good\n") == 4
    (step(run, 4) / "random.safetensors").unlink()
    assert run_command(monkeypatch, "checkpoint", "list", str(run), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [row["step"] for row in rows] == [2, 4, 6, 8] and rows[0]["tensors"] == "whole" and rows[0]["bytes"] > 1000
    assert [row["state"] for row in rows] == ["complete", "lacks random.safetensors", "complete", "complete"]
    assert run_command(monkeypatch, "checkpoint", "verify", str(run), "--json") == 4
    output = capsys.readouterr()
    assert not json.loads(output.out)["good"] and "step-00000004: random.safetensors is missing" in output.err
    assert run_command(monkeypatch, "checkpoint", "verify", str(step(run, 6))) == 0
    assert run_command(monkeypatch, "checkpoint", "list", str(run.parent)) == 4


def test_they_are_pruned_unless_nothing_good_would_stay(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prune = ("checkpoint", "prune", str(run), "--keep", "1", "--every", "4")
    assert run_command(monkeypatch, *prune, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [f"step-0000000{number}: would be removed" for number in (2, 6)]
    assert len(names(run)) == 4
    assert run_command(monkeypatch, *prune, "--json") == 0 and names(run) == ["step-00000004", "step-00000008"]
    assert json.loads(capsys.readouterr().out)["removed"] == ["step-00000002", "step-00000006"]
    (step(run, 8) / "model.safetensors").write_bytes(b"")
    assert run_command(monkeypatch, "checkpoint", "prune", str(run), "--keep", "1") == 4
    assert "nothing was removed" in capsys.readouterr().err and len(names(run)) == 2


def test_a_converted_one_is_diagnosed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    assert run_command(monkeypatch, "checkpoint", "convert", str(run), str(target)) == 0
    written = Path(capsys.readouterr().out.strip())
    assert run_command(monkeypatch, "checkpoint", "convert", str(run), str(tmp_path / "another"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(tmp_path / "another" / written.name)
    assert written == target / "step-00000008" and (written / "model.safetensors").is_file()
    assert run_command(monkeypatch, "diagnose", str(written), "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 8
    assert run_command(monkeypatch, "checkpoint", "convert", str(run), str(target)) == 2


def test_what_was_set_aside_stays_aside_until_it_is_pruned(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", "--resume", str(step(run, 2)), "train.steps=5") == 0
    assert "train.steps 8 -> 5: the learning rate's course" in capsys.readouterr().err
    kept = ["step-00000002", "step-00000004", "step-00000005"]
    assert names(run) == [*kept, "step-00000006.superseded", "step-00000008.superseded"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000005\n"
    aside = str(run / "checkpoints" / "step-00000008.superseded")
    assert run_command(monkeypatch, "fit", "--resume", aside) == 4
    assert "was set aside" in capsys.readouterr().err
    assert run_command(monkeypatch, "diagnose", aside) == 0
    assert run_command(monkeypatch, "checkpoint", "prune", str(run), "--keep", "9") == 0 and names(run) == kept


def test_an_end_that_is_past_leaves_no_error_behind(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "stopped", "error": "Stopped by SIGTERM"}))
    assert run_command(monkeypatch, "fit", "--resume", str(step(run, 6))) == 0
    found = json.loads((run / "status.json").read_text())
    assert found["status"] == "done" and "error" not in found and found["step"] == 8


def test_a_time_limit_that_leaves_no_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), "train.time_limit=0.5") == 2
    assert "must be above train.time_margin" in capsys.readouterr().err
    short = ("train.time_limit=0.0001", "train.time_margin=0")
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), *short) == 2
    assert "left no time for a step after step 0" in capsys.readouterr().err


def test_a_gpu_can_be_planned_for_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), "train.device=cuda", "--dry-run", "--json") == 0
    assert "bfloat16" in json.loads(capsys.readouterr().out)["device"]
