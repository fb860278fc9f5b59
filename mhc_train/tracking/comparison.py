"""A comparison at W&B: a run of its own beside its arms', in their group, with the report and a table of the arms."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mhc_train.console import say
from mhc_train.files import only_one
from mhc_train.runs import Run
from mhc_train.schema import TrackerConfig
from mhc_train.tracking.curves import measurement
from mhc_train.tracking.record import begin_session, end_session, load_record
from mhc_train.tracking.sender import process_deadline
from mhc_train.tracking.service import reason, start_wandb

Document = dict[str, Any]
NUMBERS = (
    "val_loss", "val_bpb", "train_loss", "val_loss_sd", "params", "flops_per_token", "tokens_per_second",
    "relative_step_time", "peak_memory", "seconds",
)  # fmt: skip
"""What the table says of every arm, besides its largest composite gains."""
GAINS = ("forward_gain", "backward_gain")
GRACE = 10.0
"""Seconds beyond its own deadline after which a sending process is ended from outside."""
KEPT = "report.json has everything"


def send_comparison(comparison: Run, document: Document, directory: Path) -> None:
    """Send a comparison to W&B, if that is the tracker of its arms. Never fails; takes `tracker.timeout` at most.

    Args:
        comparison: whose directory's name is the W&B run's, and the group of the arms.
        document: what `compare_runs` made.
        directory: the report's.
    """
    command = [sys.executable, "-m", "mhc_train.tracking", str(comparison.path), "--report", str(directory)]
    try:
        config = tracker_of(document)
        if config is None:
            return
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=config.timeout + GRACE,
            start_new_session=True,  # the terminal's Ctrl-C is for the comparison
        )
        for line in ended.stdout.splitlines():
            say(line)
        sent = ended.returncode == 0
    except Exception as error:  # whatever goes wrong here, the comparison is done
        say(f"The comparison cannot be sent to W&B ({reason(error)}); {KEPT}.")
        sent = False
    if not sent:
        say(f"W&B has not confirmed the comparison. `{' '.join(['python', *command[1:]])}` sends it.")


def tracker_of(document: Document) -> TrackerConfig | None:
    """The configuration of the first run that W&B tracks; None where none does."""
    for arm in document["arms"]:
        for run in arm["runs"]:
            config: Any = OmegaConf.to_container(OmegaConf.load(Run(Path(run)).config))
            if config["tracker"]["kind"] == "wandb":
                return TrackerConfig(**config["tracker"])
    return None


def send(comparison: Run, directory: Path, tell: Callable[[str], None]) -> None:
    """Send what a report directory has, in this process, which is ended if it takes too long."""
    document = json.loads((directory / "report.json").read_text())
    config = tracker_of(document)
    if config is None:
        tell("No run of this comparison is tracked by W&B (tracker=wandb): nothing is sent.")
        return
    facts = {key: document.get(key) for key in ("comparable", "reasons", "seeds", "varied", "reference")}
    name = comparison.path.name
    with process_deadline(config.timeout, tell, KEPT)("sending the comparison"), only_one(comparison.tracker):
        record = load_record(comparison)
        service = start_wandb(config, comparison.path, facts, record.id, tell, name, "comparison")
        begin_session(comparison, record, service.directory)
        service.report(f"report-{record.id}", rows(document), summary(document), directory)
        service.finish()
        end_session(comparison, record, record.step)


def rows(document: Document) -> list[dict[str, Any]]:
    """A row an arm: its name, its seeds and its numbers, null where it has none."""
    return [
        {"arm": arm["name"], "seeds": len(arm["seeds"])} | {key: arm.get(key) for key in NUMBERS} | _gains(arm)
        for arm in document["arms"]
    ]


def _gains(arm: Document) -> dict[str, float | None]:
    curves = measurement(arm["last"]) if arm.get("last") else {}
    return {gain: curves.get(f"composite/{gain}") for gain in GAINS}


def summary(document: Document) -> dict[str, Any]:
    """Every number of every arm as `ARM/NUMBER`, and every difference with its verdict as `B - A/...`."""
    found: dict[str, Any] = {"comparable": document["comparable"]}
    for row in rows(document):
        found |= {f"{row['arm']}/{key}": row[key] for key in (*NUMBERS, *GAINS) if row[key] is not None}
    for row in document["differences"]:
        pair = f"{row['b']} - {row['a']}"
        found[f"{pair}/verdict"] = row["verdict"]
        if row["mean"] is not None:
            found[f"{pair}/{row['metric']}"] = row["mean"]
    return found
