"""What a benchmark's operators are measured against: bytes counted by hand, and a copy that is timed as they are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import TINY

from mhc_train.bench import operators
from mhc_train.bench.operators import AT_ONCE, LEAST, Boundary, boundaries, measure_operators
from mhc_train.config.compose import compose
from mhc_train.training.rehearsal import Rehearsal

TOKENS, WIDTH, SUBLAYERS = 128, 32, 4
UNIT = TOKENS * WIDTH * 4
"""Bytes of one stream of a micro-batch, in float32."""
NUMBER = TOKENS * 4
"""Bytes of a coefficient of a micro-batch."""


def rehearsal(*overrides: str) -> Rehearsal:
    return Rehearsal(compose([*TINY, *overrides]))


def boundary(*overrides: str) -> Boundary:
    return next(boundaries(rehearsal(*overrides)))


def test_what_mhc_adds_to_a_residual_by_hand() -> None:
    features, weight = 24, 24 * 4 * WIDTH * 4  # 4 + 4 + 16 logits
    read = UNIT * (5 + 9) + NUMBER * (features + 1 + 2 * features + 1) + 3 * weight
    write = UNIT * (9 + 14) + NUMBER * (20 + 2 * 20)
    cross = UNIT * (14 + 15) + NUMBER * (3 * (20 + features) + 2) + 3 * weight
    residual = UNIT * (3 + 3)
    assert boundary("connection=mhc").added_bytes() == read + 3 * cross + write - SUBLAYERS * residual


def test_what_static_hyper_connections_add_by_hand() -> None:
    """Their read weights are there before, and nothing is projected."""
    read = UNIT * (5 + 9) + NUMBER * 3 * 4
    write = UNIT * (9 + 14) + NUMBER * 3 * 20
    cross = UNIT * (10 + 15) + NUMBER * 3 * (20 + 4)
    assert boundary("connection=hc_static").added_bytes() == read + 3 * cross + write - SUBLAYERS * 6 * UNIT


def test_what_streams_that_are_not_mixed_add_by_hand() -> None:
    features, weight = 8, 8 * 4 * WIDTH * 4
    read = UNIT * (5 + 9) + NUMBER * (3 * features + 2) + 3 * weight
    write = UNIT * (9 + 6) + NUMBER * 3 * 4
    cross = UNIT * (14 + 15) + NUMBER * (3 * (4 + features) + 2) + 3 * weight
    assert boundary("connection=ihc").added_bytes() == read + 3 * cross + write - SUBLAYERS * 6 * UNIT


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["connection=mhc"], False),
        (["connection=mhc_single_pass"], True),
        (["connection=mhc", "connection.dynamic=false"], True),
    ],
)
def test_who_knows_the_read_weights_before_is_asked(overrides: list[str], given: bool) -> None:
    forward = boundary(*overrides).minimal_bytes("cross", "forward")
    assert (forward < 14 * UNIT) == given


@pytest.mark.parametrize("overrides", [["connection.where=attention"], ["connection.where=feedforward"]])
def test_of_a_path_without_boundaries_nothing_is_known(overrides: list[str]) -> None:
    found = measure_operators(rehearsal("connection=mhc", *overrides), 0.0)
    assert found == {"copy_bytes_per_second": None, "operators": [], "added_bytes": None}


def test_a_path_of_two_kinds_has_operators_but_no_sum() -> None:
    assert boundary("connection=mhc", "connection.first_layer=1").added_bytes() is None


def test_the_baseline_adds_nothing() -> None:
    assert measure_operators(rehearsal("connection=residual"), 0.0)["added_bytes"] == 0


@pytest.mark.parametrize(("device", "count"), [("cpu", 1), ("meta", AT_ONCE)])
def test_a_copy_is_timed_like_an_operator(device: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever is no CPU, here a device without content, several are under way before it is waited for."""
    monkeypatch.setattr(operators, "COPIED", 64)
    calls: list[int] = []

    class Case:
        operator, wanted = "read", (torch.zeros(1, requires_grad=True),)

        def call(self) -> list[torch.Tensor]:
            calls[-1] += 1
            return [self.wanted[0] * 2]

    def seconds(act: Any) -> float:
        calls.append(0)
        act()
        return 12.0

    clocked: Any = SimpleNamespace(device=SimpleNamespace(device=torch.device(device)), seconds=seconds)
    copied, times = operators._rounds(SimpleNamespace(rehearsal=clocked, cases=lambda: [Case()]), 0.0)  # type: ignore
    assert copied == [12 / count] * LEAST
    assert times == {("read", "forward"): [12 / count] * LEAST, ("read", "backward"): [12 / count] * LEAST}
    assert set(calls) == {0, count}
