"""Sweeps: what is planned, what the ledger says, and that every job is done once, whatever is killed when."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mhc_train.errors import CheckpointError, ConfigError, Stopped
from mhc_train.experiments import jobs
from mhc_train.experiments.crew import Crew, cuda_devices
from mhc_train.experiments.jobs import Forwarding, exit_code, multiply, start_fit
from mhc_train.experiments.ledger import JobError, Ledger, raise_if_failed, raise_if_stopped
from mhc_train.experiments.sweep import create_sweep, plan_sweep, read_sweep, run_sweep
from mhc_train.files import read_json_lines

FAKE = (sys.executable, str(Path(__file__).parents[2] / "fake_fit.py"))
PARENT = f"""
from mhc_train.experiments import jobs, sweep
from pathlib import Path
import sys
jobs.FIT = {FAKE!r}
sweep.run_sweep(Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _fake_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FIT", FAKE)


def new_sweep(directory: Path, *overrides: str) -> Path:
    return create_sweep([f"runs_dir={directory}", *overrides], "config", None)


def starts(directory: Path) -> list[dict[str, Any]]:
    return read_json_lines(directory / "starts.jsonl")


def states(path: Path) -> list[str]:
    return [job["state"] for job in json.loads((path / "ledger.json").read_text())["jobs"]]


def raise_unless_done(sweep: Ledger) -> None:
    raise_if_stopped(sweep)
    raise_if_failed(sweep)


def wait_until(happened: Any) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def meanwhile(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_the_grammar_is_hydras() -> None:
    typed = [
        "connection=glob(mhc*,exclude=[*_lite,*_n*,*_s*])",
        "train.steps=3",
        "+seed=range(1,3)",
        "optim.lr=1e-3,3e-4",
    ]
    runs = multiply(typed, None)
    assert len(runs) == 2 * 2 * 2
    assert runs[0] == ["connection=mhc", "train.steps=3", "+seed=1", "optim.lr=0.001"]
    assert runs[-1] == ["connection=mhc_v4", "train.steps=3", "+seed=2", "optim.lr=0.0003"]
    assert multiply(["optim.betas=[0.9,0.95],[0.8,0.9]", "name='a b',c"], None)[1] == [
        "optim.betas=[0.9,0.95]",
        "name=c",
    ]
    assert multiply(["seed=1,2", "name=a", "seed=3"], None) == [["seed=3", "name=a"]]
    assert multiply([], None) == [[]]


def test_everything_wrong_is_said_before_anything_is_made(tmp_path: Path) -> None:
    wrong = ["optim.lr=interval(0,1)", "connection=glob(x*)", "a=[1", "seed=1,2"]
    with pytest.raises(ConfigError) as caught:
        new_sweep(tmp_path / "runs", *wrong)
    assert [text.split(":")[0] for text in caught.value.problems] == wrong[:3]
    assert "range(START,STOP,STEP)" in caught.value.problems[0] and "mhc_lite" in caught.value.problems[1]
    with pytest.raises(ConfigError) as caught:
        new_sweep(tmp_path / "runs", "connection=mhc,mch,ohc", "connection.streams=4,5", "train.steps=0")
    for part in ("connection = mch", "exactly 4 streams, not 5", "train.steps = 0"):
        assert sum(part in text for text in caught.value.problems) == 1
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_called_what_its_jobs_are_called(tmp_path: Path) -> None:
    assert "-grid-sweep-" in plan_sweep(["name=grid", "seed=1,2"], "config", None).path.name
    planned = plan_sweep([f"runs_dir={tmp_path}", "connection=hc,mhc"], "config", None)
    assert "-sweep-" in planned.path.name and "mhc" not in planned.path.name
    assert planned.path.parent == tmp_path and not planned.path.exists()
    assert [planned.title(job) for job in planned.jobs] == ["connection=hc", "connection=mhc"]


def test_every_job_is_done_once_and_the_ledger_says_so(tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=ok", "seed=1,2")
    assert states(path) == ["waiting", "waiting"]
    for _ in range(2):  # nothing is left for the second time
        sweep = run_sweep(path)
        raise_unless_done(sweep)
        assert sweep.document() == json.loads((path / "ledger.json").read_text())
    assert [start["job"]["seed"] for start in starts(tmp_path)] == ["1", "2"]
    for number, job in enumerate(sweep.jobs):
        assert (job.number, job.state, job.exit_code, job.val_loss) == (number, "done", 0, 2.5)
        assert job.seconds > 0 and job.run is not None and job.overrides[-1] == f"seed={number + 1}"
        assert json.loads((Path(job.run) / "overrides.json").read_text()) == job.overrides
    assert (path / "overrides.txt").read_text().splitlines()[1:] == ["name=ok", "seed=1,2"]


def test_keep_going_then_retry(tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=fail,early,ok")
    sweep = run_sweep(path)
    assert states(path) == ["failed", "failed", "done"]
    with pytest.raises(
        JobError, match=r"1 of 3 jobs are done, 2 failed: name=fail; name=early.*--retry-failed"
    ) as caught:
        raise_unless_done(sweep)
    assert caught.value.exit_code == 5
    assert sweep.jobs[1].run is None and sweep.jobs[1].exit_code == 3
    run_sweep(path)
    assert len(starts(tmp_path)) == 3  # failed jobs only if asked for
    assert states(run_sweep(path, retry_failed=True).path) == ["done", "failed", "done"]
    retried = starts(tmp_path)[3:]
    assert [start["resumed"] for start in retried] == [True, False]  # from its checkpoint, where there is one


def test_two_at_once(tmp_path: Path) -> None:
    """The third is begun when one of the first two ends; messages go to a file for each."""
    path = new_sweep(tmp_path, "name=wait", "seed=1,2,3")

    def watch() -> None:
        wait_until(lambda: len(list(tmp_path.glob("*/ready"))) == 2)
        assert states(path) == ["running", "running", "waiting"]
        (tmp_path / "go").touch()

    with meanwhile(watch):
        sweep = run_sweep(path, at_once=2)
    raise_unless_done(sweep)
    assert sweep.concurrent == json.loads((path / "ledger.json").read_text())["concurrent"] == 2
    assert len(list(path.glob("job-*.log"))) == 3


def test_a_signal_reaches_all_that_run(tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=wait", "seed=1,2,3")

    def stop() -> None:
        wait_until(lambda: len(list(tmp_path.glob("*/ready"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        run_sweep(path, at_once=2)
    assert states(path) == ["stopped", "stopped", "waiting"]


def test_gpus_are_dealt_out_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert cuda_devices() == ["3", "GPU-5"]
    with Forwarding() as signals:
        crew = Crew(plan_sweep(["seed=1,2"], "config", None), signals, 0, size=3)
        seen = [crew._environment(place).get("CUDA_VISIBLE_DEVICES") for place in range(3)]
        assert seen == ["3", "GPU-5", "3"]
        crew.size = 1  # alone, a job sees what we see
        assert "CUDA_VISIBLE_DEVICES" not in crew._environment(0)


def test_a_run_that_was_killed_is_said_to_have_failed(tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=slow")

    def kill() -> None:
        wait_until(lambda: list(tmp_path.glob("*/ready")))
        os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)

    with meanwhile(kill):
        (job,) = run_sweep(path).jobs
    assert (job.state, job.exit_code) == ("failed", 137)
    assert json.loads((Path(job.run or "") / "status.json").read_text())["error"].endswith("exit code 137")


def test_fail_fast_leaves_the_rest_waiting(tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=ok,fail,early", "seed=1,2")
    sweep = run_sweep(path, fail_fast=True)
    assert states(path) == ["done", "done", "failed", "waiting", "waiting", "waiting"]
    with pytest.raises(JobError, match="3 not started") as caught:
        raise_unless_done(sweep)
    assert caught.value.exit_code == 5


def test_a_process_that_ends_well_without_finishing_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FIT", (sys.executable, "-c", "pass"))
    assert run_sweep(new_sweep(tmp_path)).jobs[0].state == "failed"


@pytest.mark.parametrize("name", ["wait", "slow"])
def test_a_signal_stops_the_job_and_the_sweep(name: str, tmp_path: Path) -> None:
    path = new_sweep(tmp_path, f"name={name}", "seed=1,2")

    def stop() -> None:
        wait_until(lambda: list(tmp_path.glob("*/ready")))
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        sweep = run_sweep(path)
    assert states(path) == ["stopped", "waiting"]
    with pytest.raises(Stopped, match=f"Stopped by SIGTERM: 0 of 2 jobs are done. Go on with .* -m --resume {path}`"):
        raise_unless_done(sweep)
    (tmp_path / "go").touch()
    raise_unless_done(run_sweep(path))
    assert [start["resumed"] for start in starts(tmp_path)] == [False, name == "wait", False]
    assert len({job.run for job in read_sweep(path).jobs}) == 2


def test_a_signal_before_the_process_is_there_reaches_it(tmp_path: Path) -> None:
    with Forwarding() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == "SIGTERM"
        child = start_fit(["--run-directory", str(tmp_path / "run"), "name=slow"], {}, signals)
        child.wait()
    assert exit_code(child) in (75, 128 + signal.SIGTERM)


@pytest.mark.parametrize(("name", "victim"), [("wait", "sweep"), ("wait", "both"), ("slow", "both")])
def test_a_killed_sweep_goes_on(name: str, victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = new_sweep(tmp_path, f"name={name}", "seed=1,2,3")
    with subprocess.Popen([sys.executable, "-c", PARENT, str(path)]) as parent:
        wait_until(lambda: list(tmp_path.glob("*/ready")))
        parent.kill()
    assert states(path) == ["running", "waiting", "waiting"]
    if victim == "both":
        os.kill(starts(tmp_path)[0]["pid"], signal.SIGKILL)
        (tmp_path / "go").touch()

    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if "waiting for its end" in message:  # the job that lived on may end now
            (tmp_path / "go").touch()

    monkeypatch.setattr("mhc_train.experiments.ledger.say", say)
    sweep = run_sweep(path)
    assert victim == "both" or any("waiting for its end" in message for message in said)
    raise_unless_done(sweep)
    seeds = [(start["job"]["seed"], start["resumed"]) for start in starts(tmp_path)]
    again = [("1", name == "wait")] if victim == "both" else []  # a job that lived on is not started again
    assert seeds == [("1", False), *again, ("2", False), ("3", False)]
    assert all(json.loads((Path(job.run or "") / "status.json").read_text())["status"] == "done" for job in sweep.jobs)


@pytest.mark.parametrize(
    ("left", "again"),
    [(None, [False]), ("", [False]), ("running", [False]), ("stopped", [False]), ("done", []), ("failed", [])],
)
def test_what_a_killed_sweep_left_is_read_from_the_run(left: str | None, again: list[bool], tmp_path: Path) -> None:
    path = new_sweep(tmp_path, "name=ok")
    ledger = json.loads((path / "ledger.json").read_text())
    ledger["jobs"][0] |= {"state": "running", "run": str(tmp_path / "run")}
    (path / "ledger.json").write_text(json.dumps(ledger))
    if left is not None:
        (tmp_path / "run").mkdir()
    if left:
        (tmp_path / "run" / "status.json").write_text(json.dumps({"status": left}))
    (job,) = run_sweep(path).jobs
    assert job.state == ("failed" if left == "failed" else "done")
    assert [start["resumed"] for start in starts(tmp_path)] == again
    if left == "failed":
        with pytest.raises(JobError) as caught:
            raise_unless_done(read_sweep(path))
        assert caught.value.exit_code == 1


def test_what_is_no_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no sweep: it has no ledger.json"):
        run_sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    for content in ("{", "{}", '{"jobs": [{"a": 1}]}'):
        (tmp_path / "ledger.json").write_text(content)
        with pytest.raises(CheckpointError, match="not a ledger"):
            run_sweep(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = create_sweep(["runs_dir=here", "seed=1,2"], "config", None)
    assert read_sweep(tmp_path / path).jobs
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="Go to the directory that it was begun in"):
        run_sweep(tmp_path / path)
