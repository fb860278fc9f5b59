"""`mhc-train compare` as a user types it: planned, trained, gone on with, reported; and of runs that are there."""

import json
import webbrowser
from pathlib import Path
from typing import Any

import pytest
from forked_fit import fork_jobs
from tiny import overrides, run_command

from mhc_train.config.compose import compose
from mhc_train.errors import ConfigError
from mhc_train.experiments import estimate as estimating
from mhc_train.experiments.estimate import run_trial
from mhc_train.files import read_json_lines
from mhc_train.report import condition
from mhc_train.schema import Config

Captured = pytest.CaptureFixture[str]
FEW = ("train.steps=4", "model.layers=1", "data.validation_tokens=128", "train.sample_tokens=0")
NO_ESTIMATE = "--no-estimate"


@pytest.fixture(autouse=True)
def _forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork_jobs(monkeypatch, tmp_path / "forked")


def comparison_in(directory: Path) -> Path:
    (path,) = directory.glob("runs/*-compare-*")
    return path


def states(path: Path) -> list[str]:
    return [job["state"] for job in json.loads((path / "ledger.json").read_text())["jobs"]]


class Holds:
    """A condition that holds."""

    def violations(self, document: dict[str, Any]) -> list[str]:
        return [f"{len(document['arms'])} arms"]


def test_the_arms_are_trained_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    typed = [*overrides(tmp_path), *FEW, "connection=residual,mhc", "seed=0,1"]
    code = run_command(monkeypatch, "compare", "--json", NO_ESTIMATE, "--against", "mhc", "--open", *typed)
    output = capsys.readouterr()
    assert code == 0, output.err
    document = json.loads(output.out)
    assert document["comparable"], document["reasons"]
    assert {arm["name"] for arm in document["arms"]} == {"residual", "mhc"}
    for arm in document["arms"]:
        metrics = [read_json_lines(Path(run) / "metrics.jsonl")[-1]["val_loss"] for run in arm["runs"]]
        assert arm["val_loss"] == pytest.approx(sum(metrics) / 2) and arm["seeds"] == [0, 1]
    (difference,) = document["differences"]
    low, high = difference["interval"]
    assert difference["seeds"] == [0, 1] and low <= difference["mean"] <= high
    path, page = comparison_in(tmp_path), Path(document["report"])
    assert page.parent == path / "report" and opened == [page.resolve().as_uri()] and document["reference"] == "mhc"
    names = {"ledger.json", "status.json", "overrides.txt", "environment.json", "report", "lock"}
    assert {file.name for file in path.iterdir()} == names
    status = json.loads((path / "status.json").read_text())
    assert (status["status"], status["kind"], len(status["runs"])) == ("done", "comparison", 4)

    # A comparison stands for its runs; the report is another one, elsewhere.
    assert run_command(monkeypatch, "compare", str(path), "-o", str(tmp_path / "again")) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert [arm["runs"] for arm in again["arms"]] == [arm["runs"] for arm in document["arms"]]

    for _ in range(2):
        assert run_command(monkeypatch, "compare", status["runs"][0], status["runs"][2], "--against", "residual") == 0
    assert "one seed" in capsys.readouterr().out
    assert len(list(tmp_path.glob("runs/*-compare-*/report/report.html"))) == 3

    before = sorted((tmp_path / "runs").iterdir())
    assert run_command(monkeypatch, "compare", status["runs"][0], "--against", "hc") == 2
    assert "--against hc: no such arm. There are residual" in capsys.readouterr().err
    assert run_command(monkeypatch, "compare", status["runs"][0], str(tmp_path)) == 4
    assert sorted((tmp_path / "runs").iterdir()) == before  # what is wrong leaves no debris


def test_what_is_not_comparable_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("connection=residual", "data.seed=1"):
        assert run_command(monkeypatch, "fit", *overrides(tmp_path), *FEW, extra) == 0
    runs = [str(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert run_command(monkeypatch, "compare", *runs, "-o", str(tmp_path / "report")) == 0
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert not document["comparable"]
    assert any("training tokens in order different" in reason for reason in document["reasons"])


def test_a_failed_arm_stops_no_other_and_gives_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """One of two rates diverges; the report is of the other, and says so."""
    typed = [*overrides(tmp_path), *FEW, "connection=mhc", "optim.lr=1e30,1e-3", "seed=0,1"]
    assert run_command(monkeypatch, "compare", NO_ESTIMATE, "--jobs", "2", *typed) == 5
    output = capsys.readouterr()
    path = comparison_in(tmp_path)
    assert states(path) == ["failed", "done"] * 2
    assert "2 failed: optim.lr=1e+30 seed=0; optim.lr=1e+30 seed=1" in output.err
    document = json.loads((path / "report" / "report.json").read_text())
    assert document["concurrent"] == 2 and document["varied"] == ["optim.lr"]
    assert [arm["seeds"] for arm in document["arms"] if arm["val_loss"] is not None] == [[0, 1]]
    assert len(list(path.glob("job-*.log"))) == 4 and "2 runs shared the machine" in output.out
    assert json.loads((path / "status.json").read_text())["status"] == "failed"


def test_nothing_to_report_where_all_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    absent = f"data.path={tmp_path / 'absent.jsonl'}"
    typed = [*overrides(tmp_path), *FEW, "connection=residual,mhc", absent]
    assert run_command(monkeypatch, "compare", NO_ESTIMATE, "--json", *typed) == 3
    path = comparison_in(tmp_path)
    assert capsys.readouterr().out == (path / "ledger.json").read_text()
    assert run_command(monkeypatch, "compare", "--resume", str(path)) == 3
    assert "nothing to report" in capsys.readouterr().err
    assert states(path) == ["failed", "failed"] and not (path / "report").exists()
    assert run_command(monkeypatch, "compare", str(path)) == 4


def test_tuned_arms_are_compared_at_their_own_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """One rate does nothing in four steps, one helps, and one diverges, which is no failure of the comparison."""
    typed = [*overrides(tmp_path), *FEW, "connection=residual,mhc", "--tune", "optim.lr=1e-9,1e-2,1e30"]
    monkeypatch.setattr(condition, "parse_comparison", lambda text: Holds())
    assert run_command(monkeypatch, "compare", NO_ESTIMATE, "--fail-on", "anything", *typed) == 6
    assert "2 arms" in capsys.readouterr().err
    path = comparison_in(tmp_path)
    assert states(path) == ["done"] * 4 + ["failed"] * 2 + ["done"] * 2
    document = json.loads((path / "report" / "report.json").read_text())
    for row, arm in zip(document["tuning"], ("residual", "mhc"), strict=True):
        assert (row["arm"], row["key"], row["chosen"], row["edge"]) == (
            [f"connection={arm}"], "optim.lr", "0.01", False
        )  # fmt: skip
        assert row["losses"]["1e+30"] is None and row["losses"]["0.01"] < row["losses"]["1e-09"] and row["seed"] == 1
    for arm in document["arms"]:
        assert arm["seeds"] == [0] and "optim.lr=0.01" in arm["overrides"][0]
    # It goes on as it was begun, --fail-on included; nothing is left but the report.
    assert run_command(monkeypatch, "compare", "--resume", str(path)) == 6


def test_a_dry_run_is_a_plan_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    trial = {"start_up": 4, "step": 0.5, "validation": 2, "steps": 3, "peak_memory": 7, "peak_memory_counted": "all"}
    monkeypatch.setattr(estimating, "run_trial", lambda config: trial)
    typed = ["compare", "--dry-run", *overrides(tmp_path), "connection=residual,mhc", "seed=1,2"]
    assert run_command(monkeypatch, *typed, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1 and document["runs"] == len(document["jobs"]) == 4
    for arm in document["arms"]:
        assert arm["seconds_per_run"] == 4 + 8 * 0.5 + 3 * 2 and arm["parameters"] > 0 and arm["flops_per_token"] > 0
    assert document["seconds"] == 4 * 14
    assert run_command(monkeypatch, *typed) == 0
    printed = capsys.readouterr().out
    assert "seconds a step" in printed and "left: 56 s" in printed and "Estimated" in printed
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_is_answered(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(estimating, "run_trial", interrupted)
    assert run_command(monkeypatch, "compare", "--dry-run", "connection=residual,mhc") == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")


def test_a_trial_in_a_process_of_its_own() -> None:
    found = run_trial(compose(["train.device=cpu", "model.layers=1", "train.batch_tokens=256", "train.micro_batch=1"]))
    assert found["start_up"] > 0 and found["step"] > 0 and found["peak_memory_counted"] == "resident, whole process"


@pytest.mark.parametrize(
    ("typed", "code", "advice"),
    [
        (["--against", "nobody", "connection=residual,mhc"], 2, "There are residual, mhc"),
        (["--resume", "nowhere"], 4, "no comparison: it has no ledger.json"),
        (["--resume", "nowhere", "seed=1"], 2, "goes on as it was begun"),
        (["--resume", "nowhere", "--tune", "optim.lr=1,2"], 2, "goes on as it was begun"),
        (["--resume", "nowhere", "-cn", "other"], 2, "Leave out overrides, -cn"),
        (["connection=hc,mhc", "--output", "/dev/null/report"], 7, "--output /dev/null/report: Not a directory"),
        (["--retry-failed", "connection=hc,mhc"], 2, "Type --resume COMPARISON"),
        (["--dry-run", "some-run"], 2, "are for trainings"),
        (["--detect", "much"], 2, "such as 1%"),
        (["--fail-on", "nonsense"], 2, "--fail-on nonsense"),
        (["connection=hc,mhc", "some-run"], 2, "Give runs or overrides, not both"),
        (["some-run"], 4, "not a run directory"),
    ],
)
def test_what_to_type_instead(
    typed: list[str], code: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def refuse(text: str) -> None:
        raise ConfigError(f"--fail-on {text}")

    monkeypatch.setattr(condition, "parse_comparison", refuse)
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, "compare", NO_ESTIMATE, *typed) == code
    assert advice in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["forked"]
