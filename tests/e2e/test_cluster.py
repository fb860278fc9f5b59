"""The batch script for Slurm, run with stand-ins for Slurm's own commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import free_port, metrics, only_run
from tiny import overrides

SCRIPT = Path(__file__).parents[2] / "cluster" / "fit.sbatch"
SRUN = """#!/bin/bash
# Like the real one with --kill-on-bad-exit=1: the first task that ends with another code than 0 ends them all.
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
echo "${tasks[@]}" > tasks
for _ in 0 1; do
    wait -n; code=$?
    if ((code)); then pkill -KILL -P "$(IFS=,; echo "${tasks[*]}")"; kill -KILL "${tasks[@]}"; exit "$code"; fi
done 2> /dev/null
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >> requeued; fi
"""


def job(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """What Slurm would start: a new process group, so that nothing of it outlives the test."""
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    here = os.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": str(free_port() - 20000 + 20000 * 3),
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    with (directory / "log").open("ab") as log:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], cwd=directory, env=here, stdout=log, stderr=log, start_new_session=True
        )


def wait_for_step(directory: Path, step: int) -> None:
    """Until a training has logged it."""
    deadline = time.monotonic() + 120
    while not any(f'"step": {step},' in path.read_text() for path in (directory / "runs").glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.05)


def test_a_job_whose_time_is_up_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    arguments = [*overrides(tmp_path), "data.lanes=4", "train.micro_batch=2", "train.steps=20", "train.save_every=100"]
    first = job(tmp_path, *arguments)
    try:
        wait_for_step(tmp_path, 2)
        for task in (tmp_path / "tasks").read_text().split():  # Slurm signals whatever runs in a task
            subprocess.run(["pkill", "-USR1", "-P", task], check=True)
            os.kill(int(task), signal.SIGUSR1)
        assert first.wait(120) == 0, (tmp_path / "log").read_text()
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
    assert (tmp_path / "requeued").read_text().startswith("requeue ")
    assert job(tmp_path, *arguments).wait(180) == 0, (tmp_path / "log").read_text()
    assert [line["step"] for line in metrics(only_run(tmp_path))] == list(range(0, 21, 2))
    assert (tmp_path / "requeued").read_text().count("\n") == 1
    assert not list(tmp_path.glob(".stopped*"))
