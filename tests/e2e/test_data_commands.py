"""`mhc-train data` as a user types it, and what training makes of prepared tokens, workers and mixtures."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import overrides, run_command, write_corpus

from mhc_train.data import Batches
from mhc_train.files import read_json_lines

TIMINGS = ("tokens_per_second", "data_wait")


def fitted(monkeypatch: pytest.MonkeyPatch, directory: Path, *extra: str) -> Path:
    """The directory of a new run."""
    before = set((directory / "runs").glob("*"))
    assert run_command(monkeypatch, "fit", *overrides(directory), *extra) == 0
    (run,) = set((directory / "runs").glob("*")) - before
    return run


def learnt(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIMINGS}
        for line in read_json_lines(run / "metrics.jsonl")
    ]


def fingerprint(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["order_fingerprint"])


def test_workers_and_prepared_tokens_change_nothing_that_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = fitted(monkeypatch, tmp_path)
    working = fitted(monkeypatch, tmp_path, "data.workers=2")
    assert run_command(monkeypatch, "data", "prepare", "--tokens", *overrides(tmp_path)) == 0
    capsys.readouterr()
    prepared = fitted(monkeypatch, tmp_path, "data.prepared=always")
    assert "Reading prepared tokens from" in capsys.readouterr().err
    assert learnt(live) == learnt(working) == learnt(prepared)
    assert run_command(monkeypatch, "data", "inspect", "--steps", "8", "--json", *overrides(tmp_path)) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["order"]["fingerprint"] == fingerprint(live) == fingerprint(working) == fingerprint(prepared)


def test_a_run_goes_on_with_workers_and_prepared_tokens_as_it_would_have_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = fitted(monkeypatch, tmp_path)
    run = fitted(monkeypatch, tmp_path, "train.steps=4", "optim.schedule=constant")
    assert run_command(monkeypatch, "data", "prepare", "--tokens", *overrides(tmp_path)) == 0
    again = ("fit", "--resume", str(run), "train.steps=8", "data.workers=2", "data.prepared=always")
    assert run_command(monkeypatch, *again) == 0
    assert fingerprint(run) == fingerprint(straight)


def test_moved_text_is_read_on_and_other_text_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = fitted(monkeypatch, tmp_path)
    run = fitted(monkeypatch, tmp_path, "train.steps=4")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = (tmp_path / "corpus.jsonl").rename(elsewhere / "corpus.jsonl")
    again = ("fit", "--resume", str(run), "train.steps=8", f"data.path={moved}")
    moved.write_text(moved.read_text().replace("stream", "strean", 1))
    assert run_command(monkeypatch, *again) == 3
    assert "is not what the run was reading" in capsys.readouterr().err
    moved.write_text(moved.read_text().replace("strean", "stream", 1))
    assert run_command(monkeypatch, *again) == 0
    assert fingerprint(run) == fingerprint(straight)


@pytest.mark.parametrize("step", [0, 3])
def test_a_signal_while_data_is_waited_for_saves_and_stops(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = fitted(monkeypatch, tmp_path)
    wait = Batches.wait

    def waiting_for_ever(self: Batches) -> None:
        if self.following == step * 8:  # sequences a step
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        wait(self)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "wait", waiting_for_ever)
        assert run_command(patch, "fit", *overrides(tmp_path)) == 75
    (run,) = set((tmp_path / "runs").glob("*")) - {straight}
    assert run_command(monkeypatch, "fit", "--resume", str(run)) == 0
    assert fingerprint(run) == fingerprint(straight) and learnt(run) == learnt(straight)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it looks for the workers in /proc")
def test_a_signal_to_all_processes_reaches_no_worker_not_even_one_that_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mhc_train", "fit", *overrides(tmp_path), "data.workers=2", "train.steps=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 3:  # what tracks their resources, and the workers, who import now
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "Traceback" not in said


def test_prepare_does_not_do_again_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = []
    for _ in range(2):
        assert run_command(monkeypatch, "data", "prepare", "--tokens", "--json", *overrides(tmp_path)) == 0
        documents.append(json.loads(capsys.readouterr().out))
    (directory,) = (tmp_path / "data" / "tokens").glob("[!.]*")
    times = {path: path.stat().st_mtime_ns for path in directory.glob("0*")}
    assert run_command(monkeypatch, "data", "prepare", "--tokens", *overrides(tmp_path)) == 0
    assert documents[0] == documents[1]
    assert times == {path: path.stat().st_mtime_ns for path in directory.glob("0*")}
    assert documents[0]["prepared"][0]["tokens"] > 1000


def test_inspect_counts_every_kind_of_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_corpus(tmp_path).read_text() + '{"text": ""}\n{"text": 7}\n'
    (tmp_path / "corpus.jsonl").write_text(lines)
    assert run_command(monkeypatch, "data", "inspect", *overrides(tmp_path)) == 3
    assert "holds int, not text" in capsys.readouterr().err
    assert run_command(monkeypatch, "data", "inspect", "--json", *overrides(tmp_path), "data.on_error=skip") == 0
    facts = json.loads(capsys.readouterr().out)["sources"][0]["first_documents"]
    assert facts["records"] == 202 and facts["empty"] == 1 and facts["unreadable"] == 1
    assert facts["training"] + facts["held_out"] == 200 and 20 < facts["held_out"] < 60


def test_a_mixture_is_inspected_prepared_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("\n\n".join(f"paragraph {number} of another kind" for number in range(300)))
    first, second = f"path: {tmp_path}/corpus.jsonl", f"path: {tmp_path}/other.txt"
    mixture = (
        "data=mixture",
        f"data.mixture={{a: {{weight: 3, source: json, {first}}}, b: {{weight: 1, source: text, {second}}}}}",
    )
    base = [text for text in overrides(tmp_path) if not text.startswith(("data=", "data.path="))]
    assert run_command(monkeypatch, "data", "inspect", *base, *mixture) == 0
    shown = capsys.readouterr().out
    assert "75.0%" in shown and "25.0%" in shown and "fingerprint" in shown
    assert run_command(monkeypatch, "data", "prepare", "--tokens", *base, *mixture) == 0
    assert run_command(monkeypatch, "fit", *base, *mixture, "data.prepared=always", "model.document_mask=true") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run_command(monkeypatch, "diagnose", str(run)) == 0


def test_tokens_that_were_never_prepared_are_asked_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), "data.prepared=always") == 3
    assert "mhc-train data prepare --tokens" in capsys.readouterr().err
