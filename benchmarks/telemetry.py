"""What the instrument costs a training: a step that is looked through, and a whole measurement, beside a plain step."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from connection_cost import cpu_model
from record import significant, write_json, write_table

from mhc_train.config.compose import compose
from mhc_train.diagnostics import measure, observe
from mhc_train.diagnostics.watch import Watch, line
from mhc_train.model import Transformer
from mhc_train.model.initialise import initial_path
from mhc_train.ranks import Ranks
from mhc_train.schema import Config
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, take_step

TRAININGS = {
    "quickstart": ("experiment=quickstart", "connection=mhc"),
    "default": ("connection=mhc",),
    "small": ("model=small", "connection=mhc"),
}
"""What is trained, by name: the first compresses a training into a hundred steps, the others have the defaults."""
COMMON = ("train.threads=1", "train.device=cpu", "tracker=none")


class Training:
    """One model, and the three things whose time is told apart."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = Transformer(config.model, config.connection, config.data.vocab_size, config.seed)
        self.parallel = lay_out(self.model, config, Ranks())
        self.optimizer, self.guard = build_optimizer(self.model, config.optim), Guard(hold=True)
        self.initial = initial_path(config.model, config.connection, config.seed).requires_grad_(False)
        self.watch = Watch(self.model, config.diagnostics.watch_tokens, config.data.seq_len, self.initial)
        shape = (config.train.batch_tokens // config.data.seq_len, config.data.seq_len + 1)
        self.batch = torch.randint(config.data.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        self.device, self.bytes = choose_device(config.train), 0

    def step(self, watch: Watch | None = None) -> None:
        train, clip = self.config.train, self.config.optim.grad_clip
        take_step(self.parallel, self.optimizer, self.guard, self.batch, train.micro_batch, self.device, clip, watch)

    def watched_step(self) -> None:
        self.step(self.watch)
        self.bytes = len(json.dumps(line(measure(self.watch.observation()))))

    def measurement(self) -> None:
        rows = max(1, self.config.diagnostics.tokens // self.config.data.seq_len)
        json.dumps(measure(observe(self.model, self.batch[:rows], self.initial)))


def seconds(act: Callable[[], None]) -> float:
    """Of CPU time of this process, whatever else the machine does."""
    started = time.process_time()
    act()
    return time.process_time() - started


def costs(config: Config, rounds: int) -> dict[str, Any]:
    """Seconds, medians of interleaved rounds, and shares of the time of the steps that they are for."""
    training = Training(config)
    acts = {"step": training.step, "watched_step": training.watched_step, "measurement": training.measurement}
    for act in acts.values():
        act()
    turns = [{name: seconds(act) for name, act in acts.items()} for _ in range(rounds)]
    found: dict[str, Any] = {name: statistics.median(turn[name] for turn in turns) for name in acts}
    # Differences within a round: what befalls the machine for longer befalls both.
    found["look"] = statistics.median(turn["watched_step"] - turn["step"] for turn in turns)
    diagnostics = config.diagnostics
    found["look_share"] = found["look"] / found["step"] / diagnostics.watch_every
    found["measurement_share"] = found["measurement"] / found["step"] / diagnostics.every
    every = {"watch_every": diagnostics.watch_every, "measured_every": diagnostics.every, "line_bytes": training.bytes}
    return every | {name: significant(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: costs(compose([*typed, *COMMON]), arguments.rounds) for name, typed in TRAININGS.items()}
    cells = [
        [
            name, f"{row['step']:.3f}",
            f"{row['look']:.3f}", str(row["watch_every"]), f"{row['look_share']:.2%}", f"{row['line_bytes'] / 1e3:.0f}",
            f"{row['measurement']:.3f}", str(row["measured_every"]), f"{row['measurement_share']:.2%}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    for texts in cells:
        print("  ".join(texts))
    if not arguments.record:
        return
    here = {"cpu": cpu_model(), "python": platform.python_version(), "torch": version("torch"), "threads": 1}
    write_json("telemetry", {"environment": here, "rounds": arguments.rounds, "trainings": rows})
    intro = (
        f"Made by `python benchmarks/telemetry.py --record` ({here['cpu']}, torch {here['torch']}, one thread, eager): "
        f"process CPU time, seconds, medians of {arguments.rounds} interleaved rounds. A look is what a step that is "
        "looked through takes longer, the line that it leaves included."
    )
    header = (
        "training", "step", "look", "every", "share", "line, kB", "whole measurement", "every", "share"
    )  # fmt: skip
    write_table("telemetry", intro, header, cells)


if __name__ == "__main__":
    main()
