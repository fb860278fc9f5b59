"""Comparisons: what is planned and estimated, how arms choose their values, and how they are gone on with."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mhc_train.config.compose import compose
from mhc_train.errors import CheckpointError, ConfigError, Interrupted, Stopped, StorageError, VerdictError
from mhc_train.experiments import conclusion, jobs, reporting, tuning
from mhc_train.experiments import estimate as estimating
from mhc_train.experiments.comparison import Comparison, Options, plan_comparison, read_comparison, trained
from mhc_train.experiments.conclusion import conduct, raise_if_amiss
from mhc_train.experiments.crew import settle
from mhc_train.experiments.estimate import Estimate, estimate
from mhc_train.experiments.forecast import forecast, in_words
from mhc_train.experiments.ledger import Job, JobError, Ledger, raise_if_failed, raise_if_stopped
from mhc_train.experiments.reporting import of_comparison, of_directories
from mhc_train.experiments.sweep import create_sweep, read_sweep
from mhc_train.experiments.trial import measure
from mhc_train.files import is_locked, read_json_lines
from mhc_train.report.collect import RunRecord
from mhc_train.report.listing import listed
from mhc_train.runs import Run

FAKE = (sys.executable, str(Path(__file__).parents[2] / "fake_fit.py"))
SMALL = ("model.dim=16", "model.layers=1", "model.heads=2", "model.kv_heads=1", "model.ffn_dim=16", "train.device=cpu",
         "data.seq_len=16", "data.vocab_size=300", "train.batch_tokens=128", "train.micro_batch=4")  # fmt: skip


@pytest.fixture(autouse=True)
def _fake_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FIT", FAKE)


def plan(*overrides: str, **asked: Any) -> Comparison:
    return plan_comparison(overrides, "config", None, Options(**asked))


def new(directory: Path, *overrides: str, **asked: Any) -> Path:
    comparison = plan(f"runs_dir={directory}", "name=ok", *overrides, **asked)
    comparison.create(overrides)
    return comparison.path


def run_comparison(path: Path, **asked: Any) -> Comparison:
    with trained(path, **asked) as comparison:
        return comparison


def signal_when(ready: Callable[[], object]) -> None:
    """Send this process a SIGTERM as soon as something is so."""
    end = time.monotonic() + 60
    while not ready() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def starts(directory: Path) -> list[dict[str, str]]:
    return [start["job"] for start in read_json_lines(directory / "starts.jsonl")]


def test_arms_times_seeds_run_seed_by_seed() -> None:
    planned = plan("connection=residual,mhc", "seed=range(1,4)", "data.seed=${seed}")
    assert "-compare-" in planned.path.name and not planned.path.exists()
    assert [job.overrides for job in planned.jobs] == [
        [f"connection={arm}", f"seed={seed}", "data.seed=${seed}"] for seed in (1, 2, 3) for arm in ("residual", "mhc")
    ]
    assert [(arm.name, arm.jobs, arm.tuning) for arm in planned.arms] == [
        ("residual", [0, 2, 4], []), ("mhc", [1, 3, 5], [])
    ]  # fmt: skip
    assert planned.varied == []
    config = compose(planned.jobs[5].overrides)
    assert (config.seed, config.data.seed) == (3, 3)


def test_what_is_swept_is_varied_but_for_the_connection() -> None:
    assert plan("connection=hc,mhc", "optim.lr=1e-3,3e-4").varied == ["optim.lr"]
    assert plan("connection=mhc", "connection.streams=2,4", vary=["train.compile"]).varied == ["train.compile"]
    groups = plan("connection=hc,mhc", "model=tiny,small").varied
    assert "model.dim" in groups and all(key.startswith("model.") for key in groups)


@pytest.mark.parametrize(
    ("overrides", "asked", "message"),
    [
        (["connection=residual"], {}, "nothing to compare"),
        (["connection=glob(residual)", "model=tiny"], {}, "one arm, residual: nothing to compare"),
        (
            ["connection=residual,mhc"],
            {"against": "hc"},
            "--against hc: no such arm",
        ),
        (["connection=mhc", "data.seed=1,2"], {}, "differ in nothing that makes an arm"),
        (["optim.lr=1e-3"], {"tune": ["optim.lr=1e-3,2e-3"]}, "optim.lr is given already"),
        ([], {"tune": ["optim.lr=1e-3"]}, "one value leaves nothing to choose"),
        ([], {"tune": ["optim.rl=1,2"]}, "optim.rl=1: no such key"),
        ([], {"tune": ["data.seed=1,2"]}, "no part of how an arm learns"),
        ([], {"tune": ["train.threads=1,2"]}, "no part of how an arm learns"),
        ([], {"vary": ["optim.rl", "model"]}, "--vary optim.rl: no such key. Did you mean optim.lr"),
        ([], {"fail_on": ["mch.val_loss > 3"]}, "there is no mch; did you mean mhc"),
        ([], {"fail_on": ["shown: mhc.val_loss > resid.val_loss"]}, "there is no resid; did you mean residual"),
        ([], {"fail_on": ["mhc.fail:maas"]}, "there is no maas; did you mean mass"),
        (["connection=mhc"], {"fail_on": ["hc.fail"]}, "there is no hc"),
    ],
)
def test_what_cannot_be_planned(overrides: list[str], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="(?s)" + message.replace("=", ".")):
        plan(*overrides, **asked)


def test_each_arm_is_tuned_on_a_seed_that_is_not_compared(tmp_path: Path) -> None:
    path = new(tmp_path, "connection=residual,mhc", "seed=0,1", tune=["optim.lr=1e-3,2e-3,3e-3"])
    comparison = run_comparison(path)
    trials, compared = starts(tmp_path)[:6], starts(tmp_path)[6:]
    assert [(job["optim.lr"], job["connection"], job["seed"]) for job in trials] == [
        (rate, arm, "2") for rate in ("0.001", "0.002", "0.003") for arm in ("residual", "mhc")
    ]
    assert [(job["connection"], job["seed"], job["optim.lr"]) for job in compared] == [
        (arm, seed, "0.002") for seed in ("0", "1") for arm in ("residual", "mhc")
    ]
    assert [arm.chosen for arm in comparison.arms] == [{"optim.lr": "0.002"}] * 2
    assert comparison.varied == ["optim.lr"]
    assert comparison.document() == json.loads((path / "ledger.json").read_text())
    assert [entry.jobs for entry in listed([path]) if entry.kind == "comparison"] == [{"done": 4}]
    again = run_comparison(path)
    assert again.document() == comparison.document() and len(starts(tmp_path)) == 10


def test_the_best_point_wins_and_its_edges_are_seen() -> None:
    grid = {"optim.lr": ["0.004", "0.002", "0.001"], "optim.schedule": ["cosine", "linear"]}
    losses = [None, 3.0, 2.0, 2.5, 2.0, math.inf]
    trials = [Job(number, [], "done" if loss else "failed", val_loss=loss or 1.0) for number, loss in enumerate(losses)]
    chosen = tuning.best(grid, trials)
    assert chosen == {"optim.lr": "0.001", "optim.schedule": "cosine"}  # as good as 0.002, and smaller
    rate, schedule = tuning.rows(grid, trials, chosen)
    assert rate == {
        "key": "optim.lr", "losses": {"0.004": 3.0, "0.002": 2.0, "0.001": 2.0}, "chosen": "0.001", "edge": True
    }  # fmt: skip
    assert schedule["losses"] == {"cosine": 2.0, "linear": 2.5} and not schedule["edge"]
    assert tuning.best({"a": ["1", "2"]}, [Job(0, [], "failed"), Job(1, [], "failed")]) is None


def test_an_arm_that_cannot_choose_fails_alone_and_may_be_retried(tmp_path: Path) -> None:
    path = new(tmp_path, "data.column=ok,fail", "seed=1,2", tune=["optim.lr=1e-3,2e-3"])
    comparison = run_comparison(path)
    assert [job.state for job in comparison.decisive] == ["done", "failed"] * 2
    with pytest.raises(JobError, match="not begun: every run of its tuning diverged") as caught:
        raise_if_failed(comparison)
    assert caught.value.exit_code == 5 and "--retry-failed" not in str(caught.value)  # it would diverge again
    assert len(starts(tmp_path)) == 4 + 2
    run_comparison(path)
    assert len(starts(tmp_path)) == 6
    # Retried, each goes on from its checkpoint and ends well; then the arm chooses, and its own runs fail first.
    comparison = run_comparison(path, retry_failed=True)
    assert comparison.arms[1].chosen == {"optim.lr": "0.002"} and len(starts(tmp_path)) == 6 + 2 + 2


def test_a_tuning_run_that_was_killed_settles_nothing(tmp_path: Path) -> None:
    """The best of the other values may be worse than its own would have been."""
    path = new(tmp_path, "data.column=ok,die", "seed=1", tune=["optim.lr=1e-3,2e-3"])
    comparison = run_comparison(path)
    assert [arm.chosen for arm in comparison.arms] == [{"optim.lr": "0.002"}, None]
    with pytest.raises(JobError, match=r"not begun: .*optim.lr=0.001 seed=0 failed\).*--retry-failed") as caught:
        raise_if_failed(comparison)
    assert caught.value.exit_code == 128 + signal.SIGKILL
    comparison = run_comparison(path, retry_failed=True)
    raise_if_failed(comparison)
    assert comparison.arms[1].chosen == {"optim.lr": "0.002"}


def test_a_failure_that_nobody_saw_has_its_runs_exit_code(tmp_path: Path) -> None:
    comparison = read_comparison(new(tmp_path, "seed=1"))
    failed, unknown = comparison.jobs[:2]
    for job in (failed, unknown):
        job.state, job.run = "running", str(tmp_path / f"run-{job.number}")
    Run(tmp_path / "run-0").set_status("failed", exit_code=3)
    Run(tmp_path / "run-1").set_status("running")
    settle(comparison)
    assert [(job.state, job.exit_code) for job in (failed, unknown)] == [("failed", 3), ("stopped", None)]


def test_a_signal_during_the_report_leaves_it_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new(tmp_path, "seed=1")

    def interrupted(comparison: Comparison, directory: Path) -> None:
        assert is_locked(path / "lock") and Run(path).status()["status"] == "running"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(conclusion, "_report", interrupted)
    with pytest.raises(Stopped, match=f"by SIGTERM before the report .* `mhc-train compare --resume {path}`"):
        conduct(path, False, 1, None)
    assert Run(path).status()["status"] == "stopped"
    monkeypatch.setattr(conclusion, "_report", lambda comparison, directory: ({}, directory))
    assert conduct(path, False, 1, None)[1] == ({}, path / "report")
    assert Run(path).status()["status"] == "done" and len(starts(tmp_path)) == 3


def test_a_report_that_fails_is_a_comparison_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new(tmp_path, "seed=1")

    def full(comparison: Comparison, directory: Path) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(conclusion, "_report", full)
    with pytest.raises(StorageError):
        conduct(path, False, 1, None)
    assert Run(path).status()["status"] == "failed" and Run(path).status()["error"] == "no space"


def test_conditions_name_arms_as_planned_whatever_tuning_added() -> None:
    """The report tells arms of one label apart by all in which they differ, the chosen values included."""
    planned = plan("connection=mhc", "connection.streams=2,4", "seed=0", tune=["optim.lr=1e-3,2e-3"])
    assert [arm.name for arm in planned.arms] == ["mhc streams=2", "mhc streams=4"]
    for job, run in zip(planned.decisive, "ab", strict=True):
        job.state, job.run = "done", run
    names = ["mhc streams=2 lr=0.001", "mhc streams=4 lr=0.002"]
    arms = [
        {"name": name, "runs": [run], "val_loss": loss} for name, run, loss in zip(names, "ab", (3, 2), strict=True)
    ]
    row = {"a": names[0], "b": names[1], "metric": "val_loss", "verdict": "lower", "mean": -1.0}
    written = ({"arms": arms, "differences": [row]}, Path())
    raise_if_amiss(planned, written, ["mhc streams=4.val_loss > mhc streams=2.val_loss"])
    with pytest.raises(VerdictError, match="mhc streams=4 is lower than mhc streams=2"):
        raise_if_amiss(planned, written, ["shown: mhc streams=4.val_loss < mhc streams=2.val_loss"])


def test_the_reference_that_cannot_be_reported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = plan("connection=residual,mhc", "seed=0", against="mhc")
    comparison.jobs[0].state, comparison.jobs[0].run = "done", str(tmp_path)
    comparison.jobs[1].state = "failed"
    Run(tmp_path).set_status("done", parameters={})
    record = RunRecord(tmp_path, asdict(compose(["connection=residual"])), {"seed": 0}, {}, [], [], [])
    monkeypatch.setattr(reporting, "read_run", lambda path: record)
    assert of_comparison(comparison).against is None
    assert "--against mhc: it has no run to report; the others are against residual." in capsys.readouterr().err


def test_two_signals_interrupt() -> None:
    job = Job(0, [], "stopped", exit_code=Interrupted.exit_code)
    with pytest.raises(Interrupted, match="Stopped by SIGINT: 0 of 1 jobs are done"):
        raise_if_stopped(Ledger(Path("sweep"), "config", None, [job], signal="SIGINT"))


def test_a_failed_run_stops_no_other(tmp_path: Path) -> None:
    path = new(tmp_path, "data.column=early,ok,fail", "seed=1,2")
    comparison = run_comparison(path)
    assert [job.state for job in comparison.jobs] == ["failed", "done", "failed"] * 2
    with pytest.raises(JobError, match="2 of 6 jobs are done, 4 failed") as caught:
        raise_if_failed(comparison)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("tune", [(), ("optim.lr=1e-3,2e-3",)])
def test_a_signal_stops_it_and_it_goes_on(tune: tuple[str, ...], tmp_path: Path) -> None:
    path = new(tmp_path, "data.column=wait,ok", "seed=1,2", tune=tune)
    thread = threading.Thread(target=signal_when, args=(lambda: list(tmp_path.glob("*/ready")),))
    thread.start()
    comparison = run_comparison(path)
    thread.join()
    with pytest.raises(Stopped, match=f"Go on with `mhc-train compare --resume {path}`"):
        raise_if_stopped(comparison)
    assert json.loads((path / "status.json").read_text())["status"] == "stopped"
    assert [job.state for job in comparison.jobs[:2]] == ["stopped", "waiting"]
    (tmp_path / "go").touch()
    comparison = run_comparison(path, at_once=2)
    raise_if_stopped(comparison)
    raise_if_failed(comparison)
    resumed = [start["resumed"] for start in read_json_lines(tmp_path / "starts.jsonl")]
    assert sum(resumed) == 1 and len(resumed) == len(comparison.jobs) + 1


def test_a_ledger_is_gone_on_with_by_its_own_command(tmp_path: Path) -> None:
    compared, swept = new(tmp_path, "seed=1,2"), create_sweep([f"runs_dir={tmp_path}", "seed=1,2"], "config", None)
    with pytest.raises(ConfigError, match=f"is a sweep. Type `mhc-train fit -m --resume {swept}`"):
        read_comparison(swept)
    with pytest.raises(ConfigError, match=f"is a comparison. Type `mhc-train compare --resume {compared}`"):
        read_sweep(compared)
    document = json.loads((compared / "ledger.json").read_text())
    (compared / "ledger.json").write_text(json.dumps({key: document[key] for key in document if key != "grid"}))
    with pytest.raises(CheckpointError, match="not a ledger"):
        read_comparison(compared)
    (compared / "ledger.json").write_text("[")
    with pytest.raises(CheckpointError, match="not a ledger"):
        of_directories([compared], Options())


def test_a_trial_measures_what_a_step_takes() -> None:
    found = measure(compose([*SMALL, "data.validation_tokens=1024"]), started=time.time())
    assert 0 < found["step"] < 60 and 0 < found["validation"] < 60 and found["start_up"] > 0 and found["steps"] >= 1


def test_a_runs_time_is_start_up_steps_and_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = {
        "start_up": 4.0,
        "step": 0.5,
        "validation": 2.0,
        "steps": 3,
        "peak_memory": 7,
        "peak_memory_counted": "all",
    }
    monkeypatch.setattr(estimating, "run_trial", lambda config: trial)
    # Validated at 0, 4, 8 and 10.
    found = estimate(compose([*SMALL, "train.steps=10", "train.eval_every=4"]))
    assert found.seconds_per_run == 4 + 10 * 0.5 + 4 * 2 and found.unknown is None
    assert found.parameters > 300 * 16 and found.flops_per_token > 6 * 300 * 16


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        ("import sys; sys.exit('no such thing')", "no such thing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL, perhaps for want of memory"),
        ('print(\'{"error": "out of memory"}\')', "out of memory"),
        ("print('Loading kernels')", "an answer that is none: 'Loading kernels'"),
        ("import time; time.sleep(60)", "longer than 1 seconds"),
    ],
)
def test_a_trial_that_fails_leaves_the_cost_unknown(trial: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "TRIAL", (sys.executable, "-c", trial))
    monkeypatch.setattr(estimating, "PATIENCE", 1 if "sleep" in trial else 60)
    found = estimate(compose(SMALL))
    assert reason in (found.unknown or "") and found.seconds_per_run is None and found.parameters > 0


def test_a_signal_ends_the_estimate_and_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "trial"
    trial = f"import os, time; open({str(begun)!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(60)"
    monkeypatch.setattr(estimating, "TRIAL", (sys.executable, "-c", trial))
    thread = threading.Thread(target=signal_when, args=(lambda: begun.exists() and begun.read_text().endswith(" "),))
    thread.start()
    with pytest.raises(Interrupted, match="SIGTERM ended the estimate"):
        estimate(compose(SMALL))
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_the_forecast_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan("connection=residual,mhc", "seed=1,2", tune=["optim.lr=1e-3,2e-3"], against="mhc")
    for arm, seconds in zip(planned.arms, (10.0, 20.0), strict=True):
        arm.cost = vars(Estimate(1, 2, None, 0.1, 3, seconds))
    planned.jobs[0].state = "done"
    document = forecast(planned)
    assert [(arm["runs"], arm["runs_tuning"], arm["seconds"]) for arm in document["arms"]] == [(4, 2, 40), (4, 2, 80)]
    assert (document["seconds"], document["seconds_left"], document["against"]) == (120, 110, "mhc")
    assert [job["tuning"] for job in document["jobs"]] == [True] * 4 + [False] * 4
    assert document["jobs"][7]["command"][:4] == ["mhc-train", "fit", "-cn", "config"]
    said = "\n".join(in_words(document))
    assert "4 of the runs choose optim.lr, each arm its own, on seed 0" in said and "Estimated" in said
    planned.arms[0].cost = vars(Estimate(1, 2, "no memory"))
    document = forecast(planned)
    assert document["seconds"] is None and "residual: time unknown: no memory." in in_words(document)
