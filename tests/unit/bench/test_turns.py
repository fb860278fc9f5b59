"""A benchmark's plan, its turns with workers that only pretend, and what is made of what they say."""

import os
import signal
from collections import Counter
from typing import Any

import pytest
from tiny import TINY

from mhc_train.bench import turns
from mhc_train.bench.arms import Arm, plan
from mhc_train.errors import ConfigError, Interrupted
from mhc_train.progress import Progress
from mhc_train.report import cost

WALL = {"residual": 1.0, "hc": 1.25, "mhc": 1.5}
"""Seconds of a token; every second round is twice as slow, as on a machine that others use too."""
CPU = {"residual": 3.0, "hc": 3.75, "mhc": 6.0}
MEMORY = {"residual": 1000, "hc": 1250, "mhc": 3000}
ADDED = {"residual": 0, "hc": 32 * 10**9, "mhc": 192 * 10**9}
"""Bytes of a micro-batch, which has 128 tokens."""
COPY = 10**9
MICRO_BATCH, BATCH = 128, 4 * 128


def planned(*overrides: str, asked: tuple[str, ...] = (), every: bool = False) -> list[Arm]:
    return plan([*TINY, *overrides], asked, every, "config", None)


def test_without_arms_the_usual_ones_and_ones_own() -> None:
    assert [arm.name for arm in planned()] == ["residual", "hc", "mhc", "mhc_single_pass"]
    assert [arm.name for arm in planned("connection=shc")] == ["residual", "hc", "mhc", "mhc_single_pass", "shc"]


def test_what_is_said_of_the_connection_is_not_said_of_the_baseline() -> None:
    residual, *others = planned("connection=mhc", "connection.streams=2", "optim.lr=1e-2")
    assert residual.config and residual.config.connection.streams == 1 and residual.config.optim.lr == 1e-2
    assert {arm.config.connection.streams for arm in others if arm.config} == {2}


def test_an_arm_has_overrides_of_its_own() -> None:
    arms = planned("connection.streams=4", asked=("mhc connection.streams=8", "connection=hc"))
    assert [(arm.config.connection.kind, arm.config.connection.streams) for arm in arms[1:] if arm.config] == [
        ("mhc", 8),
        ("hc", 4),
    ]


def test_of_all_options_those_that_cannot_be_say_why() -> None:
    arms = {arm.name: arm for arm in planned("connection.streams=3", every=True)}
    assert arms["ohc"].error and arms["mhc"].error is None
    with pytest.raises(ConfigError):
        planned("connection.streams=3", asked=("ohc",))


class Pretender:
    """Answers like a worker, from tables, but where `fails` has an arm, what it was to do, and how often it had."""

    clock = 0.0
    fails: set[tuple[str, str, int]] = set()
    all: list["Pretender"] = []

    def __init__(self) -> None:
        self.name, self.done, self.ended = "", Counter[str](), False
        self.all.append(self)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert not self.ended
        self.name = str(question["config"]["name"]) if "config" in question else self.name
        doing = question.get("do", "build")
        if (self.name, doing, self.done[doing]) in self.fails:
            raise turns.ArmError("out of memory")
        self.done[doing] += 1
        answer: dict[str, Any] = getattr(self, f"_{doing}")(**question)
        return answer

    def _build(self, **_: Any) -> dict[str, Any]:
        return {"device": "pretended", "kernels": "k", "parameters": 1, "micro_batches": 4, "step": 1.0}

    def _turn(self, share: float, seconds: float, **_: Any) -> dict[str, float]:
        Pretender.clock += 1
        factor = 1 + self.done["turn"] % 2
        wall, cpu = factor * WALL[self.name], factor * CPU[self.name]
        return {"wall": wall, "cpu": cpu, "micro_batches": max(1, int(4 * min(1.0, share))), "steps": 1}

    def _memory(self, **_: Any) -> dict[str, Any]:
        return {"peak_memory": MEMORY[self.name], "counted": "nothing"}

    def _operators(self, **_: Any) -> dict[str, Any]:
        return {"copy_bytes_per_second": COPY, "operators": [], "added_bytes": ADDED[self.name]}

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    Pretender.clock = 0.0
    monkeypatch.setattr(Pretender, "fails", set())
    monkeypatch.setattr(Pretender, "all", [])
    monkeypatch.setattr(turns, "Worker", Pretender)


def document_of(arms: list[Arm], seconds: float = 40.0) -> dict[str, Any]:
    measured = turns.Bench(arms, seconds, clock=lambda: Pretender.clock)
    measured.carry_out()
    assert len(Pretender.all) == len(arms) and all(worker.ended for worker in Pretender.all)
    return measured.document()


def ended(name: str) -> bool:
    return next(worker.ended for worker in Pretender.all if worker.name == name)


def test_ratios_are_of_the_same_round(pretended: None) -> None:
    document = document_of(planned(asked=("hc", "mhc")))
    for clock, ratios in (("step", [1.0, 1.25, 1.5]), ("cpu", [1.0, 1.25, 2.0])):
        found = [arm[f"relative_{clock}_time"] for arm in document["arms"]]
        assert found == [{"median": ratio, "low": ratio, "high": ratio} for ratio in ratios]
    assert document["rounds"] >= turns.LEAST


def test_what_an_arm_costs_is_told_of_a_whole_step(pretended: None) -> None:
    # Three rounds: two of double time, one of single.
    residual, hc, mhc = document_of(planned(asked=("hc", "mhc")), seconds=1.0)["arms"]
    assert mhc["tokens_per_step"] == BATCH
    assert mhc["step_seconds"] == {"median": BATCH * 3.0, "low": BATCH * 2.25, "high": BATCH * 3.0}
    assert mhc["cpu_seconds"] == {"median": BATCH * 12.0, "low": BATCH * 9.0, "high": BATCH * 12.0}
    assert hc["tokens_per_second"] == 1 / 2.5
    assert [arm["peak_memory"] for arm in (residual, hc, mhc)] == [1000, 1250, 3000]
    assert [arm["relative_memory"] for arm in (residual, hc, mhc)] == [1.0, 1.25, 3.0]


def test_what_the_traffic_would_add_is_told_of_the_baselines_step(pretended: None) -> None:
    # 32 GB and 192 GB at 1 GB/s for 128 tokens are 0.25 s and 1.5 s a token; the baseline takes 2 s.
    arms = document_of(planned(asked=("hc", "mhc")), seconds=1.0)["arms"]
    assert [arm["predicted_overhead"] for arm in arms] == [0.0, 0.25 / 2, 1.5 / 2]


def test_what_the_traffic_adds_may_be_unknown(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADDED, "mhc", None)
    document = document_of(planned("connection.where=attention", asked=("mhc",)))
    assert document["arms"][1]["predicted_overhead"] is None
    assert [row[cost.ARMS.index("by traffic")] for row in cost.arm_rows(document)] == ["1.00", "-"]


def test_time_that_is_over_still_gives_three_rounds(pretended: None) -> None:
    assert document_of(planned(asked=("hc",)), seconds=1.0)["rounds"] == turns.LEAST


def test_an_arm_that_fails_does_not_end_the_others(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    Pretender.fails.add(("mhc", "turn", 1))
    measured = turns.Bench(planned(asked=("hc", "mhc")), 40.0, clock=lambda: Pretender.clock)
    found: list[bool] = []
    monkeypatch.setattr(measured, "_time_operators", lambda: found.append(ended("mhc")))
    measured.carry_out()
    assert found == [True]  # its memory is for the others from then on
    document = measured.document()
    _, hc, mhc = document["arms"]
    assert mhc["error"] == "out of memory" and len(mhc["turns"]) == 1 and hc["error"] is None
    assert "mhc: out of memory." in cost.remarks(document)
    assert len(cost.arm_rows(document)) == 3
    assert "<svg" in cost.picture(document)


def test_an_arm_whose_operators_fail_keeps_its_step_times(pretended: None) -> None:
    Pretender.fails |= {(name, "operators", 0) for name in ("residual", "hc", "mhc")}
    document = document_of(planned(asked=("hc", "mhc")))
    assert document["device"] == "pretended" and document["memory_counted"] == "nothing"
    for arm in document["arms"]:
        assert arm["error"] is None and arm["operators_error"] == "out of memory" and arm["peak_memory"]
        assert arm["predicted_overhead"] is None and arm["operators"] == []
    assert document["arms"][2]["relative_step_time"]["median"] == 1.5
    assert "mhc, operators: out of memory." in cost.remarks(document)
    assert [row[1] for row in cost.arm_rows(document)] != ["not measured"] * 3


@pytest.mark.parametrize("doing", ["build", "turn"])
def test_a_baseline_that_fails_leaves_times_without_ratios(doing: str, pretended: None) -> None:
    Pretender.fails.add(("residual", doing, 0))
    document = document_of(planned(asked=("mhc",)))
    residual, mhc = document["arms"]
    assert residual["error"] == "out of memory" and residual["step_seconds"] is None
    assert mhc["step_seconds"] and mhc["peak_memory"] == 3000
    for ratio in ("relative_step_time", "relative_cpu_time", "relative_memory", "predicted_overhead"):
        assert mhc[ratio] is None
    assert document["device"] == "pretended"
    assert "| residual | not measured |" in cost.markdown(document)
    assert "<svg" in cost.picture(document)


def test_turns_are_told_even_where_no_arm_came_to_its_end(pretended: None) -> None:
    Pretender.fails |= {("residual", "turn", 1), ("mhc", "memory", 0)}
    document = document_of(planned(asked=("mhc",)))
    assert document["memory_counted"] is None and document["arms"][1]["step_seconds"]
    assert not [line for line in cost.remarks(document) if line.startswith("Memory")]


def test_where_nothing_can_be_measured_it_is_an_error(pretended: None) -> None:
    Pretender.fails |= {("residual", "build", 0), ("hc", "turn", 0)}
    with pytest.raises(ConfigError, match="residual: out of memory\nhc: out of memory"):
        document_of(planned(asked=("hc",)))


def test_a_signal_while_a_process_starts_ends_that_one_too(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Signalled(Pretender):
        def __init__(self) -> None:
            super().__init__()
            if len(self.all) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(turns, "Worker", Signalled)
    with pytest.raises(Interrupted, match="SIGTERM ended the benchmark"):
        document_of(planned(asked=("hc", "mhc")))
    assert [worker.ended for worker in Pretender.all] == [True, True]


def test_what_was_not_settled_is_said(pretended: None) -> None:
    document = document_of(planned(asked=("hc", "mhc")), seconds=1.0)
    _, hc, mhc = document["arms"]
    hc["relative_step_time"] = {"median": 1.10, "low": 1.09, "high": 1.12}
    mhc["relative_step_time"] = {"median": 1.20, "low": 1.19, "high": 1.21}
    assert not [line for line in cost.remarks(document) if line.startswith("Not ")]
    mhc["relative_step_time"] = {"median": 1.20, "low": 1.05, "high": 1.30}
    unsettled, alike = (line for line in cost.remarks(document) if line.startswith("Not "))
    assert unsettled.startswith("Not settled: mhc.") and "--seconds" in unsettled
    assert alike.endswith("hc and mhc.")


def test_long_names_leave_room_for_the_picture(pretended: None) -> None:
    long = "mhc connection.streams=2 connection.where=attention train.recompute=streams"
    document = document_of(planned(asked=("mhc", long)), seconds=1.0)
    assert len(document["arms"][2]["name"]) > 40
    assert "<svg" in cost.picture(document)  # a warning would be an error


def test_progress_counts_answers_and_learns_how_many_there_will_be(
    pretended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(Progress, "update", lambda self, done, facts: seen.append((done, self.total)))
    document = document_of(planned(asked=("hc",)), seconds=60.0)
    asked = 2 * (document["rounds"] + 3)
    assert seen[0] == (0, 2 * (turns.LEAST + 3)) and seen[-1] == (asked - 1, asked)
    assert [done for done, _ in seen] == list(range(asked))
