"""What hyper-connections add to a training step on one CPU thread: a fixed case, interleaved, in process CPU time."""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from connection_cost import cpu_model
from record import significant, write_json, write_table

from mhc_train import kernels
from mhc_train.config.compose import compose
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, take_step

LAYERS, VOCABULARY, BATCH, SEQ, HEAD = 6, 2048, 8, 256, 32
WIDTHS = (128, 192, 256)
RESIDUAL = "residual"
ARMS = (RESIDUAL, "hc", "mhc", "mhc_single_pass")
TARGET, TARGET_WIDTH = 1.25, 192
"""The largest share of the residual's step that hc's and mhc's may take, at this width."""
WARM_UP = 2


def overrides(arm: str, width: int) -> list[str]:
    """The case: float32, n = 4, multi-head attention with heads of 32, a feed-forward of 8/3 the width."""
    heads = width // HEAD
    shape = {
        "dim": width, "layers": LAYERS, "heads": heads, "kv_heads": heads, "ffn_dim": 8 * round(width / 3),
        "max_seq_len": SEQ,
    }  # fmt: skip
    return [
        f"connection={arm}", *(f"model.{key}={value}" for key, value in shape.items()), f"data.seq_len={SEQ}",
        f"data.vocab_size={VOCABULARY}", f"train.batch_tokens={BATCH * SEQ}", f"train.micro_batch={BATCH}",
        "train.device=cpu", "train.threads=1", "train.precision=float32", "tracker=none",
    ]  # fmt: skip


@dataclass
class Turns:
    """An arm's model, and the CPU seconds of each of its steps."""

    arm: str
    width: int

    def __post_init__(self) -> None:
        self.config = compose(overrides(self.arm, self.width))
        self.model = Transformer(self.config.model, self.config.connection, VOCABULARY)
        self.parallel = lay_out(self.model, self.config, Ranks())
        self.optimizer, self.guard = build_optimizer(self.model, self.config.optim), Guard(hold=False)
        self.device = choose_device(self.config.train)
        self.batch = torch.randint(VOCABULARY, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(0))
        self.seconds: list[float] = []

    def take(self) -> None:
        """One training step: forward, backward, clipping, update."""
        started = time.process_time()
        take_step(self.parallel, self.optimizer, self.guard, self.batch, BATCH, self.device, 1.0)
        self.seconds.append(time.process_time() - started)


def compete(width: int, rounds: int) -> dict[str, Any]:
    """Milliseconds and ratios to the residual, of arms that take turns: each round's ratio is of neighbours in time."""
    arms = [Turns(arm, width) for arm in ARMS]
    for _ in range(WARM_UP + rounds):
        for arm in arms:
            arm.take()
    timed = {arm.arm: arm.seconds[WARM_UP:] for arm in arms}
    return {arm: summary(seconds, timed[RESIDUAL]) for arm, seconds in timed.items()}


def summary(seconds: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [own / other for own, other in zip(seconds, baseline, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "median_ms": significant(1e3 * statistics.median(seconds)),
        "minimum_ms": significant(1e3 * min(seconds)),
        "ratio_of_minima": significant(min(seconds) / min(baseline)),
        "ratio": significant(middle),
        "quartiles": [significant(low), significant(high)],
    }


def show(width: int, measured: dict[str, Any]) -> None:
    print(f"C = {width}")
    for arm, cost in measured.items():
        low, high = cost["quartiles"]
        print(
            f"  {arm:16} {cost['median_ms']:7.1f} ms   {cost['ratio']:.3f} of residual ({low:.3f} to {high:.3f}), "
            f"minima {cost['ratio_of_minima']:.3f}"
        )


def record(widths: dict[int, dict[str, Any]], rounds: int) -> None:
    """Leave the figures as JSON and as a table for the documentation."""
    path = kernels.describe(torch.device("cpu"), torch.float32)
    environment = {"torch": torch.__version__, "cpu": cpu_model(), "threads": 1, "kernels": path}
    case = {"layers": LAYERS, "vocabulary": VOCABULARY, "batch": BATCH, "seq": SEQ, "head": HEAD, "streams": 4}
    target = {"ratio": TARGET, "width": TARGET_WIDTH, "arms": ["hc", "mhc"]}
    write_json(
        "cases", {"environment": environment, "case": case, "rounds": rounds, "target": target, "widths": widths}
    )
    intro = (
        f"Made by `python benchmarks/cases.py --record`: a training step of {LAYERS} layers, {BATCH} x {SEQ} tokens, "
        f"float32, n = 4, as a share of the residual's; median of {rounds} interleaved rounds and its quartiles, "
        f"process CPU time on one thread ({cpu_model()}, torch {torch.__version__}, {path})."
    )
    rows = [
        (str(width), *(f"{cost['ratio']:.2f} ({cost['quartiles'][0]:.2f} to {cost['quartiles'][1]:.2f})"
         for arm, cost in measured.items() if arm != RESIDUAL))
        for width, measured in widths.items()
    ]  # fmt: skip
    write_table("step-cost", intro, ("C", *(arm for arm in ARMS if arm != RESIDUAL)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="turns that every arm takes (default: 20)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="values of C")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    measured = {}
    for width in chosen.widths:
        measured[width] = compete(width, chosen.rounds)
        show(width, measured[width])
    if chosen.record:
        record(measured, chosen.rounds)


if __name__ == "__main__":
    main()
