"""Experiments of conf/experiment, scaled down until two steps take seconds."""

import json
from pathlib import Path

import pytest
from tiny import overrides, run_command

from mhc_train.config.compose import compose
from mhc_train.config.validate import validate
from mhc_train.files import read_json_lines

FEW = ("model.layers=3", "train.steps=2", "train.save_every=2", "train.eval_every=2", "diagnostics.every=1")


def test_stress_treats_its_arms_alike() -> None:
    """Deep, unclipped, and otherwise the default optimizer: nothing but the connection differs."""
    arms = [compose(["experiment=stress", f"connection={name}"]) for name in ("residual", "hc", "mhc")]
    for arm in arms:
        assert not validate(arm)
        assert arm.model.layers >= 24 and arm.optim.grad_clip == 0 and arm.train.divergence == 0
        assert (arm.model, arm.data, arm.optim, arm.train) == (
            arms[0].model, arms[0].data, arms[0].optim, arms[0].train
        )  # fmt: skip
    assert [arm.name for arm in arms] == ["stress-residual", "stress-hc", "stress-mhc"]


@pytest.mark.parametrize("connection", ["hc", "mhc"])
def test_two_steps_of_stress(
    connection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["experiment=stress", f"connection={connection}", *overrides(tmp_path), *FEW]
    assert run_command(monkeypatch, "fit", "--json", *given) == 0
    run = Path(json.loads(capsys.readouterr().out)["run"])
    assert "grad_clip: 0.0" in (run / "config.yaml").read_text()
    start, *_, end = read_json_lines(run / "diagnostics" / "measurements.jsonl")
    assert (start["step"], end["step"], len(end["sublayers"])) == (0, 2, 6)
    moved = max(entry["row_error"]["max"] for entry in end["composite"]["forward"])
    # Two steps take rows of free products away from 1; rows of Sinkhorn's are exact.
    assert moved > 1e-2 if connection == "hc" else moved < 1e-5
