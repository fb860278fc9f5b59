"""What is measured of one arm: growth from before its model, and time of whole steps."""

import pytest
from tiny import TINY

from mhc_train.bench import measurements
from mhc_train.bench.measurements import Measurements
from mhc_train.config.compose import compose
from mhc_train.schema import Config
from mhc_train.training.device import Device
from mhc_train.training.rehearsal import Rehearsal, Seconds


def test_memory_is_what_grew_since_a_small_model_had_taken_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    peaks = iter([700, 1000])

    class Watched(Rehearsal):
        def __init__(self, config: Config) -> None:
            events.append((config.model.dim, config.model.layers, config.connection.kind))
            super().__init__(config)

    monkeypatch.setattr(measurements, "Rehearsal", Watched)
    monkeypatch.setattr(Device, "reset_peak_memory", lambda self: events.append("reset"))
    monkeypatch.setattr(Device, "peak_memory", lambda self: (next(peaks), "all"))
    arm = Measurements(compose([*TINY, "connection=mhc"]))
    assert events == [(64, 2, "mhc"), "reset", (32, 2, "mhc")]
    assert arm.memory() == {"peak_memory": 300, "counted": "all"}


def test_a_turn_tells_seconds_of_a_token_of_a_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Measurements(compose([*TINY, "train.batch_tokens=512"]))
    asked: list[int] = []

    def step(micro_batches: int) -> object:
        asked.append(micro_batches)
        return lambda: Seconds(512.0, 1024.0)

    monkeypatch.setattr(arm.rehearsal, "step", step)
    assert arm.turn(0.5, 0.0) == {"wall": 1.0, "cpu": 2.0, "micro_batches": 2, "steps": 1}
    assert arm.turn(9.0, 0.0)["micro_batches"] == 4 and arm.turn(0.1, 0.01)["steps"] > 1
    assert asked == [2, 4, 1]
