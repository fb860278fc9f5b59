"""A comparison at W&B: its report, table and numbers arrive, and none of W&B's failures reach the comparison."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracked import Server, measured, new_run

from mhc_train.files import read_json_lines, write_json
from mhc_train.runs import Run
from mhc_train.tracking.comparison import send_comparison


def arm(name: str, run: Run, loss: float | None, last: dict[str, Any] | None) -> dict[str, Any]:
    return {"name": name, "runs": [str(run.path)], "seeds": [1], "val_loss": loss, "params": 10, "last": last}


def compared(directory: Path, *overrides: str) -> tuple[Run, dict[str, Any], Path]:
    """A comparison of two arms, of which one has no number, with a report."""
    runs = [new_run(directory, *overrides) for _ in range(2)]
    document = {
        "comparable": True,
        "reasons": [],
        "arms": [arm("residual", runs[0], 6.5, measured(3)), arm("mhc", runs[1], None, None)],
        "differences": [
            {"a": "residual", "b": "mhc", "metric": "val_loss", "mean": None, "verdict": "no common seed"},
            {"a": "residual", "b": "hc", "metric": "val_loss", "mean": -0.5, "verdict": "lower"},
        ],
    }
    comparison = Run(directory / "runs" / "20260101-120000-compare-0a1b2c")
    report = directory / "elsewhere"
    write_json(report / "report.json", document)
    (report / "report.html").write_text("a page")
    comparison.path.mkdir(exist_ok=True)
    return comparison, document, report


def received(server: Server) -> list[dict[str, Any]]:
    return read_json_lines(server.home / "reports")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(tmp_path, monkeypatch)


def test_report_table_and_numbers_arrive_and_again_in_the_same_run(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison, document, report = compared(tmp_path)
    for _ in range(2):
        send_comparison(comparison, document, report)
        assert capsys.readouterr().err == "W&B: online.\n"
    first, second = received(server)
    assert first == second
    name = comparison.path.name
    assert (first["id"], first["name"], first["group"], first["job_type"]) == (name, name, name, "comparison")
    assert first["artifact"] == {"name": f"report-{name}", "type": "report", "files": ["report.html", "report.json"]}
    one, other = first["arms"]
    assert (one["arm"], one["seeds"], one["val_loss"], one["params"], one["forward_gain"]) == (
        "residual",
        1,
        6.5,
        10,
        3,
    )
    assert (other["arm"], other["val_loss"], other["forward_gain"]) == ("mhc", None, None)
    assert first["summary"] == {
        "comparable": True,
        "residual/val_loss": 6.5,
        "residual/params": 10,
        "residual/forward_gain": 3,
        "residual/backward_gain": 3,
        "mhc/params": 10,
        "mhc - residual/verdict": "no common seed",
        "hc - residual/verdict": "lower",
        "hc - residual/val_loss": -0.5,
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("always init hang", "sending the comparison took more than 1 s; report.json has everything"),
        ("always finish hang", "sending the comparison took more than 1 s; report.json has everything"),
        ("init refuse", "W&B fails (init refused); report.json has everything"),
    ],
)
def test_failures_are_said_and_no_more(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], script: str, reason: str
) -> None:
    server.script(script)
    comparison, document, report = compared(tmp_path, *(("tracker.timeout=1",) if "hang" in script else ()))
    send_comparison(comparison, document, report)
    said = capsys.readouterr().err
    assert reason in said and f"python -m mhc_train.tracking {comparison.path} --report {report}` sends it" in said
    assert received(server) == []


def test_without_a_tracker_nothing_is_started(tmp_path: Path, server: Server) -> None:
    send_comparison(*compared(tmp_path, "tracker=none"))
    assert server.calls() == []


def test_runs_that_have_gone_are_said_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparison, document, report = compared(tmp_path)
    for row in document["arms"]:
        Run(Path(row["runs"][0])).config.unlink()
    send_comparison(comparison, document, report)
    assert "cannot be sent" in capsys.readouterr().err


def test_wandb_offline_has_the_report_and_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))  # not the home directory
    comparison, document, report = compared(tmp_path, "tracker.mode=offline")
    send_comparison(comparison, document, report)
    assert f"`wandb sync {comparison.path}/wandb/offline-run-*` sends it" in capsys.readouterr().err
    (file,) = comparison.path.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = {record["type"]: record for record in map(json.loads, text.splitlines())}
    run = records["run"]["run"]
    assert run["run_id"] == run["run_group"] == comparison.path.name and run["job_type"] == "comparison"
    assert "report.html" in text and "residual/val_loss" in text
