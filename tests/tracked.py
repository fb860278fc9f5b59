"""A run without a training, and a W&B without a network, which the sending processes of trackers import."""

from pathlib import Path
from typing import Any

import pytest

from mhc_train.config.compose import compose, to_yaml
from mhc_train.files import append_json_line, read_json_lines
from mhc_train.runs import Run, create_run, new_run_path

SERVICES = Path(__file__).parent / "services"


class Server:
    """The service of services/wandb.py, seen from outside."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = directory / "server"
        self.home.mkdir()
        monkeypatch.setenv("FAKE_WANDB", str(self.home))
        monkeypatch.setenv("PYTHONPATH", str(SERVICES), prepend=":")

    def script(self, *lines: str) -> None:
        """What the next calls meet: `log refuse`, `init hang`, `always finish hang`."""
        (self.home / "script").write_text("\n".join(lines))

    def received(self, run: Run) -> list[dict[str, Any]]:
        return read_json_lines(self.home / f"{run.path.name}.jsonl")

    def calls(self) -> list[str]:
        path = self.home / "calls"
        return path.read_text().split() if path.exists() else []


def new_run(directory: Path, *overrides: str) -> Run:
    config = compose(["tracker=wandb", "tracker.mode=online", "tracker.timeout=20", *overrides])
    return create_run(new_run_path(directory / "runs", "test"), to_yaml(config), [])


def write_metrics(run: Run, *steps: int) -> None:
    for step in steps:
        append_json_line(run.metrics, {"step": step, "tokens": 10 * step, "train_loss": 1 / (step + 1)})


def measured(step: int, sublayers: int = 1) -> dict[str, Any]:
    """What a measurement must have to become curves, and where there are several sublayers pictures too."""
    gain = {"max": float(step), "median": 0.5}
    row = dict.fromkeys(
        ("forward_gain", "backward_gain", "difference_gain", "energy_gain", "gradient_energy_gain"), gain
    )
    more = {"energy_out": {"mean": 2.0}}
    if sublayers > 1:
        more["mean_maps"] = {"res": [[0.9, 0.1], [0.1, 0.9]]}
    rows = [row | more | {"name": f"layers.{index}"} for index in range(sublayers)]
    composites = [row | {"mean_map": [[0.5, 0.5], [0.5, 0.5]]}] * sublayers
    return {"step": step, "sublayers": rows, "composite": {"forward": composites, "backward": composites}}


def write_measurement(run: Run, step: int) -> None:
    """A line with everything that becomes a curve; the forward gain is the step."""
    append_json_line(run.measurements, measured(step))
