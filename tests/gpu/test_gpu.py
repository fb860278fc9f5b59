"""On a CUDA device: a training that meets a NaN, saves, stops and goes on. Skipped where there is none."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import overrides, run_command

from mhc_train.checkpoints import load_checkpoint
from mhc_train.training import step as steps
from mhc_train.training.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_nan_is_refused_while_the_host_goes_on(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, honest = Session.step, steps.token_losses

    def poisoned(self: Session, batch: Any) -> None:
        if self.progression.step == 5:
            monkeypatch.setattr(steps, "token_losses", lambda *given: honest(*given) * math.nan)
        try:
            take(self, batch)
        finally:
            monkeypatch.setattr(steps, "token_losses", honest)

    monkeypatch.setattr(Session, "step", poisoned)
    arguments = [*overrides(tmp_path), "train.device=cuda", f"train.on_nonfinite={policy}"]
    assert run_command(monkeypatch, "fit", *arguments) == (5 if policy == "stop" else 0)
    (run,) = (tmp_path / "runs").iterdir()
    document = json.loads((run / "diagnostics" / "not-finite-step-00000006.json").read_text())
    assert document["loss"] is None and document["ranks"][0]["gradients_not_finite"] == []
    assert load_checkpoint(run).state["skipped"] == ([] if policy == "stop" else [6])


def test_a_resumed_run_goes_on_from_weights_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*overrides(tmp_path), "train.device=cuda"]
    assert run_command(monkeypatch, "fit", *arguments) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run_command(monkeypatch, "fit", "--resume", str(run / "checkpoints" / "step-00000004")) == 0
    assert load_checkpoint(run).state["step"] == 8
