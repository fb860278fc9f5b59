"""Run directories: made once and exclusively, self-describing, and found again by path."""

import datetime
import json
import platform
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mhc_train
from mhc_train.errors import CheckpointError
from mhc_train.files import read_json_lines, storage_errors, write_json, write_text

GO_ON = {"sweep": "mhc-train fit -m --resume", "comparison": "mhc-train compare --resume"}
"""What goes on with each kind of directory that holds a ledger of runs."""
STAMP = "%Y%m%d-%H%M%S"
"""How a run directory's name begins."""


@dataclass(frozen=True)
class Run:
    """One directory of `runs/` and the names of what lies in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step: the truth about the run."""
        return self.path / "metrics.jsonl"

    @property
    def measurements(self) -> Path:
        """One JSON line a measurement of the residual path."""
        return self.path / "diagnostics" / "measurements.jsonl"

    @property
    def watch(self) -> Path:
        """One JSON line a training step that was looked through."""
        return self.path / "diagnostics" / "watch.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json that the run's tokens were made with."""
        return self.path / "tokenizer.json"

    @property
    def samples(self) -> Path:
        """Continuations sampled after training."""
        return self.path / "samples.json"

    @property
    def tracker(self) -> Path:
        """What is known of it at its tracking service."""
        return self.path / "tracker.json"

    @property
    def report(self) -> Path:
        """Where a comparison's report is written."""
        return self.path / "report"

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty if there is none yet."""
        path = self.path / "status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def ledger(self) -> dict[str, Any]:
        """The jobs of a comparison or sweep; empty for a run."""
        path = self.path / "ledger.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def set_status(self, status: str, **facts: Any) -> None:
        """Record where the run stands: running, done, failed or stopped, with what is known of it."""
        of_an_end = ("error", "exit_code")  # which is past
        known = {key: value for key, value in self.status().items() if key not in of_an_end}
        write_json(self.path / "status.json", known | {"status": status} | facts)

    def environment(self) -> dict[str, Any]:
        """Versions, hardware and git state of the process that made the run."""
        path = self.path / "environment.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def amend(self, config_yaml: str, overrides: Sequence[str]) -> None:
        """Record what a continuation changed: the whole configuration, and what was typed after what was."""
        typed = (self.path / "overrides.txt").read_text()
        write_text(self.config, config_yaml)
        write_text(self.path / "overrides.txt", typed + "".join(f"{override}\n" for override in overrides))

    def truncate(self, step: int, taken: int | None = None) -> None:
        """Drop the lines that a resumed run will write anew.

        Args:
            step: the last one whose metrics and measurements stay.
            taken: the last one that was taken, whose own line of a look stays; `step` if it is not another.
        """
        last = {self.metrics: step, self.measurements: step, self.watch: step if taken is None else taken}
        for path, step in last.items():
            if path.exists():
                kept = [json.dumps(line) + "\n" for line in read_json_lines(path) if line["step"] <= step]
                write_text(path, "".join(kept))


def new_run_path(runs_dir: Path, name: str) -> Path:
    """A directory's name that nobody else has: `<date>-<time>-<name>-<6 hex>`."""
    stamp = datetime.datetime.now().strftime(STAMP)
    return runs_dir / f"{stamp}-{name}-{secrets.token_hex(3)}"


def age(path: Path) -> tuple[datetime.datetime, int]:
    """When a directory was made, by its name or by a file that is written once; the file orders those of a second."""
    once = path / "environment.json"
    written = (once if once.exists() else path).stat().st_mtime_ns
    try:
        return datetime.datetime.strptime(path.name[: len("20260101-120000")], STAMP), written
    except ValueError:
        return datetime.datetime.fromtimestamp(written // 10**9), written


def make_exclusively(path: Path) -> None:
    """Make a directory that is not there yet.

    Raises:
        StorageError: it is there, or cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()


def create_run(path: Path, config_yaml: str, overrides: Sequence[str]) -> Run:
    """Make a run directory and record what was typed and where it runs.

    Raises:
        StorageError: the directory cannot be made.
    """
    make_exclusively(path)
    run = Run(path)
    write_text(run.config, config_yaml)
    write_text(path / "overrides.txt", "".join(f"{override}\n" for override in overrides))
    write_json(path / "environment.json", environment())
    return run


def find_run(path: Path) -> Run:
    """The run in a directory.

    Raises:
        CheckpointError: it is not a run directory.
    """
    if not (path / "config.yaml").is_file():
        raise CheckpointError(
            f"{path} is not a run directory: it has no config.yaml. Runs are listed by `mhc-train runs`."
        )
    return Run(path)


def environment() -> dict[str, Any]:
    """Versions, hardware and git state of this process."""
    import torch

    return {
        "mhc_train": mhc_train.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": " ".join(["mhc-train", *sys.argv[1:]]),
        "git": git_state(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that the package runs from; None outside one."""
    root = Path(mhc_train.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return {"commit": commit, "clean": _git(root, "status", "--porcelain") == ""} if commit else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
