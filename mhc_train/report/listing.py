"""What runs have come to, read from the ends of their files: quick, however many there are and however long."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from mhc_train.errors import CheckpointError
from mhc_train.files import is_locked, json_lines_from_end
from mhc_train.report.readings import largest
from mhc_train.runs import GO_ON, Run, age

STATES = ("running", "done", "failed", "stopped", "dead", "starting", "broken")
"""What a status says, but: dead, where it says running and no process is; starting, before there is one; broken, where
a file cannot be read."""


@dataclass(frozen=True)
class Entry:
    """One run, comparison or sweep."""

    name: str
    path: str
    kind: str
    """run | comparison | sweep."""
    state: str
    """One of `STATES`."""
    begun: str
    """Local time, ISO 8601."""
    arm: str | None = None
    """The connection's label, or its kind."""
    streams: int | None = None
    seed: int | None = None
    step: int | None = None
    """The last that was logged."""
    steps: int | None = None
    tokens: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    """The last of the run."""
    measured: int | None = None
    """The step of the last measurement; its gains are null where they are not finite."""
    forward_gain: float | None = None
    backward_gain: float | None = None
    jobs: dict[str, int] | None = None
    """Of a comparison or sweep: how many runs are in each state."""
    go_on: str | None = None
    """What goes on with a comparison or sweep."""
    problem: str | None = None
    """Which file cannot be read, and why."""


def listed(paths: list[Path]) -> list[Entry]:
    """The entries of directories, newest first; of a run itself; and of a comparison or sweep with its runs.

    Raises:
        CheckpointError: a path is no directory.
    """
    found = dict.fromkeys(path for given in paths for path in _below(given))
    return [_look(path) for path in sorted(found, key=age, reverse=True)]


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no directory. Run directories are made in runs_dir, which is runs/ of the working directory if "
            "nothing else was typed: go there, or name another place."
        )
    if not _is_entry(path):
        return [below for below in path.iterdir() if below.is_dir() and _is_entry(below)]
    return [path, *_members(path)]


def _is_entry(path: Path) -> bool:
    with contextlib.suppress(PermissionError):  # somebody else's, and closed
        return any((path / name).is_file() for name in ("config.yaml", "ledger.json", "status.json"))
    return False


def _members(path: Path) -> list[Path]:
    """The runs of a comparison or sweep that are still there."""
    try:
        jobs = Run(path).ledger().get("jobs", [])
        names = [job["run"] for job in jobs if job["run"]] or Run(path).status().get("runs", [])
    except Exception:  # its own entry says what is wrong with it
        return []
    return [Path(name) for name in names if _is_entry(Path(name))]


def _look(path: Path) -> Entry:
    """A directory's entry; whatever is wrong with its files, it is one, so that the others are listed."""
    entry = Entry(path.name, str(path), "run", "broken", age(path)[0].isoformat())
    try:
        return _group(entry, Run(path)) if (path / "ledger.json").exists() else _single(entry, Run(path))
    except CheckpointError as error:
        return replace(entry, problem=str(error))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file that cannot be read, or does not hold what it should.

    Raises:
        CheckpointError: it is so.
    """
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{path.name} cannot be read ({type(error).__name__}: {error})") from error


def _single(entry: Entry, run: Run) -> Entry:
    with _reading(run.path / "status.json"):
        status = run.status()
        said, seed, steps = status.get("status"), status.get("seed"), status.get("steps")
        if status.get("kind") == "comparison":
            jobs = {"done": len(status["runs"])} if "runs" in status else None
            return replace(entry, kind="comparison", state=said or "starting", jobs=jobs)
    with _reading(run.path / ".lock"):
        state = "dead" if said == "running" and not is_locked(run.path / ".lock") else said or "starting"
    arm, streams = _connection(run, status)
    with _reading(run.path / "status.json"):
        counts = _numbers({"streams": streams, "seed": seed, "steps": steps})
    return replace(entry, state=state, arm=arm, **counts, **_logged(run), **_measured(run))


def _connection(run: Run, status: dict[str, Any]) -> tuple[str, int]:
    if "connection" in status:
        return status["connection"], status["streams"]
    from omegaconf import OmegaConf  # takes longer than all else: for runs that have just begun

    with _reading(run.config):
        connection: Any = OmegaConf.select(OmegaConf.load(run.config), "connection")
        return connection.get("label") or connection["kind"], connection["streams"]


def _logged(run: Run) -> dict[str, Any]:
    with _reading(run.metrics):
        lines = json_lines_from_end(run.metrics)
        last = next(lines, {})
        validated = next((line for line in chain([last], lines) if "val_loss" in line), {})
        return _numbers(
            {key: last.get(key) for key in ("step", "tokens", "train_loss")} | {"val_loss": validated.get("val_loss")}
        )


def _measured(run: Run) -> dict[str, Any]:
    with _reading(run.measurements):
        last = next(json_lines_from_end(run.measurements), None)
        if last is None:
            return {}
        gains = {f"{way}_gain": largest(last["composite"][way], f"{way}_gain") for way in ("forward", "backward")}
        return _numbers({"measured": last["step"], **gains})


def _numbers(facts: dict[str, Any]) -> dict[str, Any]:
    """The same, if all are numbers or null."""
    for key, value in facts.items():
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}, no number")
    return facts


def _group(entry: Entry, run: Run) -> Entry:
    with _reading(run.path / "ledger.json"):
        ledger = run.ledger()
        jobs, kind = Counter(job["state"] for job in ledger["jobs"]), ledger.get("kind", "sweep")
        compared = [number for arm in ledger.get("arms", []) for number in arm["jobs"]]  # and not those that tuned
        counted = Counter(job["state"] for job in ledger["jobs"] if not compared or job["number"] in compared)
        command = f"{GO_ON[kind]} {run.path}"
    with _reading(run.path / "status.json"):
        state = _group_state(run.status().get("status"), jobs, is_locked(run.path / "lock"))
    go_on = {"failed": f"{command} --retry-failed", "stopped": command, "dead": command}.get(state)
    return replace(entry, kind=kind, state=state, jobs=dict(counted), go_on=go_on)


def _group_state(status: str | None, jobs: Counter[str], locked: bool) -> str:
    """Where a comparison or sweep stands; a sweep has no status but its jobs'."""
    if locked:
        return "running"
    if status == "running" or jobs["running"]:
        return "dead"
    if jobs["stopped"] or jobs["waiting"]:
        return "stopped"
    return status or ("failed" if jobs["failed"] else "done")
