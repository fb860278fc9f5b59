"""The comparison itself, as one document: what `compare --json` prints and every page of the report is drawn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhc_train.config.compose import flatten
from mhc_train.data.embedded import ATTRIBUTIONS
from mhc_train.report import comparability
from mhc_train.report.arms import describe
from mhc_train.report.collect import Arm, RunRecord, group_arms, read_run
from mhc_train.report.statistics import differences

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Setting:
    """How the runs came to be compared: what their own files do not say."""

    against: str | None = None
    varied: tuple[str, ...] = ()
    lost: tuple[dict[str, Any], ...] = ()
    concurrent: int = 1
    tuning: tuple[dict[str, Any], ...] = ()
    detect: float = 0.005


def compare_runs(paths: list[Path], setting: Setting = Setting()) -> dict[str, Any]:
    """Read finished runs and put them side by side.

    Raises:
        CheckpointError: a path is no finished run.
    """
    records = [read_run(path) for path in paths]
    arms = group_arms([record for record in records if record.status["status"] == "done"])
    rows = comparability.check(arms)
    reasons = comparability.reasons(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "comparable": not reasons,
        "reasons": reasons,
        "requirements": rows,
        "seeds": sorted({record.status.get("seed") for arm in arms for record in arm.records}),
        "data": _data(arms[0].records[0]),
        "environment": arms[0].records[0].environment,
        "configuration": _configuration(arms),
        "arms": [describe(arm, arms[0]) for arm in arms],
        "differences": differences(arms),
        "varied": list(setting.varied),
        "lost": list(setting.lost),
        "concurrent": setting.concurrent,
        "tuning": list(setting.tuning),
        "reference": setting.against or arms[0].name,
    }


def _data(record: RunRecord) -> dict[str, Any]:
    data = record.config["data"]
    keys = ("source", "path", "mixture", "name", "revision", "split", "seq_len", "vocab_size", "tokenizer_sha256")
    return flatten({key: data.get(key) for key in keys}) | {
        "attribution": _attribution(data),
        "validation_tokens": record.status.get("validation_tokens"),
        "validation_sha256": record.status.get("validation_sha256"),
        "bytes_per_token": record.status.get("bytes_per_token"),
    }


def _attribution(data: dict[str, Any]) -> str | None:
    """Where the embedded text that was read comes from."""
    sources = [data, *(data.get("mixture") or {}).values()]
    known = [ATTRIBUTIONS.get(own["path"]) for own in sources if own["source"] == "embedded"]
    return " ".join(filter(None, known)) or None


def _configuration(arms: list[Arm]) -> dict[str, Any]:
    """Dotted keys: what all arms share, and what differs, by arm."""
    flat = {arm.name: flatten(arm.records[0].config) for arm in arms}
    keys = list(
        dict.fromkeys(key for config in flat.values() for key in config if key not in ("name", "seed", "runs_dir"))
    )
    shared = {key for key in keys if len({repr(config.get(key)) for config in flat.values()}) == 1}
    anyone = next(iter(flat.values()))
    return {
        "shared": {key: anyone.get(key) for key in keys if key in shared},
        "different": {
            key: {name: config.get(key) for name, config in flat.items()} for key in keys if key not in shared
        },
    }
