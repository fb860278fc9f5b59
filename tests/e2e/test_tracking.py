"""A real training beside a tracker: a hanging one leaves no trace, and W&B offline holds what metrics.jsonl says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import overrides, run_command
from tracked import Server

from mhc_train.files import read_json_lines
from mhc_train.tracking.curves import measurement, watched

TRACKED = ("tracker=wandb", "tracker.mode=online", "tracker.timeout=1")


def only_run(directory: Path) -> Path:
    (run,) = (directory / "runs").iterdir()
    return run


def test_a_training_with_a_hanging_tracker_ends_as_it_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Server(tmp_path, monkeypatch).script("always log hang")
    assert run_command(monkeypatch, "fit", "--json", *overrides(tmp_path), *TRACKED) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["status"] == "done"
    assert [line["step"] for line in read_json_lines(only_run(tmp_path) / "metrics.jsonl")] == [0, 2, 4, 6, 8]
    assert "W&B has not confirmed 5 steps" in captured.err


def test_a_training_that_fails_beside_a_failing_tracker_says_its_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Server(tmp_path, monkeypatch).script("always init refuse")
    diverging = ("optim.lr=1e30", "optim.grad_clip=0")
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), *TRACKED, *diverging) == 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and "finite" in lines[-1]
    assert json.loads((only_run(tmp_path) / "status.json").read_text())["status"] == "failed"


def test_wandb_offline_holds_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = ("tracker=wandb", "tracker.mode=offline", "train.steps=6", "diagnostics.watch_every=3")
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), *offline) == 0
    run = only_run(tmp_path)
    assert run_command(monkeypatch, "fit", "--resume", str(run), "train.steps=8") == 0
    found: dict[int, dict[str, Any]] = {}
    pictures: dict[int, set[str]] = {}
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for step, values in history(file):
            assert step not in found
            pictures[step] = {name for name in PICTURES if drawn(file, name, values)}
            found[step] = {name: value for name, value in values.items() if not name.startswith(PARTS)}
    expected: dict[int, dict[str, Any]] = {}
    for line in read_json_lines(run / "metrics.jsonl"):
        expected[line["step"]] = {name: value for name, value in line.items() if name != "step"}
    for line in read_json_lines(run / "diagnostics" / "measurements.jsonl"):
        expected[line["step"]] |= measurement(line)
    for line in read_json_lines(run / "diagnostics" / "watch.jsonl"):
        expected.setdefault(line["step"], {}).update(watched(line))
    assert found == expected and list(found) == [0, 2, 3, 4, 6, 8]
    of_measurements, of_looks = {"maps", "profile"}, {"watch/maps", "watch/profile"}
    both = of_measurements | of_looks
    assert pictures == {0: of_measurements, 2: set(), 3: of_looks, 4: of_measurements, 6: both, 8: of_measurements}


PICTURES = ("maps", "profile", "watch/maps", "watch/profile")
PARTS = tuple(f"{name}." for name in PICTURES)


def drawn(file: Path, name: str, values: dict[str, Any]) -> bool:
    """Whether a picture is in the history, and lies beside it."""
    if values.get(f"{name}._type") != "image-file":
        return False
    content = (file.parent / "files" / values[f"{name}.path"]).read_bytes()
    return content.startswith(b"\x89PNG") and len(content) == values[f"{name}.size"]


def history(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Steps and values in a file of W&B's, read by its own command."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = [json.loads(line) for line in text.splitlines()]
    assert {record["run"]["run_id"] for record in records if record["type"] == "run"} == {file.parents[2].name}
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [(item["_step"], {name: item[name] for name in item if not name.startswith("_")}) for item in items]
