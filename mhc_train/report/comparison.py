"""The comparison itself, as one document: what `compare --json` prints and every page of the report is drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhc_train.config.compose import flatten
from mhc_train.data.embedded import ATTRIBUTIONS
from mhc_train.errors import ConfigError
from mhc_train.report import comparability
from mhc_train.report.arms import describe
from mhc_train.report.budgets import budgets
from mhc_train.report.collect import DETECT, NO_PART, SEEDS, Arm, RunRecord, group_arms, read_run
from mhc_train.report.crossings import crossings
from mhc_train.report.statistics import METRIC, differences, failures, noise

SCHEMA_VERSION = 2
NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Setting:
    """How the runs came to be compared: what their own files do not say."""

    against: str | None = None
    """Name of the reference arm; None: the first."""
    varied: tuple[str, ...] = ()
    """Configuration keys in which the arms differ on purpose: what was swept or tuned."""
    lost: tuple[dict[str, Any], ...] = ()
    """Planned runs that left no run directory: `overrides` and `error` of each."""
    concurrent: int = 1
    """Runs that shared the machine at once; of several, speeds are no measurements."""
    tuning: tuple[dict[str, Any], ...] = ()
    """What was tried for each arm, and what was chosen."""
    detect: float = DETECT
    """Difference of loss, relative to the reference's, that power is stated for."""


def compare_runs(paths: Sequence[Path], setting: Setting | None = None) -> dict[str, Any]:
    """Read runs that have ended and put them side by side; one that is given twice counts once.

    Raises:
        CheckpointError: a path is no run that is done or failed, or its files are damaged.
        ConfigError: there is no such reference, or two runs are the same replicate.
    """
    setting = setting or Setting()
    once: dict[Path, Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    arms = group_arms([read_run(path) for path in once.values()])
    reference = _reference(arms, setting.against)
    rows = comparability.check(arms, setting.varied)
    reasons = comparability.reasons(rows)
    runs = [record for arm in arms for record in arm.runs]
    return {
        "schema_version": SCHEMA_VERSION,
        "comparable": not reasons,
        "reasons": reasons,
        "requirements": rows,
        "varied": list(setting.varied),
        "lost": list(setting.lost),
        "concurrent": setting.concurrent,
        "tuning": list(setting.tuning),
        "seeds": sorted({record.seed for record in runs}),
        "data": _data(runs[0]),
        "environment": runs[0].environment,
        "configuration": _configuration(arms),
        "reference": reference.name,
        "arms": [describe(arm, reference) for arm in arms],
        **_judged(arms, reference.name, rows, setting),
    }


def _reference(arms: list[Arm], against: str | None) -> Arm:
    named = {arm.name: arm for arm in arms}
    if against is not None and against not in named:
        raise ConfigError(f"against {against}: there is no such arm. The arms are {', '.join(named)}.")
    return arms[0] if against is None else named[against]


def _judged(arms: list[Arm], reference: str, rows: list[dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """What may be said of the losses."""
    losses = {arm.name: arm.by_seed(METRIC) for arm in arms}
    failed = failures(arms, setting.lost)
    at_end = differences(losses, reference, lambda winner, _: failed.get(winner), setting.detect)
    at_budgets = budgets(arms, reference, failed, _why_not_timed(rows, setting), setting.detect)
    apart = [row for row in rows if comparability.forbids(row)]
    # At one amount of text, it matters no more that some read on.
    if any(map(comparability.forbids_at_equal_tokens, apart)):
        at_budgets = [row | {"differences": _withheld(row["differences"])} for row in at_budgets]
    why = "; ".join(f"{row['name']} {row['state']}" for row in apart)
    return {
        "noise": noise(losses, reference),
        "differences": _withheld(at_end) if apart else at_end,
        "budgets": at_budgets,
        "crossings": crossings(arms, reference, failed, f"{NOT_COMPARABLE}: {why}" if why else None),
    }


def _withheld(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences between runs that are of different experiments: numbers without a verdict."""
    return [row | {"verdict": NOT_COMPARABLE} for row in rows]


def _why_not_timed(rows: list[dict[str, Any]], setting: Setting) -> str | None:
    """Why speeds are no measurements; None if they are."""
    if setting.concurrent > 1:
        return f"{setting.concurrent} runs shared the machine"
    state = next(row["state"] for row in rows if row["name"] == "hardware")
    return None if state == "same" else f"the hardware or its settings are {state}"


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
    flat = {arm.name: flatten(arm.runs[0].config) for arm in arms}
    keys = list(dict.fromkeys(key for config in flat.values() for key in config if key not in SEEDS + NO_PART))
    shared = {key for key in keys if len({repr(config.get(key)) for config in flat.values()}) == 1}
    anyone = next(iter(flat.values()))
    return {
        "shared": {key: anyone.get(key) for key in keys if key in shared},
        "different": {
            key: {name: config.get(key) for name, config in flat.items()} for key in keys if key not in shared
        },
    }
