"""A benchmark's plan, its turns with workers that only pretend, and what is made of what they say."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tiny import TINY

from mhc_train.bench import turns
from mhc_train.bench.arms import Arm, plan
from mhc_train.errors import ConfigError, Interrupted
from mhc_train.report import cost

SPEED = {"residual": 1.0, "hc": 1.25, "mhc": 1.5}
"""Seconds of a token; every second round is twice as slow, as on a machine that others use too."""


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
    """Answers like a worker, from a table; the arm named `broken` fails in its second turn."""

    clock = 0.0

    def __init__(self) -> None:
        self.name, self.turns, self.ended = "", 0, False

    def ask(self, **question: Any) -> dict[str, Any]:
        if "config" in question:
            self.name = str(question["config"]["name"])
            return {"device": "pretended", "kernels": "k", "parameters": 1, "micro_batches": 4, "one": 0.25}
        if question["do"] == "turn":
            return self._turn(**question)
        if question["do"] == "memory":
            return {"peak_memory": 1000, "counted": "nothing"}
        return {"copy_bytes_per_second": 1e9, "operators": [], "added_bytes": 0 if self.name == "residual" else 10**6}

    def _turn(self, micro_batches: int, seconds: float, **_: Any) -> dict[str, float]:
        self.turns += 1
        Pretender.clock += 1
        if self.name == "broken" and self.turns == 2:
            raise turns.ArmError("out of memory")
        wall = SPEED.get(self.name, 1.0) * (1 + self.turns % 2)
        return {"wall": wall, "cpu": wall, "micro_batches": micro_batches, "steps": 1}

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Pretender.clock = 0.0
    monkeypatch.setattr(turns, "Worker", Pretender)
    yield


def document_of(arms: list[Arm], seconds: float = 40.0) -> dict[str, Any]:
    measured = turns.Bench(arms, seconds, clock=lambda: Pretender.clock)
    measured.carry_out()
    assert all(worker.ended for worker in measured.workers.values())
    return measured.document()


def test_ratios_are_of_the_same_round(pretended: None) -> None:
    document = document_of(planned(asked=("hc", "mhc")))
    assert [arm["relative_step_time"]["median"] for arm in document["arms"]] == [1.0, 1.25, 1.5]
    assert all(arm["relative_step_time"]["low"] == arm["relative_step_time"]["high"] for arm in document["arms"])
    assert document["arms"][2]["step_seconds"]["low"] < document["arms"][2]["step_seconds"]["high"]
    assert document["rounds"] >= turns.LEAST


def test_time_that_is_over_still_gives_three_rounds(pretended: None) -> None:
    assert document_of(planned(asked=("hc",)), seconds=1.0)["rounds"] == turns.LEAST


def test_an_arm_that_fails_does_not_end_the_others(pretended: None) -> None:
    document = document_of(planned(asked=("hc", "mhc name=broken")))
    broken = document["arms"][2]
    assert broken["error"] == "out of memory" and document["arms"][1]["error"] is None
    assert "out of memory." in " ".join(cost.remarks(document))
    assert len(cost.arm_rows(document)) == 3
    assert "<svg" in cost.picture(document)


def test_where_nothing_can_be_measured_it_is_an_error(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Pretender, **_: Any) -> dict[str, Any]:
        raise turns.ArmError("no memory at all")

    monkeypatch.setattr(Pretender, "ask", refuse)
    with pytest.raises(ConfigError, match="no memory at all"):
        document_of(planned(asked=("hc",)))


def test_a_signal_while_a_process_starts_ends_that_one_too(pretended: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Pretender] = []

    class Signalled(Pretender):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(turns, "Worker", Signalled)
    with pytest.raises(Interrupted, match="SIGTERM ended the benchmark"):
        document_of(planned(asked=("hc", "mhc")))
    assert [worker.ended for worker in started] == [True, True]
