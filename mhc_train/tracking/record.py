"""tracker.json: what a run knows of itself at its service."""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mhc_train.files import write_json
from mhc_train.runs import Run


@dataclass(frozen=True)
class Record:
    """Kept from one sending process to the next, and over resumes."""

    id: str
    """The run at the service: its directory's name, without what ids cannot have."""
    step: int = -1
    """The last step that the service confirmed by ending well; -1 for none."""
    unfinished: str | None = None
    """The name of the offline directory, in `wandb/`, of a session that has begun and not ended."""


def load_record(run: Run) -> Record:
    """The record of a run; that of a new one if there is none."""
    path = run.tracker
    return Record(**json.loads(path.read_text())) if path.exists() else Record(re.sub(r"[^\w.-]", "-", run.path.name))


def begin_session(run: Run, record: Record, directory: Path | None) -> None:
    """Note that a session has begun, in a local `directory` if it is offline.

    The file that an earlier one did not end goes: it may lack any of its steps, and this session has them all.
    """
    if record.unfinished is not None:
        shutil.rmtree(run.path / "wandb" / record.unfinished, ignore_errors=True)
    write_json(run.tracker, asdict(replace(record, unfinished=directory.name if directory else None)))


def end_session(run: Run, record: Record, step: int) -> None:
    """Note that the service has everything up to `step`."""
    write_json(run.tracker, asdict(replace(record, step=step, unfinished=None)))
