"""What may be said about differences, against SciPy's paired t-test, closed forms of t and Holm's steps by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mhc_train.report import pairs
from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.statistics import NO_SEED, NOT_SHOWN, ONE_SEED, differences, failures, noise

By = dict[int, float]


def rows(reference: str = "a", doubts: dict[str, str] | None = None, **losses: By) -> list[dict[str, Any]]:
    return differences(losses, reference, lambda winner, _: (doubts or {}).get(winner), 0.005)


def only(a: By, b: By, doubts: dict[str, str] | None = None) -> dict[str, Any]:
    (row,) = rows(doubts=doubts, a=a, b=b)
    return row


def series(*losses: float) -> By:
    return dict(enumerate(losses))


def test_two_seeds_against_the_cauchy_distribution() -> None:
    # t with one degree of freedom is Cauchy's: quantile tan(pi (p - 1/2)), tail 1/2 - atan(t) / pi.
    row = only(series(3.0, 3.0), series(3.1, 3.3))
    error = 0.1  # standard deviation 0.2 / sqrt(2), over sqrt(2)
    assert row["mean"] == pytest.approx(0.2) and row["relative"] == pytest.approx(0.2 / 3)
    half = math.tan(math.pi * 0.475) * error
    assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half])
    assert row["p_value"] == pytest.approx(1 - 2 / math.pi * math.atan(0.2 / error))
    assert row["verdict"] == NOT_SHOWN


def test_the_paired_test_of_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 0.1, (2, 6))
    row, oracle = only(series(*a), series(*b)), stats.ttest_rel(b, a)
    assert row["p_value"] == pytest.approx(oracle.pvalue)
    assert row["interval"] == pytest.approx(list(oracle.confidence_interval(0.95)))


def test_holm_on_a_worked_example() -> None:
    # Four tests: 0.01 x 4, 0.02 x 3, 0.03 x 2, and 0.2; none below the one before it. One that was not made is no test.
    p_values = np.array([0.03, 0.01, math.nan, 0.2, 0.02])
    np.testing.assert_allclose(pairs.holm(p_values), [0.06, 0.04, math.nan, 0.2, 0.06])
    np.testing.assert_allclose(pairs.holm(np.array([[0.6, 0.7], [0.04, 0.01]])), [[1, 1], [0.04, 0.02]])


def test_families_are_corrected_each_for_itself() -> None:
    rng = np.random.default_rng(1)
    losses = {name: series(*rng.normal(3, 0.1, 5)) for name in "abcd"}
    found = rows("b", **losses)
    assert [(row["a"] + row["b"], row["family"]) for row in found] == [
        ("ba", "reference"), ("bc", "reference"), ("bd", "reference"),
        ("ac", "others"), ("ad", "others"), ("cd", "others"),
    ]  # fmt: skip
    for three in (found[:3], found[3:]):
        smallest = min(three, key=lambda row: row["p_value"])
        assert smallest["p_corrected"] == pytest.approx(min(1, 3 * smallest["p_value"]))


def test_a_win_must_survive_the_correction() -> None:
    a = series(3.0, 3.1, 3.2)
    b = {seed: loss + 0.3 + 0.05 * (seed - 1) for seed, loss in a.items()}  # t = 0.3 / (0.05 / sqrt 3): p = 0.0091
    assert only(a, b)["verdict"] == "higher" and only(b, a)["verdict"] == "lower"
    others = {name: {seed: a[seed] + noise for seed, noise in enumerate((0.1, -0.2, 0.1))} for name in "cdefg"}
    assert rows(a=a, b=b, **others)[0]["verdict"] == NOT_SHOWN  # 6 x 0.0091


def test_pairing_removes_what_seeds_share() -> None:
    # The arms' losses overlap widely; their differences by seed do not.
    assert only(series(2.0, 3.0, 4.0), series(1.99, 2.989, 3.991))["verdict"] == "lower"


def test_one_seed_is_never_a_verdict() -> None:
    row = only(series(3.0), series(1.0))
    assert row["verdict"] == ONE_SEED
    assert row["interval"] is row["p_value"] is row["p_corrected"] is row["power"] is None
    assert row["mean"] == pytest.approx(-2.0)


def test_only_common_seeds_count() -> None:
    row = only({0: 3.0, 1: 3.0, 2: 3.0}, {1: 2.0, 7: 1.0})
    assert row["seeds"] == [1] and row["verdict"] == ONE_SEED


def test_no_common_seed() -> None:
    row = only({0: 3.0}, {1: 2.0})
    assert row["verdict"] == NO_SEED and row["mean"] is None


@pytest.mark.parametrize("rounding", [0.0, 4e-16, 1e-9, 1.5e-6, -9e-6])
def test_equal_losses_are_no_difference_whatever_rounding_says(rounding: float) -> None:
    row = only(series(3.0, 3.1, 3.2, 3.3), series(3.0 + rounding, 3.1 + rounding, 3.2 + rounding, 3.3 + rounding))
    assert row["verdict"] == NOT_SHOWN and row["p_value"] > 0.9


def test_copies_that_are_further_apart_than_rounding_puts_them() -> None:
    assert only(series(3.0, 3.1, 3.2, 3.3), series(3.001, 3.101, 3.201, 3.301))["verdict"] == "higher"


def test_an_arm_with_failed_runs_wins_nothing_but_may_lose() -> None:
    a, b = series(3.0, 3.1, 3.2), series(2.70, 2.81, 2.89)
    assert only(a, b)["verdict"] == "lower"
    assert only(a, b, {"b": "1 of 4 runs of b failed"})["verdict"] == "not settled: 1 of 4 runs of b failed"
    assert only(a, b, {"a": "1 of 4 runs of a failed"})["verdict"] == "lower"
    assert only(b, a, {"b": "1 of 4 runs of b failed"})["verdict"] == "higher"
    assert only({}, b, {"a": "4 of 4 runs of a failed"})["verdict"] == "not settled: 4 of 4 runs of a failed"


def test_noise_is_pooled_within_arms() -> None:
    found = noise({"a": series(3.0, 3.2), "b": series(5.0, 5.1, 5.2), "c": series(9.0)}, "a")
    assert found is not None and found["degrees_of_freedom"] == 3
    assert found["sd"] == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert found["relative"] == pytest.approx(found["sd"] / 3.1)
    assert noise({"a": series(3.0), "b": series(4.0)}, "a") is None


def test_effect_is_in_units_of_noise() -> None:
    row = only(series(3.0, 3.2), series(3.1, 3.3))
    assert row["effect"] == pytest.approx(0.1 / math.sqrt(0.02))


def test_power_by_simulation() -> None:
    rng, effect, seeds, level = np.random.default_rng(0), 1.5, 5, 0.05 / 4
    found = stats.ttest_1samp(rng.normal(effect, 1, (20_000, seeds)), 0, axis=1).pvalue
    assert pairs.power(effect, seeds, level) == pytest.approx((found < level).mean(), abs=0.012)


def test_seeds_needed_are_the_fewest_and_the_smallest_difference_is_what_they_show() -> None:
    seeds = pairs.seeds_needed(0.9, 0.05)
    assert seeds == 12  # as G*Power and tables of the paired t-test have it
    assert pairs.power(0.9, seeds, 0.05) >= 0.8 > pairs.power(0.9, seeds - 1, 0.05)
    assert pairs.power(pairs.smallest_effect(7, 0.01), 7, 0.01) == pytest.approx(0.8)


def test_power_among_sixty_arms_is_right_and_silent() -> None:
    # Two seeds: t is Cauchy's, and its denominator a half-normal; by the trapezoidal rule over that.
    level, effect = 0.05 / 1711, pairs.smallest_effect(2, 0.05 / 1711)
    scatter = np.linspace(0, 10, 200_001)
    critical = math.tan(math.pi * (1 - level) / 2)
    shown = stats.norm.sf(critical * scatter - effect * math.sqrt(2)) * 2 * stats.norm.pdf(scatter)
    assert np.trapezoid(shown, scatter) == pytest.approx(0.8, abs=1e-4)


def test_power_is_stated_for_the_strictest_step() -> None:
    rng = np.random.default_rng(2)
    losses = {name: series(*rng.normal(3, 0.02, 4)) for name in "abc"}
    row = rows(**losses)[0]
    spread = float(np.std([losses["b"][seed] - losses["a"][seed] for seed in range(4)], ddof=1))
    base = float(np.mean(list(losses["a"].values())))
    assert row["power"]["seeds"] == pairs.seeds_needed(0.005 * base / spread, 0.025)
    assert row["power"]["more"] == row["power"]["seeds"] - 4
    assert row["power"]["smallest"] == pytest.approx(pairs.smallest_effect(4, 0.025) * spread / base)


def test_too_many_seeds_to_ask_for_are_capped() -> None:
    power = only(series(3.0, 5.0), series(5.0, 3.0))["power"]
    assert power["capped"] and power["seeds"] == 1000 and power["more"] == 998


# ---------------------------------------------------------------- who lacks runs


def run(seed: int, status: str = "done", loss: float | None = 3.0) -> RunRecord:
    lines: list[dict[str, Any]] = [{"step": 1, "tokens": 1, "val_loss": loss}]
    return RunRecord(Path(), {}, {"seed": seed, "status": status}, {}, lines, [], [], ["connection=hc", f"seed={seed}"])


def test_failed_lost_and_unfinished_losses_are_counted() -> None:
    arm = Arm("hc", [run(0), run(1, loss=None)], [run(2, "failed")])
    lost = [{"overrides": ["seed=3", "connection=hc"], "error": "no memory"}]
    assert failures([arm]) == {"hc": "2 of 3 runs of hc failed"}
    assert failures([arm], lost) == {"hc": "3 of 4 runs of hc failed"}
    # Another arm's, and one that was trained after all.
    others = [["seed=3", "connection=mhc"], ["connection=hc", "seed=1"]]
    assert failures([arm], [{"overrides": typed} for typed in others]) == {"hc": "2 of 3 runs of hc failed"}
    assert failures([Arm("hc", [run(0)])]) == {}
