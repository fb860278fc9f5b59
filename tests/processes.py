"""Forks processes that train together, as a launcher would start them, but without importing torch anew in each."""

import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 120
"""After which a group that has not ended counts as hanging."""


class Ended(NamedTuple):
    """What became of one process."""

    code: int
    """Its exit code; minus the signal's number if one killed it."""
    result: Any
    """What its function returned."""
    err: str
    """Its standard error."""


def fork(directory: Path, name: str, run: Callable[[], Any], environment: dict[str, str] | None = None) -> int:
    """Run a function in a forked process; `ended` waits for it. Returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment or {})
        for stream, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(directory / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        (directory / f"{name}.result").write_bytes(pickle.dumps(run()))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(directory: Path, name: str, pid: int, deadline: float) -> Ended:
    """Wait for a forked process; one that is not over by the deadline is killed, and its code is -9."""
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    file = directory / f"{name}.result"
    result = pickle.loads(file.read_bytes()) if file.exists() else None
    return Ended(os.waitstatus_to_exitcode(found[1]), result, (directory / f"{name}.err").read_text())


def together(directory: Path, world: int, run: Callable[[int], Any], local: int | None = None) -> list[Ended]:
    """Run a function of its rank in each of `world` processes, with the environment that torchrun sets.

    Args:
        local: processes a machine; without it, one machine has them all.
    """
    local = local or world
    place = directory / f"group-{time.monotonic_ns()}"
    place.mkdir()
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    pids = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % local)}
        pids.append(fork(place, str(rank), lambda rank=rank: run(rank), shared | own))  # type: ignore[misc]
    deadline = time.monotonic() + SECONDS
    return [ended(place, str(rank), pid, deadline) for rank, pid in enumerate(pids)]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(*arguments: str) -> Callable[[int], Any]:
    """The command line, for `together` and `fork`; its exit code becomes the process'."""

    def run(rank: int = 0) -> None:
        from mhc_train.cli.app import main

        sys.argv = ["mhc-train", *arguments]
        main()

    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def only_run(directory: Path) -> Path:
    """The one run directory of `directory/runs`."""
    (run,) = [path for path in (directory / "runs").iterdir() if (path / "config.yaml").exists()]
    return run
