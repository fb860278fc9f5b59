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

import torch
from torch import Tensor

from mhc_train.config.compose import from_dict
from mhc_train.errors import MhcTrainError
from mhc_train.model import Transformer
from mhc_train.model.recompute import segment_length
from mhc_train.ranks import Ranks
from mhc_train.schema import Config
from mhc_train.training.device import Device, check_float64, choose_device
from mhc_train.training.distributed import Parallel, check_parallel, lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, take_step, validation_loss

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
    device = choose_device(config.train)
    parallel = _laid_out(config, device)
    optimizer = build_optimizer(parallel.model, config.optim)
    guard, size, clip = Guard(hold=False), config.train.micro_batch, config.optim.grad_clip
    micro_batches = max(1, config.train.batch_tokens // (config.data.seq_len * size))

    def steps_of(parts: int) -> Callable[[], object]:
        batch = _tokens(config, parts * size)
        return lambda: take_step(parallel, optimizer, guard, batch, size, device, clip)

    def validation() -> object:
        return validation_loss(parallel, _tokens(config, size), size, device)

    _, one, _ = (_seconds(warm_up, device) for warm_up in (steps_of(1), steps_of(1), validation))
    start_up = time.time() - started
    parts = min(micro_batches, max(1, int(SECONDS / one / 2)))
    steps, validations = _several(steps_of(parts), device), _several(validation, device)
    memory, counted = device.peak_memory()
    return {
        "start_up": start_up,
        "step": statistics.median(steps) * micro_batches / parts,
        "steps": len(steps),
        "validation": statistics.median(validations) * config.data.validation_tokens / (config.data.seq_len * size),
        "peak_memory": memory,
        "peak_memory_counted": counted,
    }


def _laid_out(config: Config, device: Device) -> Parallel:
    check_parallel(config.train, Ranks(), device.device)
    model = Transformer(config.model, config.connection, config.data.vocab_size, config.seed)
    check_float64(device, model.path.float64)
    model.recompute = segment_length(config.train.recompute, config.connection.streams, model.sublayers)
    return lay_out(model, config, Ranks(), device.device)


def _tokens(config: Config, sequences: int) -> Tensor:
    return torch.randint(config.data.vocab_size, (sequences, config.data.seq_len + 1))


def _several(act: Callable[[], object], device: Device) -> list[float]:
    """The seconds of each of a few times."""
    times = [_seconds(act, device)]
    while len(times) < MOST and sum(times) < SECONDS:
        times.append(_seconds(act, device))
    return times


def _seconds(act: Callable[[], object], device: Device) -> float:
    """The seconds that something takes, to its end on the device."""
    started = time.perf_counter()
    act()
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    elif device.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started


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
