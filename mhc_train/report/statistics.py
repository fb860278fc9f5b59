"""What may be said about a difference: paired by seed, with an interval, and nothing from one seed."""

import math
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from mhc_train.report.collect import Arm

LEVEL = 0.95
ONE_SEED = "one seed: settles nothing"


def differences(arms: list[Arm], key: str = "val_loss") -> list[dict[str, Any]]:
    """For every pair of arms, the mean of `key` of b minus a over common seeds, its 95 % t interval and p-value.

    The verdict is "lower" or "higher" where the interval excludes 0, "no difference shown" where it does not, and
    says that nothing is settled where only one seed is common. p-values are not corrected for the number of pairs.
    """
    return [_difference(a, b, key) for a, b in combinations(arms, 2)]


def _difference(a: Arm, b: Arm, key: str) -> dict[str, Any]:
    first, second = _by_seed(a, key), _by_seed(b, key)
    seeds = sorted(first.keys() & second.keys())
    deltas = np.array([second[seed] - first[seed] for seed in seeds])
    row: dict[str, Any] = {"a": a.name, "b": b.name, "metric": key, "seeds": seeds}
    if len(deltas) < 2:
        mean = float(deltas[0]) if len(deltas) else None
        verdict = ONE_SEED if len(deltas) else "no common seed"
        return row | {"mean": mean, "interval": None, "p_value": None, "verdict": verdict}
    mean, error = float(deltas.mean()), float(deltas.std(ddof=1)) / math.sqrt(len(deltas))
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, len(deltas) - 1))
    p_value = float(2 * stats.t.sf(abs(mean) / error, len(deltas) - 1)) if error > 0 else float(mean == 0)
    shown = abs(mean) > half
    verdict = ("lower" if mean < 0 else "higher") if shown else "no difference shown"
    return row | {"mean": mean, "interval": [mean - half, mean + half], "p_value": p_value, "verdict": verdict}


def _by_seed(arm: Arm, key: str) -> dict[int, float]:
    values = {record.status["seed"]: record.final(key) for record in arm.records}
    return {seed: value for seed, value in values.items() if value is not None}
