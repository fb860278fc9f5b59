"""Arms at equal tokens, operations and seconds, and arms that change places, on courses written down by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from mhc_train.report.budgets import budgets
from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.crossings import crossings

OFFSETS = (0.0, 0.1, -0.1)
"""What each seed adds to the losses of every arm."""


def run(
    losses: dict[int, float], seed: int = 0, *, rates: list[float] | None = None, speed: float = 10.0, flops: int = 6
) -> RunRecord:
    """Validation losses by tokens, with a learning rate and a speed in every line but the first."""
    lines: list[dict[str, Any]] = []
    for index, (tokens, loss) in enumerate(losses.items()):
        rate = 1.0 if rates is None else rates[index]
        logged = {"learning_rate": rate, "tokens_per_second": speed} if tokens else {}
        lines.append({"step": index, "tokens": tokens, "val_loss": loss + OFFSETS[seed]} | logged)
    return RunRecord(Path(), {}, {"seed": seed, "flops_per_token": flops}, {}, lines, [], [])


def arm(name: str, losses: dict[int, float], jitter: float = 0.0, **how: Any) -> Arm:
    """Three seeds, whose losses are moved besides by 0 and the jitter up and down."""
    moved = [{at: loss + sign * jitter for at, loss in losses.items()} for sign in (0, 1, -1)]
    return Arm(name, [run(one, seed, **how) for seed, one in enumerate(moved)])


def found(
    arms: list[Arm], speeds: str | None = None, failed: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    return {row["budget"]: row for row in budgets(arms, arms[0].name, failed or {}, speeds, 0.005)}


SHORT, LONG = {0: 8.0, 100: 6.0, 200: 5.0}, {0: 8.0, 100: 6.0, 400: 4.0}


def test_unequal_lengths_are_read_at_the_shorter_ones_tokens() -> None:
    row = found([arm("short", SHORT), arm("long", LONG, 0.01)])["tokens"]
    assert row["amount"] == 200 and row["losses"]["short"] == pytest.approx(5.0)
    # Half way from 100 to 400 in the logarithm.
    assert row["losses"]["long"] == pytest.approx(5.0)
    assert row["caveat"] is None  # the learning rate was constant
    assert row["differences"][0]["verdict"] == "no difference shown"


def test_before_the_first_validation_loss_is_linear() -> None:
    row = found([arm("short", {0: 8.0, 50: 7.0}), arm("long", LONG)])["tokens"]
    assert row["losses"]["long"] == pytest.approx(7.0)


def test_operations_and_seconds_are_counted_for_each_run() -> None:
    rows = found([arm("cheap", SHORT, speed=20.0, flops=6), arm("dear", SHORT, 0.01, speed=10.0, flops=12)])
    assert rows["flops"]["amount"] == 1200 and rows["seconds"]["amount"] == pytest.approx(10.0)
    for name in ("flops", "seconds"):
        assert rows[name]["losses"] == pytest.approx({"cheap": 5.0, "dear": 6.0})
        assert rows[name]["differences"][0]["verdict"] == "higher"
        assert rows[name]["caveat"] is None


def test_seconds_follow_the_logged_speeds() -> None:
    # 100 tokens at 10 a second and 100 at 50: 12 seconds; the other has run for 10, its first 100 tokens.
    changing = run(SHORT)
    changing.metrics[-1]["tokens_per_second"] = 50.0
    row = found([Arm("steady", [run({0: 8.0, 100: 7.0})]), Arm("changing", [changing])])["seconds"]
    assert row["amount"] == pytest.approx(10.0) and row["losses"]["changing"] == pytest.approx(6.0)


def test_no_logged_speed_no_seconds() -> None:
    silent = run(SHORT)
    for line in silent.metrics:
        line.pop("tokens_per_second", None)
    assert set(found([Arm("silent", [silent]), arm("other", SHORT)])) == {"tokens", "flops"}


@pytest.mark.parametrize(("end", "verdict"), [(4.5, "not settled"), (3.0, "lower")])
def test_a_run_whose_learning_rate_was_still_to_fall_is_not_called_worse(end: float, verdict: str) -> None:
    falling = arm("long", {0: 8.0, 200: end + 1, 400: end}, 0.01, rates=[1.0, 1.0, 0.1])
    row = found([arm("short", SHORT, rates=[1.0, 1.0, 0.1]), falling])["tokens"]
    assert row["caveat"] is not None and row["caveat"].startswith("long: read before the end")
    assert row["differences"][0]["verdict"].startswith(verdict)


def test_a_run_whose_learning_rate_was_still_to_rise_and_fall() -> None:
    rising = arm("long", {0: 8.0, 100: 6.0, 200: 6.5, 400: 4.5}, 0.01, rates=[0.0, 0.1, 1.0, 0.0])
    row = found([arm("short", {0: 8.0, 50: 7.0, 100: 5.0}, rates=[0.0, 1.0, 0.0]), rising])["tokens"]
    assert row["differences"][0]["verdict"] == "not settled: the learning rate of long was still to fall there"
    # At the end, nothing is still to come; nor where nothing is learnt.
    row = found([arm("short", {0: 8.0, 400: 4.0}, rates=[0.0, 0.0]), rising])["tokens"]
    assert row["differences"][0]["verdict"] == "higher" and row["caveat"] is None


def test_a_failure_or_a_shared_machine_takes_the_win_away() -> None:
    arms = [arm("a", SHORT), arm("b", {at: loss - 0.5 for at, loss in SHORT.items()}, 0.01)]
    assert found(arms)["tokens"]["differences"][0]["verdict"] == "lower"
    rows = found(arms, speeds="2 runs shared the machine", failed={"b": "1 of 4 runs of b failed"})
    assert rows["tokens"]["differences"][0]["verdict"] == "not settled: 1 of 4 runs of b failed"
    rows = found(arms, speeds="2 runs shared the machine")
    assert rows["seconds"]["differences"][0]["verdict"] == "not settled: 2 runs shared the machine"
    assert rows["seconds"]["caveat"] == "Seconds say little: 2 runs shared the machine."
    assert rows["flops"]["differences"][0]["verdict"] == "lower"


def test_nothing_finished_nothing_spent() -> None:
    assert budgets([Arm("a"), Arm("b")], "a", {}, None, 0.005) == []


# ---------------------------------------------------------------- changing places

BASE = {0: 8.0, 100: 6.0, 200: 5.0, 300: 4.5}


def crossing(
    *changes: float, jitter: float, seeds: int = 3, failed: dict[str, str] | None = None, apart: str | None = None
) -> dict[str, Any]:
    other = arm("b", {at: loss + change for (at, loss), change in zip(BASE.items(), changes, strict=True)})
    # Seeds differ by the jitter at every validation, so that intervals have a width.
    other = Arm("b", [run({at: loss - OFFSETS[s] + s * jitter for at, loss in r.curve("val_loss")}, s) for s, r in
                      enumerate(other.records[:seeds])])  # fmt: skip
    (row,) = crossings([arm("a", BASE), other], "a", failed or {}, apart)
    return row


def test_a_change_of_places_that_either_side_shows() -> None:
    row = crossing(0.0, 0.4, 0.1, -0.4, jitter=1e-3)
    assert row["state"] == "shown"
    assert row["tokens"] == pytest.approx(200 + 100 * 0.101 / 0.5)
    assert "from there b is lower" in row["text"]


def test_a_change_of_places_that_may_be_chance() -> None:
    row = crossing(0.0, 0.4, 0.1, -0.4, jitter=0.3)
    assert row["state"] == "possible" and "chance" in row["text"]


def test_no_change_of_places() -> None:
    # What the untrained models differ in, and rounding, is no course.
    row = crossing(-1.0, 0.3, -1e-9, 0.1, jitter=0.0)
    assert row["state"] == "none" and row["tokens"] is None and "a is lower" in row["text"]
    assert "same loss" in crossing(0.5, 0.0, 0.0, 0.0, jitter=0.0)["text"]


def test_what_cannot_be_known() -> None:
    assert crossing(0.0, 0.4, 0.1, -0.4, jitter=0.0, seeds=1)["state"] == "unknown"
    (row,) = crossings([arm("a", BASE), arm("b", {0: 8.0, 150: 6.0, 300: 4.0})], "a", {})
    assert row["state"] == "unknown" and "equal tokens" in row["text"]
    assert not math.isnan(row["tokens"] or 0.0)


@pytest.mark.parametrize(("changes", "state"), [((0.4, 0.1, -0.4), "unknown"), ((0.4, 0.1, 0.2), "none")])
def test_an_arm_with_failed_runs_is_lower_nowhere(changes: tuple[float, ...], state: str) -> None:
    row = crossing(0.0, *changes, jitter=1e-3, failed={"b": "1 of 4 runs of b failed"})
    assert row["state"] == state and row["tokens"] is None
    assert row["text"] == "Not known: 1 of 4 runs of b failed." or "a is lower" in row["text"]


def test_runs_that_are_not_comparable_change_no_places() -> None:
    row = crossing(0.0, 0.4, 0.1, -0.4, jitter=1e-3, apart="not comparable: model different")
    assert row == {"a": "a", "b": "b", "state": "unknown", "tokens": None,
                   "text": "Not known: the runs are not comparable: model different."}  # fmt: skip
