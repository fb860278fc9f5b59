"""What is measured of one arm, in its process: steps, memory, operators."""

import gc
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from mhc_train import kernels
from mhc_train.bench.operators import measure_operators
from mhc_train.schema import Config
from mhc_train.training.rehearsal import Rehearsal


class Measurements:
    """Those of a model with its optimizer, after its first steps.

    Args:
        config: of the training that it stands for.
    """

    def __init__(self, config: Config) -> None:
        self._before = _memory_without_model(config)
        self.rehearsal = Rehearsal(config)
        self._tokens = self.rehearsal.micro_batches * config.train.micro_batch * config.data.seq_len
        step = self.rehearsal.step(1)
        _, self._step = step(), step().wall

    def facts(self) -> dict[str, Any]:
        """What there is: the device, the kernels, parameters, micro-batches of a step and, as a guess, its seconds."""
        return {
            "device": self.rehearsal.device.reason,
            "kernels": self._kernels(),
            "parameters": sum(parameter.numel() for parameter in self.rehearsal.parallel.model.parameters()),
            "micro_batches": self.rehearsal.micro_batches,
            "step": self._step,
        }

    def _kernels(self) -> str:
        path = self.rehearsal.parallel.model.path
        return kernels.describe(self.rehearsal.device.device, path.stream_dtype, path.streams, path[0].dim)

    def turn(self, share: float, seconds: float) -> dict[str, float]:
        """Take steps on a share of the global batch each until the time has passed, at least one.

        Returns:
            `wall` and `cpu` seconds of a token of a whole step, `cpu` being the process' time on all cores;
            `micro_batches` that were taken at a time, and how many `steps`.
        """
        micro_batches = self.rehearsal.part(share)
        step = self.rehearsal.step(micro_batches)
        if self.rehearsal.device.device.type != "cpu":
            self.rehearsal.step(1)()  # allocates again what was given back
        deadline = time.perf_counter() + seconds
        taken = [step()]
        while time.perf_counter() < deadline:
            taken.append(step())
        if self.rehearsal.device.device.type == "cuda":
            torch.cuda.empty_cache()  # the next arm's turn
        wall, cpu = (statistics.fmean(clock) / self._tokens for clock in zip(*taken, strict=True))
        return {"wall": wall, "cpu": cpu, "micro_batches": micro_batches, "steps": len(taken)}

    def memory(self) -> dict[str, Any]:
        """The most that was in use at any time until now, beyond what was before the model, and what was `counted`."""
        peak, counted = self.rehearsal.device.peak_memory()
        return {"peak_memory": peak - self._before, "counted": counted}

    def operators(self, seconds: float) -> dict[str, Any]:
        """See `operators.measure_operators`."""
        return measure_operators(self.rehearsal, seconds)


def _memory_without_model(config: Config) -> int:
    """Bytes in use when code, kernels and their buffers are there, but no model; the peak starts anew from there."""
    rehearsal = Rehearsal(_in_small(config))
    device, step = rehearsal.device, rehearsal.step(1)
    step(), step()
    del rehearsal, step
    gc.collect()
    device.reset_peak_memory()
    return device.peak_memory()[0]


def _in_small(config: Config) -> Config:
    """A training with the same connection, precision and layers, as small as its kernels take it.

    It is not compiled, since that would have to be done again for the model itself.
    """
    return replace(
        config,
        model=replace(config.model, dim=kernels.ANY_WIDTH, heads=2, kv_heads=1, ffn_dim=64),
        data=replace(config.data, seq_len=32, vocab_size=300),
        train=replace(config.train, batch_tokens=32, micro_batch=1, compile=False),
    )
