"""What the runs of an arm will cost, before they start: sizes that are known, times from a trial's measured steps."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from mhc_train.errors import Interrupted
from mhc_train.model.cost import parameters_by_part, training_flops_per_token
from mhc_train.processes import PATIENCE, fate, understood
from mhc_train.schema import Config
from mhc_train.stop_signals import ended_by_signals
from mhc_train.training.plan import skeleton_of

TRIAL = (sys.executable, "-m", "mhc_train.experiments.trial")
NOT_ASKED = "not estimated, as --no-estimate asks"


@dataclass(frozen=True)
class Estimate:
    """The cost of one run; times are null where `unknown` says why."""

    parameters: int
    flops_per_token: int
    unknown: str | None = None
    """Why there are no times."""
    seconds_per_step: float | None = None
    """Measured."""
    steps_measured: int = 0
    seconds_per_run: float | None = None
    """Start-up, steps and validations; without reading text, measurements, checkpoints, and the tracker."""
    peak_memory: int | None = None
    """Bytes, measured in the trial."""
    peak_memory_counted: str | None = None


def estimate(config: Config, measured: bool = True) -> Estimate:
    """What a run of this configuration costs on this machine.

    Args:
        config: of the run.
        measured: whether to take a trial's steps, in a process of its own; without it, times are unknown.
    """
    skeleton = skeleton_of(config)
    parameters = sum(parameters_by_part(skeleton).values())
    flops = training_flops_per_token(skeleton, config.data.seq_len)
    if not measured:
        return Estimate(parameters, flops, NOT_ASKED)
    try:
        trial = run_trial(config)
    except TrialError as error:
        return Estimate(parameters, flops, str(error))
    seconds = trial["start_up"] + config.train.steps * trial["step"] + validations(config) * trial["validation"]
    return Estimate(
        parameters,
        flops,
        None,
        trial["step"],
        trial["steps"],
        seconds,
        trial["peak_memory"],
        trial["peak_memory_counted"],
    )


def validations(config: Config) -> int:
    """How often a run is validated: at the start, at every `eval_every`-th step, and at the last."""
    steps, every = config.train.steps, config.train.eval_every
    return 1 + -(-steps // every)


class TrialError(Exception):
    """A trial could not measure; the message is the reason."""


def run_trial(config: Config) -> dict[str, Any]:
    """The measurements of a trial (see `trial.measure`).

    Raises:
        TrialError: there are none, and why.
        Interrupted: a stop signal came.
    """
    asked = json.dumps({"config": asdict(config), "started": time.time()})
    try:
        with ended_by_signals(_interrupted):  # and then the trial is killed
            trial = subprocess.run(TRIAL, input=asked, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise TrialError(f"its trial took longer than {PATIENCE} seconds") from None
    if trial.returncode:
        raise TrialError(fate(trial.returncode, trial.stderr))
    answer = understood(trial.stdout)
    if "error" in answer:
        raise TrialError(str(answer["error"]))
    return answer


def _interrupted(name: str) -> Interrupted:
    return Interrupted(f"{name} ended the estimate; nothing was begun. --no-estimate leaves it out.")
