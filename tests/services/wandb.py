"""Stands for W&B in sending processes: a server in a directory, and failures by a script.

Each line of `script` names a call (init, log, finish) and what it does the next time: refuse or hang; `always` in
front keeps the line. What is logged arrives one call later, as with a service that uploads in the background.
"""

import atexit
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOME = Path(os.environ["FAKE_WANDB"])
FOR_EVER = 3600.0
Settings = SimpleNamespace


def meet(call: str) -> None:
    script = HOME / "script"
    lines = script.read_text().splitlines() if script.exists() else []
    with (HOME / "calls").open("a") as stream:
        stream.write(f"{call}\n")
    if not lines or call not in lines[0].split():
        return
    if "always" not in lines[0].split():
        script.write_text("\n".join(lines[1:]))
    if "hang" in lines[0].split():
        time.sleep(FOR_EVER)
    raise ConnectionError(f"{call} refused")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Image:
    """What would be uploaded: kept in the directory by its hash."""

    def __init__(self, picture: Any) -> None:
        meet("image")
        content = repr(picture.size).encode() + picture.tobytes()
        self.line = {"image": hashlib.sha256(content).hexdigest(), "size": picture.size}


class Table:
    """What would be shown: its rows."""

    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.rows = [dict(zip(columns, row, strict=True)) for row in data]


class Artifact:
    """Files that would be uploaded, by name."""

    def __init__(self, name: str, type: str) -> None:
        self.line: dict[str, Any] = {"name": name, "type": type}

    def add_dir(self, directory: str, **others: Any) -> None:
        self.line["files"] = sorted(path.name for path in Path(directory).iterdir())


class Run:
    def __init__(self, mode: str, identity: str, directory: Path) -> None:
        sessions = len(list((directory / "wandb").glob("*"))) if mode == "offline" else 0
        local = directory / "wandb" / f"offline-run-{sessions}-{os.getpid()}"
        self.dir = str(local / "files")
        self.file = local / "run.wandb" if mode == "offline" else HOME / f"{identity}.jsonl"
        if mode == "offline":
            Path(self.dir).mkdir(parents=True)
        self.offline = mode == "offline"
        self.starting_step = max((line["step"] for line in lines(self.file)), default=-1) + 1
        self.underway: list[dict[str, Any]] = []
        self.reported: dict[str, Any] = {}
        self.identity: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        meet("log")
        if step is None:  # a table
            self.reported |= {name: table.rows for name, table in values.items()}
            return
        if self.underway and self.underway[-1]["step"] == step:  # what belongs to one step comes together
            self.underway[-1] |= {name: image.line for name, image in values.items()}
            return
        if not self.offline:
            self.arrive()
        self.underway.append({"step": step} | values)

    def arrive(self) -> None:
        with self.file.open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in self.underway)
        self.underway.clear()

    def log_artifact(self, artifact: Artifact) -> None:
        self.reported["artifact"] = artifact.line

    def finish(self) -> None:
        meet("finish")
        self.arrive()
        if self.reported:
            with (HOME / "reports").open("a") as stream:
                stream.write(json.dumps(self.reported | {"summary": self.summary} | self.identity) + "\n")


def init(*, id: str, dir: Path, mode: str, **others: Any) -> Run:
    print("What a service prints is nobody's business")
    if mode == "online":
        meet("init")
    (HOME / "configuration.json").write_text(json.dumps(others["config"]))
    # At the exit, this hangs in two ways.
    atexit.register(time.sleep, FOR_EVER)
    threading.Thread(target=time.sleep, args=(FOR_EVER,)).start()
    run = Run(mode, id, dir)
    run.identity = {"id": id, "name": others["name"], "group": others["group"], "job_type": others["job_type"]}
    return run


def teardown() -> None:
    pass
