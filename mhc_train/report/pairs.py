"""Differences paired by seed, on plain arrays: t intervals, Holm's correction, and what could have been seen."""

import math
import warnings
from bisect import bisect_left
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

Floats = NDArray[np.float64]

LEVEL, ALPHA, POWER = 0.95, 0.05, 0.8
RESOLUTION = 1e-5
"""Nats below which two losses are not told apart: a loss of 10 nats in float32 has steps of 1e-6, the sums that it is
made of add to that, and rounding must not win a comparison."""
MOST_SEEDS = 1000
"""No larger number of seeds is looked for."""


class Paired(NamedTuple):
    """Of each row of pairs; not a number where there are too few."""

    seeds: NDArray[np.int64]
    mean: Floats
    half: Floats
    """Half the width of the 95 % interval of the mean."""
    p_value: Floats
    """Two-sided, of no difference; 1 where the mean is within `RESOLUTION` of it."""
    spread: Floats
    """Standard deviation of the differences, at least `RESOLUTION`."""


def paired(a: Floats, b: Floats) -> Paired:
    """The mean of b minus a over seeds, with Student's t for differences that are normal.

    Args:
        a: losses (..., seeds) in nats, NaN where a seed has none.
        b: the other arm's, of the same shape.
    """
    deltas = b - a
    there = np.isfinite(deltas)
    seeds = there.sum(-1)
    several, freedom = np.maximum(seeds, 1), np.maximum(seeds - 1, 1)
    mean = np.where(there, deltas, 0).sum(-1) / several
    squares = np.where(there, deltas - mean[..., None], 0) ** 2
    spread = np.maximum(np.sqrt(squares.sum(-1) / freedom), RESOLUTION)
    error = spread / np.sqrt(several)
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p_value = np.where(np.abs(mean) > RESOLUTION, 2 * stats.t.sf(np.abs(mean) / error, freedom), 1)
    half, p_value, spread = (np.where(seeds > 1, values, np.nan) for values in (half, p_value, spread))
    return Paired(seeds, np.where(seeds > 0, mean, np.nan), half, p_value, spread)


def holm(p_values: Floats) -> Floats:
    """p-values (..., tests) corrected so that one below 0.05 is wrong in at most 5 % of families (Holm, 1979).

    NaN is no test, and stays.
    """
    order = np.argsort(p_values, -1)  # NaN last
    tests = np.isfinite(p_values).sum(-1, keepdims=True)
    raised = np.take_along_axis(p_values, order, -1) * np.maximum(tests - np.arange(p_values.shape[-1]), 1)
    corrected = np.empty_like(p_values)
    np.put_along_axis(corrected, order, np.minimum(np.maximum.accumulate(raised, -1), 1), -1)
    return corrected


def power(effect: float, seeds: int, level: float) -> float:
    """The chance to show a difference with its right sign, by the noncentral t distribution.

    Args:
        effect: the true difference over the standard deviation of differences between seeds.
        seeds: how many pairs.
        level: two-sided, of the test.
    """
    freedom = seeds - 1
    with warnings.catch_warnings():
        # Of chances within 1e-9 of certainty, SciPy says that its series has not converged.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.nct.sf(stats.t.isf(level / 2, freedom), freedom, effect * math.sqrt(seeds)))


def seeds_needed(effect: float, level: float) -> int:
    """The fewest seeds with a chance of 80 % to show such a difference; `MOST_SEEDS` + 1 if those are too few."""
    return 2 + bisect_left(range(2, MOST_SEEDS + 1), POWER, key=lambda seeds: power(effect, seeds, level))


@cache
def smallest_effect(seeds: int, level: float) -> float:
    """The difference, over its standard deviation between seeds, that so many show with a chance of 80 %."""
    largest = (10 * float(stats.t.isf(level / 2, seeds - 1)) + 10) / math.sqrt(seeds)
    return float(brentq(lambda effect: power(effect, seeds, level) - POWER, 0.0, largest))
