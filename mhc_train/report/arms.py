"""What an arm was, cost and became: its part of the comparison's document."""

import statistics
from typing import Any

from mhc_train.report.collect import Arm, RunRecord


def describe(arm: Arm, first: Arm) -> dict[str, Any]:
    """An arm's part of the comparison's document; step times are relative to those of `first`."""
    status = arm.runs[0].status
    speed, base_speed = _speed(arm), _speed(first)
    return {
        "name": arm.name,
        "runs": [str(record.path) for record in arm.records],
        "overrides": [record.overrides for record in arm.records],
        "seeds": [record.status.get("seed") for record in arm.records],
        "steps": status.get("steps"),
        "tokens": status.get("tokens"),
        "params": sum(status["parameters"].values()),
        "parameters": status["parameters"],
        "flops_per_token": status["flops_per_token"],
        "tokens_per_second": speed,
        "relative_step_time": base_speed / speed if speed and base_speed else None,
        "peak_memory": max((record.status["peak_memory"] for record in arm.records), default=None),
        "peak_memory_counted": status.get("peak_memory_counted"),
        "train_loss": arm.mean("train_loss"),
        "val_loss": arm.mean("val_loss"),
        "val_bpb": arm.mean("val_bpb"),
        "val_loss_by_seed": {str(record.status.get("seed")): record.final("val_loss") for record in arm.records},
        "curves": [_curves(record) for record in arm.records],
        "measurements": arm.runs[0].measurements,
        "samples": arm.runs[0].samples,
    }


def _curves(record: RunRecord) -> dict[str, Any]:
    keys = ("train_loss", "val_loss", "val_bpb", "grad_norm", "learning_rate", "tokens_per_second", "data_wait")
    return {"seed": record.status.get("seed")} | {key: record.curve(key) for key in keys}


def _speed(arm: Arm) -> float | None:
    speeds = [record.tokens_per_second for record in arm.records]
    known = [speed for speed in speeds if speed is not None]
    return statistics.median(known) if known else None
