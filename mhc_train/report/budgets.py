"""The arms at one expense: the same tokens, the same floating-point operations, the same seconds of training."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.pairs import Floats
from mhc_train.report.statistics import METRIC, family
from mhc_train.report.words import listed

DECAYED = 0.01
"""A learning rate is still to fall while it is further above its last value than this share of its largest."""
EARLY = "the learning rate of {} was still to fall there"

Spent = Callable[[RunRecord], Floats | None]
"""What a run has spent, points (2, count) of tokens and amount, both rising from 0; None if that was not recorded."""


def tokens(record: RunRecord) -> Floats:
    """Training tokens."""
    return np.array([[0, _end(record)], [0, _end(record)]], dtype=np.float64)


def flops(record: RunRecord) -> Floats:
    """Floating-point operations of forward and backward passes, as counted for the model."""
    return np.array([[1.0], [record.status["flops_per_token"]]]) * tokens(record)[0]


def seconds(record: RunRecord) -> Floats | None:
    """Seconds of steps and of waiting for data, from the logged speeds; validation and saving not included."""
    rates = np.array([(0, np.inf), *record.curve("tokens_per_second")])
    if len(rates) < 2:
        return None
    steps = np.diff(rates[:, 0], prepend=0)
    return np.stack([rates[:, 0], np.cumsum(steps / rates[:, 1])])


BUDGETS: dict[str, Spent] = {"tokens": tokens, "flops": flops, "seconds": seconds}


class Reading(NamedTuple):
    """A run at an amount."""

    loss: float
    falling: float
    """How far its learning rate was above its last value, there or later, as a share of its largest."""


def budgets(
    arms: Sequence[Arm], reference: str, failed: dict[str, str], speeds: str | None, detect: float
) -> list[dict[str, Any]]:
    """Each arm's loss at the largest amount that all finished runs reached, and the differences from the reference.

    A run that is read before its end, while its learning rate was still to fall, stands worse there than one that was
    planned for that amount: it is not called worse than a run that had come further down.

    Args:
        arms: all that are compared.
        reference: the arm that the others are held against.
        failed: which arms lack runs, in words.
        speeds: why speeds are no measurements; None if they are.
        detect: relative difference that power is stated for.
    """
    rows = [_budget(name, spent, arms, reference, failed, speeds, detect) for name, spent in BUDGETS.items()]
    return [row for row in rows if row is not None]


def _budget(
    name: str,
    spent: Spent,
    arms: Sequence[Arm],
    reference: str,
    failed: dict[str, str],
    speeds: str | None,
    detect: float,
) -> dict[str, Any] | None:
    courses = {arm.name: {run.seed: (run, spent(run)) for run in arm.records if _has_course(run)} for arm in arms}
    ends = [np.nan if points is None else points[1, -1] for own in courses.values() for _, points in own.values()]
    amount = float(np.min(ends, initial=np.inf))  # NaN if one is
    if not np.isfinite(amount):
        return None
    read = {
        arm: {seed: reading(run, points, amount) for seed, (run, points) in own.items() if points is not None}
        for arm, own in courses.items()
    }
    losses = {arm: {seed: one.loss for seed, one in own.items()} for arm, own in read.items()}
    falling = {arm: _mean([one.falling for one in own.values()]) or 0.0 for arm, own in read.items()}
    untimed = speeds if name == "seconds" else None

    def doubt(winner: str, loser: str) -> str | None:
        early = falling[loser] > falling[winner] + DECAYED
        return failed.get(winner) or untimed or (EARLY.format(loser) if early else None)

    pairs = [(reference, arm) for arm in losses if arm != reference]
    return {
        "budget": name,
        "amount": amount,
        "losses": {arm: _mean(list(own.values())) for arm, own in losses.items()},
        "differences": family("reference", pairs, losses, reference, doubt, detect),
        "caveat": " ".join(_caveats(falling, untimed)) or None,
    }


def _caveats(falling: dict[str, float], untimed: str | None) -> list[str]:
    early = [arm for arm, share in falling.items() if share > DECAYED]
    sentences = [f"Seconds say little: {untimed}."] if untimed else []
    if early:
        sentences.append(
            f"{listed(early)}: read before the end, while the learning rate was still to fall; a run planned for this "
            "amount would have a lower loss."
        )
    return sentences


def reading(record: RunRecord, points: Floats, amount: float) -> Reading:
    """A run's validation loss where it had spent an amount, and how far its learning rate had still to fall.

    Between two validations the loss is linear in the logarithm of the amount, as losses nearly are; before the first
    one after the start, in the amount itself.
    """
    where, losses = np.array(record.curve(METRIC)).T
    amounts = np.interp(where, *points)
    trained = amounts > 0
    if amount >= amounts[trained][0]:
        loss = np.interp(np.log(amount), np.log(amounts[trained]), losses[trained])
    else:
        loss = np.interp(amount, amounts, losses)
    return Reading(float(loss), _falling(record, float(np.interp(amount, points[1], points[0]))))


def _falling(record: RunRecord, place: float) -> float:
    rates = np.array(record.curve("learning_rate"))
    if not len(rates):
        return 0.0
    there = np.interp(place, rates[:, 0], rates[:, 1])
    # During warm-up the rate is still to rise before it falls.
    largest = rates[rates[:, 0] >= place, 1].max(initial=there)
    falling = float(largest - rates[-1, 1])
    return falling and falling / float(rates[:, 1].max())


def _has_course(record: RunRecord) -> bool:
    return record.final(METRIC) is not None and _end(record) > 0


def _end(record: RunRecord) -> int:
    return int(record.metrics[-1]["tokens"])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
