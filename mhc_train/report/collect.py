"""Reads finished runs into arms: everything that a report shows comes from a run directory's own files."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mhc_train.config.compose import flatten
from mhc_train.errors import CheckpointError
from mhc_train.files import read_json_lines
from mhc_train.runs import Run, find_run

MOVED = ("stream_difference", "effective_streams", "stream_cosine")
"""Measurements that are of the streams after a sublayer, and were of those before it in lines without a version."""


@dataclass(frozen=True)
class RunRecord:
    """One finished run as its files tell it."""

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    measurements: list[dict[str, Any]]
    samples: list[dict[str, str]]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(tokens, value) of every logged step that has `key`."""
        return [(line["tokens"], line[key]) for line in self.metrics if line.get(key) is not None]

    def final(self, key: str) -> float | None:
        """The last logged value of `key`."""
        values = self.curve(key)
        return values[-1][1] if values else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged steps."""
        rates = [rate for _, rate in self.curve("tokens_per_second")]
        return statistics.median(rates) if rates else None


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    records: list[RunRecord] = field(default_factory=list)
    failed: list[RunRecord] = field(default_factory=list)
    """Runs that did not finish; no number of theirs is in a mean."""

    def mean(self, key: str) -> float | None:
        """Mean over seeds of the final value of `key`; null if a run lacks it."""
        values = [record.final(key) for record in self.records]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None


def read_run(path: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        CheckpointError: it is none, or its training did not finish.
    """
    run = find_run(path)
    status = run.status()
    if status.get("status") != "done":
        raise CheckpointError(
            f"{path}: the training is {status.get('status', 'not there')}, not done. "
            f"Finish it with `mhc-train fit --resume {path}`."
        )
    config = OmegaConf.to_container(OmegaConf.load(run.config))
    assert isinstance(config, dict)
    return RunRecord(
        path=path,
        config={str(key): value for key, value in config.items()},
        status=status,
        environment=run.environment(),
        metrics=read_json_lines(run.metrics),
        measurements=[_comparable(line) for line in read_json_lines(run.measurements)],
        samples=_samples(run),
    )


def _comparable(measurement: dict[str, Any]) -> dict[str, Any]:
    """A line of measurements without what the first version measured elsewhere: the streams before the write."""
    if "schema_version" in measurement:
        return measurement
    rows = [{key: row[key] for key in row if key not in MOVED} for row in measurement["sublayers"]]
    return measurement | {"sublayers": rows}


def group_arms(records: list[RunRecord]) -> list[Arm]:
    """Runs with equal configurations but for seed and name form an arm, in the order in which they were given."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps(_identity(record), sort_keys=True), []).append(record)
    members = list(groups.values())
    return [Arm(name, group) for name, group in zip(_names(members), members, strict=True)]


def _identity(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.config.items() if key not in ("seed", "name", "runs_dir", "tracker")}


def _names(groups: list[list[RunRecord]]) -> list[str]:
    """The connection's label, with whatever else differs between arms of the same label."""
    configs = [flatten(_identity(group[0])) for group in groups]
    names = []
    for config in configs:
        title = _title(config)
        alike = [other for other in configs if _title(other) == title]
        differing = [key for key in config if any(other.get(key) != config[key] for other in alike)]
        names.append(" ".join([title, *(f"{key.rpartition('.')[2]}={config[key]}" for key in differing)]))
    return names


def _title(config: dict[str, Any]) -> str:
    title: str = config.get("connection.label") or config["connection.kind"]
    return title


def _samples(run: Run) -> list[dict[str, str]]:
    return json.loads(run.samples.read_text()) if run.samples.exists() else []
