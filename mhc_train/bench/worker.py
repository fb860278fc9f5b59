"""One arm of a benchmark, in a process of its own: it builds its model once and measures whenever it is asked to.

Each line of standard input is a JSON document: what to `do`, and with what. Each is answered with one line on standard
output: what was measured, or the `error` that ends the process.
"""

import json
import os
import sys
import time
from typing import Any

import torch

from mhc_train import kernels
from mhc_train.bench.operators import measure_operators
from mhc_train.config.compose import from_dict
from mhc_train.errors import MhcTrainError
from mhc_train.training.device import choose_device
from mhc_train.training.rehearsal import Rehearsal


class Arm:
    """A model with its optimizer, after its first steps.

    Args:
        config: of the training that it stands for, as a plain document.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        typed = from_dict(config)
        # What the process takes by itself says nothing about the model.
        self._before, self._counted = choose_device(typed.train).peak_memory()
        self.rehearsal = Rehearsal(typed)
        self._micro_batch = typed.train.micro_batch * typed.data.seq_len
        _, self._one = map(self.rehearsal.seconds, (self.rehearsal.step(1), self.rehearsal.step(1)))

    def facts(self) -> dict[str, Any]:
        """What there is: the device, the kernels, parameters, and the seconds of a step on one micro-batch."""
        return {
            "device": self.rehearsal.device.reason,
            "kernels": self._kernels(),
            "parameters": sum(parameter.numel() for parameter in self.rehearsal.parallel.model.parameters()),
            "micro_batches": self.rehearsal.micro_batches,
            "one": self._one,
        }

    def _kernels(self) -> str:
        path = self.rehearsal.parallel.model.path
        return kernels.describe(self.rehearsal.device.device, path.stream_dtype, path.streams, path[0].dim)

    def turn(self, micro_batches: int, seconds: float) -> dict[str, float]:
        """Take steps on so many micro-batches each until the time has passed, at least one.

        Returns:
            `wall` and `cpu` seconds of a token, `cpu` being the process' time on all cores; `micro_batches`, `steps`.
        """
        step, steps = self.rehearsal.step(micro_batches), 0
        if self.rehearsal.device.device.type != "cpu":
            self.rehearsal.seconds(self.rehearsal.step(1))  # allocates again what was given back
        started, cpu = time.perf_counter(), time.process_time()
        while steps == 0 or time.perf_counter() - started < seconds:
            self.rehearsal.seconds(step)
            steps += 1
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        tokens = steps * micro_batches * self._micro_batch
        found = {"wall": wall / tokens, "cpu": cpu / tokens, "micro_batches": micro_batches, "steps": steps}
        if self.rehearsal.device.device.type == "cuda":
            torch.cuda.empty_cache()  # the next arm's turn
        return found

    def memory(self) -> dict[str, Any]:
        """The most that was in use until now, beyond what the process takes without a model."""
        return {"peak_memory": self.rehearsal.device.peak_memory()[0] - self._before, "counted": self._counted}

    def operators(self, seconds: float) -> dict[str, Any]:
        """See `operators.measure_operators`."""
        return measure_operators(self.rehearsal, seconds)


def main() -> None:
    """Answer until nobody asks any more."""
    # Whatever else is printed must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    arm: Arm | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if arm is None:
                arm = Arm(asked["config"])
                answer = arm.facts()
            else:
                answer = getattr(arm, asked.pop("do"))(**asked)
        except (MhcTrainError, RuntimeError, ValueError, MemoryError) as error:
            answer = {"error": str(error).strip().partition("\n")[0] or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return


if __name__ == "__main__":
    main()
