"""Simulated comparisons of known truth: no more false wins than promised, and as much power as predicted."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

from false_wins import SCENARIOS, Scenario, draw, false_crossings, outcome, unequal_lengths  # noqa: E402

from mhc_train.report.statistics import differences  # noqa: E402

SIMULATIONS = 1000
LIMIT = 0.05 + 3 * (0.05 * 0.95 / SIMULATIONS) ** 0.5
"""Five in a hundred and three standard errors of the simulation."""


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.crashes != "the worst"], ids=lambda one: one.name)
def test_a_family_of_tests_has_few_false_wins_and_intervals_cover_the_truth(scenario: Scenario) -> None:
    for rates in outcome(scenario, SIMULATIONS)["families"].values():
        assert rates["false_wins"] <= LIMIT
        assert rates["false_if_failures_were_ignored"] <= LIMIT
        # Intervals of heavy tails are too wide, which is the safe side.
        assert 1 - LIMIT <= rates["covered"] <= (1 if scenario.heavy else 1 - 0.05 + (LIMIT - 0.05))


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if any(one.truth)], ids=lambda one: one.name)
def test_power_is_what_was_predicted(scenario: Scenario) -> None:
    rates = outcome(scenario, SIMULATIONS)["families"]["reference"]
    # Holm's later steps are less strict than the first, for which power is stated.
    assert rates["predicted_power"] - 0.05 <= rates["power"] <= rates["predicted_power"] + 0.05


def test_an_arm_whose_worst_runs_failed_never_wins() -> None:
    (scenario,) = [one for one in SCENARIOS if one.crashes == "the worst"]
    ignored = 0
    for losses in draw(scenario, SIMULATIONS, np.random.default_rng(0)):
        by_seed = {
            name: {seed: float(loss) for seed, loss in enumerate(row) if np.isfinite(loss)}
            for name, row in zip("ab", losses, strict=True)
        }
        whole = len(by_seed["b"]) == scenario.seeds
        reasons = {} if whole else {"b": "runs of b failed"}
        (row,) = differences(by_seed, "a", lambda winner, _, reasons=reasons: reasons.get(winner), 0.005)
        assert whole or row["verdict"] != "lower"
        ignored += row["verdict"] in ("lower", "not settled: runs of b failed") and row["mean"] is not None
    assert ignored > LIMIT * SIMULATIONS


def test_runs_of_unequal_length_are_compared_at_equal_tokens() -> None:
    rates = unequal_lengths(SIMULATIONS // 4)
    assert rates["false_wins_at_the_ends"] > 0.9
    assert rates["false_wins_at_equal_tokens"] <= 0.05 + 6 * (0.05 * 0.95 / SIMULATIONS) ** 0.5


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_change_of_places_is_seldom_shown_by_chance(gap: float) -> None:
    assert false_crossings(SIMULATIONS, 40, 0.5, gap)["shown"] <= LIMIT
