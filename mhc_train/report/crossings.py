"""Whether two arms change places during training, so that a shorter one would have said the opposite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.pairs import ALPHA, RESOLUTION, Floats, Paired, paired
from mhc_train.report.statistics import METRIC
from mhc_train.report.words import counted

SHOWN = "both orders are shown, each at some validation"
POSSIBLE = "not both orders are shown at some validation, so that it may be chance"


def crossings(
    arms: Sequence[Arm], reference: str, failed: dict[str, str], apart: str | None = None
) -> list[dict[str, Any]]:
    """A row for the reference and every other arm: `none`, `shown`, `possible` or `unknown`.

    It is shown where each of the two orders is, at some validation; possible where the mean difference changes its sign
    otherwise.

    Args:
        arms: all that are compared.
        reference: the arm that the others are held against.
        failed: which arms lack runs, in words; where such an arm is lower, nothing is known.
        apart: why the runs are not comparable; None if they are.
    """
    named = {arm.name: arm for arm in arms}
    return [_crossing(named[reference], arm, failed, apart) for arm in arms if arm.name != reference]


def _crossing(a: Arm, b: Arm, failed: dict[str, str], apart: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"a": a.name, "b": b.name, "state": "unknown", "tokens": None}
    if apart:
        return row | {"text": f"Not known: the runs are {apart}."}
    first, second = _courses(a), _courses(b)
    seeds = sorted(first.keys() & second.keys())
    tokens = sorted(set.intersection(*(set(own[seed]) for own in (first, second) for seed in seeds))) if seeds else []
    if len(seeds) < 2 or len(tokens) < 2:
        lacking = "two common seeds" if len(seeds) < 2 else "two validations at equal tokens"
        return row | {"text": f"Not known: {a.name} and {b.name} have not even {lacking}."}
    found = paired(*(np.array([[own[seed][at] for seed in seeds] for at in tokens]) for own in (first, second)))
    for name, ahead in ((a.name, found.mean.max()), (b.name, -found.mean.min())):
        if name in failed and ahead > RESOLUTION:
            return row | {"text": f"Not known: {failed[name]}."}
    place = _last_change(np.array(tokens, dtype=np.float64), found.mean)
    if place is None:
        return row | {"state": "none", "text": _no_change(a, b, found.mean)}
    state, how = ("shown", SHOWN) if both_orders(found) else ("possible", POSSIBLE)
    lower = b.name if found.mean[-1] < 0 else a.name
    when = f"last at about {counted(place)} tokens; from there {lower} is lower"
    return row | {"state": state, "tokens": place, "text": f"{a.name} and {b.name} change places, {when}: {how}."}


def both_orders(found: Paired) -> NDArray[np.bool_]:
    """Whether a has the lower loss at one validation and b at another, of differences (..., validations).

    Each order is a one-sided test at every validation, corrected for their number (Bonferroni): both are shown by
    chance in at most 5 % of comparisons, also where one of them is true.
    """
    sure = found.p_value / 2 < ALPHA / found.p_value.shape[-1]
    return (sure & (found.mean > 0)).any(-1) & (sure & (found.mean < 0)).any(-1)


def _courses(arm: Arm) -> dict[int, dict[int, float]]:
    """Of every seed, the validation losses by tokens; without that before training, when nothing was learnt."""
    return {record.seed: _course(record) for record in arm.records}


def _course(record: RunRecord) -> dict[int, float]:
    return {tokens: loss for tokens, loss in record.curve(METRIC) if tokens}


def _last_change(tokens: Floats, means: Floats) -> float | None:
    """Where a line through the means last crosses zero; means that are nothing but rounding have no sign."""
    told = np.abs(means) > RESOLUTION
    tokens, means = tokens[told], means[told]
    changes = np.flatnonzero(means[:-1] * means[1:] < 0)
    if not len(changes):
        return None
    at = changes[-1]
    share = means[at] / (means[at] - means[at + 1])
    return float(tokens[at] + share * (tokens[at + 1] - tokens[at]))


def _no_change(a: Arm, b: Arm, means: Floats) -> str:
    if np.abs(means).max() <= RESOLUTION:
        return f"{a.name} and {b.name} have the same loss at all {len(means)} common validations."
    lower = b.name if means.sum() < 0 else a.name
    return f"The order does not change: {lower} is lower on average at all {len(means)} common validations."
