"""Reads runs that have ended into arms: everything that a report shows comes from a run directory's own files."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mhc_train.config.compose import flatten
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.files import read_json_lines
from mhc_train.runs import Run, find_run

MOVED = ("stream_difference", "effective_streams", "stream_cosine")
"""Measurements that are of the streams after a sublayer, and were of those before it in lines without a version."""
DETECT = 0.005
"""The relative difference of loss that power is stated for, unless another is asked for."""
SEEDS = ("seed", "data.seed")
"""Configuration keys in which the replicates of one arm may differ."""
NO_PART = ("name", "runs_dir")
"""Configuration keys without a bearing on a training; the tracker's are others."""


@dataclass(frozen=True)
class RunRecord:
    """One run that has ended, as its files tell it."""

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    measurements: list[dict[str, Any]]
    samples: list[dict[str, str]]
    overrides: list[str] = field(default_factory=list)
    """What was typed."""

    @property
    def seed(self) -> int:
        """Of the weights; runs of two arms are paired by it."""
        return int(self.status["seed"])

    @property
    def failed(self) -> bool:
        """Whether the training broke off."""
        return self.status.get("status") == "failed"

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(tokens, value) of every logged step that has `key`."""
        return [(line["tokens"], line[key]) for line in self.metrics if line.get(key) is not None]

    def final(self, key: str) -> float | None:
        """The last logged value of `key`; null if that is not finite, or the training failed."""
        values = [line[key] for line in self.metrics if key in line]
        return values[-1] if values and not self.failed else None

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the logged steps."""
        rates = [rate for _, rate in self.curve("tokens_per_second")]
        return statistics.median(rates) if rates else None


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone; at least one, finished or failed."""

    name: str
    records: list[RunRecord] = field(default_factory=list)
    """Those that finished, by seed: every mean is over them."""
    failed: list[RunRecord] = field(default_factory=list)
    """Those that did not, by seed; no number of theirs is in a mean."""

    @property
    def runs(self) -> list[RunRecord]:
        """All of them, the finished ones first."""
        return [*self.records, *self.failed]

    def mean(self, key: str) -> float | None:
        """Mean over seeds of the final value of `key`; null if a finished run lacks it, or none finished."""
        known = self.by_seed(key)
        return statistics.fmean(known.values()) if known and len(known) == len(self.records) else None

    def by_seed(self, key: str) -> dict[int, float]:
        """The final value of `key` by seed, where there is one."""
        values = {record.seed: record.final(key) for record in self.records}
        return {seed: value for seed, value in values.items() if value is not None}


def read_run(path: Path) -> RunRecord:
    """Read the directory of a run that is done or failed.

    Raises:
        CheckpointError: it is none, its training has not ended, or its files are damaged.
    """
    run = find_run(path)
    try:
        record = _record(run)
        _check_ended(record)
        _check_whole(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise CheckpointError(
            f"{path}: its files are damaged ({error!r}). Put them back from a copy, or leave this run out."
        ) from error
    return record


def _record(run: Run) -> RunRecord:
    config = OmegaConf.to_container(OmegaConf.load(run.config))
    if not isinstance(config, dict):
        raise ValueError("config.yaml has no keys")
    typed = run.path / "overrides.txt"
    return RunRecord(
        path=run.path,
        config={str(key): value for key, value in config.items()},
        status={"seed": config["seed"]} | run.status(),
        environment=run.environment(),
        metrics=read_json_lines(run.metrics),
        measurements=[_comparable(line) for line in read_json_lines(run.measurements)],
        samples=_samples(run),
        overrides=typed.read_text().split("\n")[:-1] if typed.exists() else [],
    )


def _check_ended(record: RunRecord) -> None:
    state = record.status.get("status", "not there")
    if state not in ("done", "failed"):
        raise CheckpointError(
            f"{record.path}: the training is {state}, neither done nor failed. "
            f"Finish it with `mhc-train fit --resume {record.path}`."
        )


def _check_whole(record: RunRecord) -> None:
    """Refuse a run without the facts that a comparison cannot do without, or without its end.

    Raises:
        CheckpointError: as said.
    """
    needed = ("parameters", "flops_per_token", *(() if record.failed else ("steps", "peak_memory")))
    lacking = [key for key in needed if key not in record.status]
    if lacking:
        raise CheckpointError(
            f"{record.path}: status.json lacks {', '.join(lacking)}. Put it back from a copy, or leave this run out."
        )
    last = max((line.get("step", 0) for line in record.metrics), default=None)
    if not record.failed and last != record.status["steps"]:
        raise CheckpointError(
            f"{record.path}: metrics.jsonl ends at step {last} of {record.status['steps']}. Put it back from a copy, "
            "or leave this run out."
        )


def _comparable(measurement: dict[str, Any]) -> dict[str, Any]:
    """A line of measurements without what the first version measured elsewhere: the streams before the write."""
    if "schema_version" in measurement:
        return measurement
    rows = [{key: row[key] for key in row if key not in MOVED} for row in measurement["sublayers"]]
    return measurement | {"sublayers": rows}


def group_arms(records: Sequence[RunRecord]) -> list[Arm]:
    """Runs with equal configurations but for seeds and name form an arm, in the order in which they were given.

    Of a failed and a finished run with the same seed, the finished one counts.

    Raises:
        ConfigError: two finished runs of an arm have the same seed.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps(_identity(record), sort_keys=True), []).append(record)
    members = list(groups.values())
    return [_arm(name, group) for name, group in zip(_names(members), members, strict=True)]


def _arm(name: str, group: list[RunRecord]) -> Arm:
    finished: dict[int, RunRecord] = {}
    for record in group:
        if not record.failed and finished.setdefault(record.seed, record) is not record:
            raise ConfigError(
                f"{finished[record.seed].path} and {record.path} are both {name} with seed {record.seed}: one "
                "replicate would count twice. Leave one out; replicates differ in seed, and may in data.seed besides."
            )
    failed = {record.seed: record for record in group if record.seed not in finished}
    return Arm(name, *([runs[seed] for seed in sorted(runs)] for runs in (finished, failed)))


def _identity(record: RunRecord) -> dict[str, Any]:
    """What makes an arm; a key that is null is one that an older version did not have."""
    return {
        key: value
        for key, value in flatten(record.config).items()
        if value is not None and key not in SEEDS + NO_PART and not key.startswith("tracker.")
    }


def _names(groups: list[list[RunRecord]]) -> list[str]:
    """The connection's label, with whatever else differs between arms of the same label; no two are the same."""
    configs = [_identity(group[0]) for group in groups]
    names: list[str] = []
    for config in configs:
        alike = [other for other in configs if _title(other) == _title(config)]
        name = " ".join([_title(config), *_differing(config, alike)])
        # A label may read like a name that was made from keys.
        candidates = chain([name], (f"{name} ({number})" for number in count(2)))
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names


def _differing(config: dict[str, Any], alike: list[dict[str, Any]]) -> list[str]:
    """What a configuration has that others lack, or have otherwise; keys are in short where that is clear."""
    every = dict.fromkeys(key for other in alike for key in other)
    keys = [key for key in every if any(other.get(key) != config.get(key) for other in alike)]
    short = {key: key.rpartition(".")[2] for key in keys}
    uses = Counter(short.values())
    return [f"{short[key] if uses[short[key]] == 1 else key}={config[key]}" for key in keys if key in config]


def _title(config: dict[str, Any]) -> str:
    title: str = config.get("connection.label") or config["connection.kind"]
    return title


def _samples(run: Run) -> list[dict[str, str]]:
    return json.loads(run.samples.read_text()) if run.samples.exists() else []
