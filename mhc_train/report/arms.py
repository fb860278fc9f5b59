"""What an arm was, cost and became: its part of the comparison's document."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from mhc_train.report.budgets import seconds
from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.readings import VERDICTS, largest
from mhc_train.report.words import Number

CURVES = ("train_loss", "val_loss", "val_bpb", "grad_norm", "learning_rate", "tokens_per_second", "data_wait")
SPIKE = 7.0
"""Standard deviations above the losses before from which on a loss is counted as a spike, as OLMo 2 counts them
(arXiv 2501.00656)."""
SUBLAYER = (
    "forward_gain",
    "backward_gain",
    "row_error",
    "column_error",
    "spectral_norm",
    "energy_gain",
    "gradient_energy_gain",
    "energy_residual",
    "energy_injected",
    "energy_cross",
    "energy_out",
    "gradient_mixer",
    "gradient_branch",
    "gradient_out",
    "stream_difference",
    "effective_streams",
    "stream_cosine",
)
COMPOSITE = ("forward_gain", "backward_gain", "log_mass", "difference_gain", "effective_rank")
"""Of everything that was measured, what the report shows; the rest stays in the run's own file."""

WAYS = ("forward", "backward")

Values = list[float]


def describe(arm: Arm, first: Arm) -> dict[str, Any]:
    """An arm's part of the comparison's document; the time of a training step is relative to that of `first`.

    Means, medians and curves are of the runs that finished; an arm of which none did has nulls in their place.
    """
    status = arm.runs[0].status
    parameters = status.get("parameters") or {}
    finished = arm.records[0] if arm.records else None
    step_time, base_time = _step_time(arm), _step_time(first)
    return {
        "name": arm.name,
        "runs": [str(record.path) for record in arm.records],
        "overrides": [record.overrides for record in arm.records],
        "seeds": [record.status.get("seed") for record in arm.records],
        "failed": [_failure(record) for record in arm.failed],
        "steps": finished and finished.status.get("steps"),
        "tokens": finished and finished.status.get("tokens"),
        "params": sum(parameters.values()) if parameters else None,
        "parameters": parameters,
        "flops_per_token": status.get("flops_per_token"),
        "tokens_per_second": _speed(arm),
        "relative_step_time": step_time / base_time if step_time and base_time else None,
        "seconds": _reduced(statistics.median, map(_trained, arm.records)),
        "peak_memory": _reduced(max, (record.status.get("peak_memory") for record in arm.records)),
        "peak_memory_counted": status.get("peak_memory_counted"),
        "train_loss": arm.mean("train_loss"),
        "val_loss": arm.mean("val_loss"),
        "val_loss_sd": _deviation([record.final("val_loss") for record in arm.records]),
        "val_bpb": arm.mean("val_bpb"),
        "val_loss_by_seed": {str(record.status.get("seed")): record.final("val_loss") for record in arm.records},
        "spikes": _spikes(_logged(arm, "loss_spike")),
        "grad_norm": _extent(_logged(arm, "grad_norm")),
        "skipped": sum(int(record.final("skipped_steps") or 0) for record in arm.records),
        "curves": [
            {"seed": record.status.get("seed")} | {key: record.curve(key) for key in CURVES} for record in arm.records
        ],
        "last": _shown(finished.measurements[-1]) if finished and finished.measurements else None,
        "courses": [
            {"seed": record.status.get("seed"), "points": list(map(_course_point, record.measurements))}
            for record in arm.records
        ],
        "laws": _laws(arm.records),
        "samples": finished.samples if finished else [],
    }


def _trained(record: RunRecord) -> float | None:
    """How long a run trained, in seconds."""
    spent = seconds(record)
    return None if spent is None else float(spent[1][-1])


def _failure(record: RunRecord) -> dict[str, Any]:
    status = record.status
    step = max((line["step"] for line in record.metrics), default=status.get("step"))
    return {"seed": status.get("seed"), "run": str(record.path), "step": step, "error": status.get("error")}


def _reduced(reduce: Callable[[Values], float], values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return reduce(known) if known else None


def _deviation(values: list[float | None]) -> float | None:
    """Standard deviation over seeds; null of fewer than two, and where one is missing."""
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) == len(values) > 1 else None


def _logged(arm: Arm, key: str) -> Values:
    return [value for record in arm.records for _, value in record.curve(key)]


def _spikes(scores: Values) -> dict[str, Any]:
    """How many logged stretches had a spike, and the worst score of all."""
    return {"steps": sum(score > SPIKE for score in scores), "worst": max(scores, default=None), "threshold": SPIKE}


def _extent(values: Values) -> dict[str, float] | None:
    return {"median": statistics.median(values), "max": max(values)} if values else None


def _shown(measurement: dict[str, Any]) -> dict[str, Any]:
    """A measurement without what no report shows: with it, tens of models would fill tens of megabytes."""
    composite = {way: [_picked(row, COMPOSITE) for row in measurement["composite"][way]] for way in WAYS}
    composite["forward"][-1]["mean_map"] = measurement["composite"]["forward"][-1]["mean_map"]
    rows = [
        _picked(row, SUBLAYER) | {"mean_maps": {"res": row["mean_maps"]["res"]}} for row in measurement["sublayers"]
    ]
    return measurement | {"sublayers": rows, "composite": composite}


def _picked(row: dict[str, Any], measures: tuple[str, ...]) -> dict[str, Any]:
    means = {measure: value for measure, value in row["of_token_means"].items() if measure in measures}
    kept = {key: row[key] for key in ("index", "name", *measures) if key in row}
    return kept | {"of_token_means": means}


def _course_point(measurement: dict[str, Any]) -> dict[str, Any]:
    """The composite at one step: gains at the worst depth and token, differences over the whole depth."""
    composite = measurement["composite"]
    gains: dict[str, Number] = {f"{way}_gain": largest(composite[way], f"{way}_gain") for way in WAYS}
    kept = composite["forward"][-1]["difference_gain"]["median"]
    return {"step": measurement["step"]} | gains | {"difference_gain": kept}


def _laws(records: list[RunRecord]) -> list[dict[str, Any]]:
    """Every law as the seed that keeps it least well has it at its last measurement, with each seed's verdict."""
    measured = {record.status.get("seed"): record.measurements[-1]["laws"] for record in records if record.measurements}
    names = dict.fromkeys(row["law"] for rows in measured.values() for row in rows)
    return [
        _law([(seed, row) for seed, rows in measured.items() for row in rows if row["law"] == law]) for law in names
    ]


def _law(found: list[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
    seed, row = max(found, key=lambda pair: _badness(pair[1]))
    return row | {"seed": seed, "verdicts": {str(each): own["verdict"] for each, own in found}}


def _badness(row: dict[str, Any]) -> tuple[int, float]:
    """By the verdict, then by the value that it rests on; one that is not finite is worse than any."""
    rank, evidence = VERDICTS.index(row["verdict"]), row["evidence"]
    if evidence is None:
        return rank, -math.inf
    value = evidence["value"]
    return rank, math.inf if value is None else -value if evidence["below"] else value


def _speed(arm: Arm) -> float | None:
    return _reduced(statistics.median, (record.tokens_per_second for record in arm.records))


def _step_time(arm: Arm) -> float | None:
    """Seconds of a training step."""
    speed = _speed(arm)
    return arm.records[0].config["train"]["batch_tokens"] / speed if speed else None
