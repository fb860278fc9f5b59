"""Whole training steps for `gpu.py`: what mHC adds to a residual model's, in time and in memory, side by side."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from gpu_kernels import Scale, milliseconds, summary
from record import significant

from mhc_train.config.compose import compose
from mhc_train.errors import MhcTrainError
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, key_names
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, take_step

COMMON = ("data=fineweb_edu", "tracker=none", "data.seq_len=4096", "train=gpu", "train.micro_batch=2")
FULL = {
    "1b, C = 2048": (*COMMON, "model=1b", "train.batch_tokens=16384"),
    "4 layers, C = 4096": (
        *COMMON, "model=1b", "model.dim=4096", "model.layers=4", "model.ffn_dim=11264", "train.batch_tokens=16384",
    ),
}  # fmt: skip
"""Models, by what the table calls them."""
SMOKE = {"tiny": ("model=tiny", "tracker=none", "data.seq_len=32", "train.batch_tokens=512", "train.device=cpu")}
BASELINE = "residual"


class Training:
    """A model, its optimizer and a batch: enough to take steps."""

    def __init__(self, typed: list[str]) -> None:
        self.config: Config = compose(typed)
        train, data = self.config.train, self.config.data
        self.device = choose_device(train)
        self.model = Transformer(self.config.model, self.config.connection, data.vocab_size, self.config.seed)
        self.parallel = lay_out(self.model, self.config, Ranks(), self.device.device)
        self.optimizer, self.guard = build_optimizer(self.model, self.config.optim), Guard(hold=True)
        shape = (train.batch_tokens // data.seq_len, data.seq_len + 1)
        self.batch = torch.randint(data.vocab_size, shape, generator=torch.Generator().manual_seed(0))

    def step(self) -> None:
        train = self.config.train
        take_step(
            self.parallel, self.optimizer, self.guard, self.batch, train.micro_batch, self.device,
            self.config.optim.grad_clip,
        )  # fmt: skip

    def peak(self) -> int:
        """Bytes of a step: what it allocates on top of all that is there, and its own weights and moments."""
        if self.device.device.type == "cpu":
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step()
        own = sum(tensor.nbytes for tensor in self.model.parameters())
        moments = sum(value.nbytes for state in self.optimizer.state.values() for value in state.values())
        return torch.cuda.max_memory_allocated() - before + own + moments


def arms(typed: tuple[str, ...], recompute: list[str]) -> dict[str, list[str]]:
    """What is typed for the baseline, and for mHC with each way of recomputation."""
    half = ["train.stream_precision=bfloat16"] if "train.stream_precision" in key_names() else []
    mhc = {f"mhc, recompute {how}": [*typed, *half, "connection=mhc", f"train.recompute={how}"] for how in recompute}
    return {BASELINE: [*typed, *half, "connection=residual"], **mhc}


def built(typed: tuple[str, ...], recompute: list[str]) -> tuple[dict[str, Training], dict[str, str]]:
    """The arms that can be had here, warmed up, and why others cannot."""
    trainings, refused = {}, {}
    for name, words in arms(typed, recompute).items():
        try:
            training = Training(words)
            for _ in range(3):
                training.step()
        except (MhcTrainError, torch.OutOfMemoryError) as error:
            refused[name] = str(error)
            continue
        trainings[name] = training
    return trainings, refused


def steps(typed: tuple[str, ...], recompute: list[str], scale: Scale, in_time: Callable[[], bool]) -> dict[str, Any]:
    """Every arm's time and peak memory, and their ratios to the baseline's within the same rounds."""
    trainings, refused = built(typed, recompute)
    peaks = {name: training.peak() for name, training in trainings.items()}
    rounds: list[dict[str, float]] = []
    while len(rounds) < min(scale.repeats, 12) and (len(rounds) < 2 or in_time()):
        rounds.append({name: milliseconds(one.step, scale.device) for name, one in trainings.items()})
    found = {}
    for name in trainings:
        row: dict[str, Any] = {**summary([turn[name] for turn in rounds]), "peak_bytes": peaks[name]}
        if BASELINE in trainings:
            row["time_ratio"] = significant(statistics.median(turn[name] / turn[BASELINE] for turn in rounds))
            row["memory_ratio"] = significant(peaks[name] / peaks[BASELINE]) if peaks[BASELINE] else None
        found[name] = row
    return {"rounds": len(rounds), "arms": found, "refused": refused}
