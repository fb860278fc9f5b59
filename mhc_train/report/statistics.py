"""What may be said about differences of loss: paired by seed, corrected for their number, and nothing from one seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from mhc_train.report.collect import SEEDS, Arm
from mhc_train.report.pairs import ALPHA, MOST_SEEDS, Floats, Paired, holm, paired, seeds_needed, smallest_effect

METRIC = "val_loss"
ONE_SEED, NO_SEED, NOT_SHOWN = "one seed: settles nothing", "no common seed", "no difference shown"

Losses = Mapping[str, Mapping[int, float]]
"""Of every arm, by seed."""
Doubt = Callable[[str, str], str | None]
"""Why a lower loss of the first arm would not mean that it is better than the second; None if it would."""


def noise(losses: Losses, reference: str) -> dict[str, Any] | None:
    """How far seeds alone move the loss: the standard deviation within arms, pooled over all; None of single seeds.

    `relative` is to the mean loss of the reference, null if it has none.
    """
    groups = [np.array(list(group.values())) for group in losses.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    if not freedom:
        return None
    deviation = math.sqrt(sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom)
    level = losses[reference].values()
    relative = deviation / float(np.mean(list(level))) if level else None
    return {"metric": METRIC, "sd": deviation, "relative": relative, "degrees_of_freedom": freedom}


def failures(arms: Sequence[Arm], lost: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
    """Which arms lack runs, in words: those left flatter an arm of which the worst have failed.

    Args:
        arms: all that are compared.
        lost: planned runs that left no directory, each with its `overrides`.
    """
    found = {}
    for arm in arms:
        # A run without a final loss did not end well, whatever its status says.
        finished = len(arm.by_seed(METRIC))
        planned = len(arm.runs) + sum(_was_of(arm, list(run["overrides"])) for run in lost)
        if finished < planned:
            found[arm.name] = f"{planned - finished} of {planned} runs of {arm.name} failed"
    return found


def _was_of(arm: Arm, overrides: list[str]) -> bool:
    """Whether a lost run would have been a replicate of this arm, and none of those that are there."""
    typed = [set(record.overrides) for record in arm.runs]
    return set(overrides) not in typed and _arm_of(overrides) in [_arm_of(record.overrides) for record in arm.runs]


def _arm_of(overrides: Sequence[str]) -> set[str]:
    return {text for text in overrides if text.partition("=")[0].lstrip("+") not in SEEDS}


def differences(losses: Losses, reference: str, doubt: Doubt, detect: float) -> list[dict[str, Any]]:
    """For every pair of arms, the mean of b minus a over common seeds, its interval, p-values, verdict and power.

    Pairs with the reference are one family of tests, all others another; p-values are corrected within each.

    Args:
        losses: of every arm by seed, in nats.
        reference: the arm that the others are held against.
        doubt: why a lower loss may not count.
        detect: difference relative to a's loss that power is stated for.
    """
    others = [name for name in losses if name != reference]
    return [
        *family("reference", [(reference, name) for name in others], losses, reference, doubt, detect),
        *family("others", list(combinations(others, 2)), losses, reference, doubt, detect),
    ]


def family(
    name: str, pairs: Sequence[tuple[str, str]], losses: Losses, reference: str, doubt: Doubt, detect: float
) -> list[dict[str, Any]]:
    """The rows of `differences` for these pairs, corrected for their number."""
    if not pairs:
        return []
    seeds = sorted({seed for group in losses.values() for seed in group})
    first, second = (_table([losses[pair[side]] for pair in pairs], seeds) for side in (0, 1))
    found = paired(first, second)
    corrected = holm(found.p_value)
    level = ALPHA / max(1, int(np.isfinite(corrected).sum()))
    spread = noise(losses, reference)
    rows = []
    for index, (a, b) in enumerate(pairs):
        common = [seed for seed in seeds if seed in losses[a] and seed in losses[b]]
        one = Paired(*(values[index] for values in found))
        base = float(np.mean([losses[a][seed] for seed in common])) if common else math.nan
        rows.append(
            {
                "a": a,
                "b": b,
                "metric": METRIC,
                "family": name,
                "seeds": common,
                **_estimate(one, base, spread),
                "p_corrected": _number(corrected[index]),
                "verdict": _verdict(a, b, one, float(corrected[index]), doubt),
                "power": _power(one, base, level, detect),
            }
        )
    return rows


def _table(groups: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> Floats:
    """Losses (arms, seeds), NaN where there is none."""
    return np.array([[group.get(seed, math.nan) for seed in seeds] for group in groups]).reshape(len(groups), -1)


def _estimate(found: Paired, base: float, spread: dict[str, Any] | None) -> dict[str, Any]:
    mean, half = float(found.mean), float(found.half)
    return {
        "mean": _number(mean),
        "relative": _number(mean / base),
        "interval": [mean - half, mean + half] if math.isfinite(half) else None,
        "p_value": _number(found.p_value),
        "effect": _number(mean / spread["sd"]) if spread and spread["sd"] else None,
    }


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(a: str, b: str, found: Paired, p_corrected: float, doubt: Doubt) -> str:
    """What may be said of b beside a."""
    if found.seeds == 0:
        why = doubt(a, b) or doubt(b, a)
        return f"not settled: {why}" if why else NO_SEED
    if found.seeds == 1:
        return ONE_SEED
    if p_corrected >= ALPHA:
        return NOT_SHOWN
    winner, loser = (b, a) if found.mean < 0 else (a, b)
    why = doubt(winner, loser)
    return f"not settled: {why}" if why else "lower" if winner == b else "higher"


def _power(found: Paired, base: float, level: float, detect: float) -> dict[str, Any] | None:
    """How many seeds would have shown `detect`, and what these could have; None of fewer than two."""
    if found.seeds < 2:
        return None
    spread, seeds = float(found.spread) / base, int(found.seeds)
    needed = seeds_needed(detect / spread, level)
    return {
        "detect": detect,
        "seeds": min(needed, MOST_SEEDS),
        "capped": needed > MOST_SEEDS,
        "more": max(0, min(needed, MOST_SEEDS) - seeds),
        "smallest": smallest_effect(seeds, level) * spread,
    }
