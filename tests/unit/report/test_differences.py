"""What may be said about a difference, against numbers worked out by hand from closed forms of the t distribution."""

import math
from pathlib import Path
from typing import Any

import pytest

from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.statistics import ONE_SEED, differences


def arm(name: str, losses: dict[int, float | None]) -> Arm:
    records: list[RunRecord] = []
    for seed, loss in losses.items():
        line: dict[str, Any] = {"step": 1, "tokens": 1, "val_loss": loss}
        records.append(RunRecord(Path(name), {}, {"seed": seed}, {}, [line], [], []))
    return Arm(name, records)


def only(a: dict[int, float | None], b: dict[int, float | None]) -> dict[str, Any]:
    (row,) = differences([arm("a", a), arm("b", b)])
    return row


def test_two_seeds_against_the_cauchy_distribution() -> None:
    # t with one degree of freedom is Cauchy's: quantile tan(pi (p - 1/2)), tail 1/2 - atan(t) / pi.
    row = only({0: 3.0, 1: 3.0}, {0: 3.1, 1: 3.3})
    error = 0.1  # standard deviation 0.2 / sqrt(2), over sqrt(2)
    assert row["mean"] == pytest.approx(0.2)
    half = math.tan(math.pi * 0.475) * error
    assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half])
    assert row["p_value"] == pytest.approx(1 - 2 / math.pi * math.atan(0.2 / error))
    assert row["verdict"] == "no difference shown"


def test_three_seeds_against_the_closed_form() -> None:
    # With two degrees of freedom the two-sided p is 1 - |t| / sqrt(2 + t^2); the 97.5 % quantile is 4.302653.
    row = only({0: 3.0, 1: 3.0, 2: 3.0}, {0: 2.9, 1: 2.8, 2: 2.7})
    error = 0.1 / math.sqrt(3)
    t = 0.2 / error
    assert row["interval"] == pytest.approx([-0.2 - 4.302653 * error, -0.2 + 4.302653 * error], rel=1e-6)
    assert row["p_value"] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert row["verdict"] == "no difference shown"


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "lower"), (1, "higher")])
def test_a_difference_is_shown_where_the_interval_leaves_zero_out(sign: int, verdict: str) -> None:
    row = only({0: 3.0, 1: 3.1, 2: 3.2}, {0: 3.0 + sign * 0.30, 1: 3.1 + sign * 0.31, 2: 3.2 + sign * 0.29})
    assert row["verdict"] == verdict
    assert row["interval"][0] * row["interval"][1] > 0


def test_pairing_removes_what_seeds_share() -> None:
    # The arms' losses overlap widely; their differences by seed do not.
    row = only({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.99, 1: 2.989, 2: 3.991})
    assert row["verdict"] == "lower"


def test_one_seed_is_never_a_verdict() -> None:
    row = only({0: 3.0}, {0: 1.0})
    assert row["verdict"] == ONE_SEED
    assert row["interval"] is None and row["p_value"] is None
    assert row["mean"] == pytest.approx(-2.0)


def test_only_common_seeds_count() -> None:
    row = only({0: 3.0, 1: 3.0, 2: 3.0}, {1: 2.0, 7: 1.0})
    assert row["seeds"] == [1]
    assert row["verdict"] == ONE_SEED


def test_no_common_seed() -> None:
    row = only({0: 3.0}, {1: 2.0})
    assert row["verdict"] == "no common seed"
    assert row["mean"] is None


def test_a_run_without_a_loss_is_left_out() -> None:
    assert only({0: 3.0, 1: 3.0}, {0: 2.0, 1: None})["seeds"] == [0]


def test_equal_losses_are_no_difference() -> None:
    row = only({0: 3.0, 1: 3.0}, {0: 3.0, 1: 3.0})
    assert (row["mean"], row["p_value"], row["verdict"]) == (0.0, 1.0, "no difference shown")


def test_every_pair_of_arms_once() -> None:
    rows = differences([arm(name, {0: 3.0}) for name in "abcd"])
    assert [row["a"] + row["b"] for row in rows] == ["ab", "ac", "ad", "bc", "bd", "cd"]
