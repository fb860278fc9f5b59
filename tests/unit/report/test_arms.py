"""What an arm's numbers are taken over: steps of its own size, and the seed that keeps a law least well."""

from pathlib import Path

import pytest
from fake_runs import write_run

from mhc_train.report.comparison import compare_runs


def test_a_larger_batch_takes_longer_at_the_same_speed(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, measurements=0, config={"train": {"batch_tokens": size}}) for size in (1000, 3000)]
    arms = compare_runs(paths)["arms"]
    assert arms[0]["tokens_per_second"] == arms[1]["tokens_per_second"]
    assert [arm["relative_step_time"] for arm in arms] == pytest.approx([1.0, 3.0])


def test_of_equal_verdicts_the_worst_value_is_shown(tmp_path: Path) -> None:
    # Of four sublayers that scale all by a factor, the composite has its fourth power.
    gains = (1.9, 2.0, 1.95)
    paths = [write_run(tmp_path, "hc", seed, gain=gain, measurements=1) for seed, gain in enumerate(gains)]
    paths += [write_run(tmp_path, "mhc", seed, gain=gain, measurements=1) for seed, gain in enumerate((0.3, 0.2, 0.25))]
    free, leaking = compare_runs(paths)["arms"]
    law = {row["law"]: row for row in free["laws"]}["closure_forward"]
    assert law["verdicts"] == {"0": "fail", "1": "fail", "2": "fail"}
    assert law["seed"] == 1 and law["evidence"]["value"] == pytest.approx(16.0)
    # Of what is the worse the smaller it is, the smallest.
    law = {row["law"]: row for row in leaking["laws"]}["no_collapse"]
    assert law["evidence"]["below"] and law["seed"] == 1
