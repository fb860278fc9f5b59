"""A trial: a few steps of a training on random tokens, in a process of its own, to learn what the training will cost.

Reads one JSON document from standard input (`config`, and `started`, the time at which the process was), and writes
one to standard output: the measurements, or the `error` that kept it from measuring.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from mhc_train.config.compose import from_dict
from mhc_train.errors import MhcTrainError
from mhc_train.schema import Config
from mhc_train.training.rehearsal import Rehearsal

SECONDS, MOST = 1.0, 5
"""Steps are timed until this much time has passed, or so many are: the first to come, after at least one."""


def measure(config: Config, started: float) -> dict[str, Any]:
    """What a training of this configuration costs here, measured; the vocabulary has the configured size.

    A step is the training's own, on fewer micro-batches where a whole batch would take too long.

    Args:
        config: of the training.
        started: when this process was, by `time.time`.

    Returns:
        `start_up` (seconds until the first steps were taken, with imports and compilation), `step` and `validation`
        (seconds of a step, and of a validation on the configured number of tokens), `steps` (how many were timed),
        `peak_memory` (bytes, and `peak_memory_counted`: of what).

    Raises:
        ConfigError: the device is not there, or cannot compute this.
    """
    rehearsal = Rehearsal(config)
    step = rehearsal.step(1)
    _, whole, _ = step(), step().wall, rehearsal.validation()
    start_up = time.time() - started
    step = rehearsal.step(rehearsal.part(SECONDS / 2 / whole))
    steps = _several(lambda: step().wall)
    validations = _several(lambda: rehearsal.seconds(rehearsal.validation))
    memory, counted = rehearsal.device.peak_memory()
    validated = config.data.validation_tokens / (config.data.seq_len * config.train.micro_batch)
    return {
        "start_up": start_up,
        "step": statistics.median(steps),
        "steps": len(steps),
        "validation": statistics.median(validations) * validated,
        "peak_memory": memory,
        "peak_memory_counted": counted,
    }


def _several(measured: Callable[[], float]) -> list[float]:
    """What is measured each of a few times."""
    deadline = time.monotonic() + SECONDS
    found = [measured()]
    while len(found) < MOST and time.monotonic() < deadline:
        found.append(measured())
    return found


def main() -> None:
    """Measure what standard input asks for."""
    asked = json.load(sys.stdin)
    try:
        answer = measure(from_dict(asked["config"]), asked["started"])
    except (MhcTrainError, RuntimeError, ValueError) as error:  # for want of memory, too
        answer = {"error": str(error).strip().partition("\n")[0]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
