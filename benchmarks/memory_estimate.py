"""The memory estimate of `fit --dry-run` beside torch's tracker and real trainings, and what it says of large models.

Run with `PYTHONPATH=tests`, where the two other ways of finding a peak are defined (tests/memory_peaks.py).
"""

import argparse
import platform
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from connection_cost import cpu_model
from memory_peaks import resident_peak, tracked_peak
from record import significant, write_json, write_table
from rich.console import Console

from mhc_train.config.compose import compose
from mhc_train.model import Transformer
from mhc_train.model.cost import recomputed_share, training_flops_per_token
from mhc_train.schema import Config
from mhc_train.training.device import Device
from mhc_train.training.memory import Memory, estimate_memory, shard

# Real trainings on this machine

SHAPE = (
    "tracker=none", "train.device=cpu", "model.dim=512", "model.heads=8", "model.kv_heads=4", "model.ffn_dim=1376",
    "model.layers=6", "data.vocab_size=8192", "data.seq_len=256", "train.micro_batch=4",
)  # fmt: skip
ONE, TWO = "train.batch_tokens=1024", "train.batch_tokens=2048"
FULL, HALF = "train.precision=float32", "train.precision=bfloat16"
UNTIED = "model.tie_embeddings=false"
CASES = (
    ("connection=residual", FULL, ONE),
    ("connection=residual", "train.recompute=auto", FULL, TWO),
    ("connection=residual", HALF, TWO, UNTIED),
    ("connection=hc", FULL, TWO),
    ("connection=hc", "train.recompute=auto", FULL, ONE, UNTIED),
    ("connection=hc", "train.recompute=auto", HALF, ONE),
    ("connection=mhc", FULL, ONE, UNTIED),
    ("connection=mhc", "train.recompute=auto", FULL, TWO),
    ("connection=mhc", HALF, ONE),
    ("connection=mhc", "train.recompute=auto", HALF, TWO, UNTIED),
    ("connection=mhc_single_pass", "train.recompute=3", FULL, ONE),
)

# Large models on paper: one device's part

GPU = Device(torch.device("cuda"), torch.bfloat16, "a GPU, computing in bfloat16")
VOCABULARY, SEQ, MICRO_BATCH = 32768, 4096, 1
MODELS, DEVICES = ("1b", "3b", "27b"), (8, 64, 256)
CHOICES = {"residual": ("none", "auto"), "mhc": ("none", "auto", "1")}
GIB = 2**30


def compared(overrides: tuple[str, ...]) -> dict[str, Any]:
    """One configuration's peak in three ways, bytes."""
    typed = [*SHAPE, *overrides]
    config = compose(typed)
    dtype = torch.bfloat16 if config.train.precision == "bfloat16" else torch.float32
    estimate = estimate_memory(config, Device(torch.device("cpu"), dtype, "")).peak
    tracked, resident = tracked_peak(config), resident_peak(typed)
    return {
        "case": " ".join(overrides),
        "estimate": estimate,
        "tracked": tracked,
        "resident": resident,
        "estimate_to_tracked": significant(estimate / tracked),
        "estimate_to_resident": significant(estimate / resident),
    }


def large(model: str, connection: str, recompute: str) -> Config:
    """A large model with one sequence of 4096 tokens at once, its gradients accumulated."""
    return compose(
        [
            f"model={model}", f"connection={connection}", f"train.recompute={recompute}", "tracker=none",
            f"data.vocab_size={VOCABULARY}", f"data.seq_len={SEQ}", f"train.micro_batch={MICRO_BATCH}",
            f"train.batch_tokens={2 * MICRO_BATCH * SEQ}",
        ]
    )  # fmt: skip


def planned(model: str) -> Iterator[dict[str, Any]]:
    """What a device would hold, for each connection and choice of recomputation."""
    for connection, choices in CHOICES.items():
        with torch.device("meta"):
            config = large(model, connection, "none")
            skeleton = Transformer(config.model, config.connection, VOCABULARY)
        for choice in choices:
            memory = estimate_memory(replace(config, train=replace(config.train, recompute=choice)), GPU)
            yield described(model, connection, choice, memory, skeleton)


def described(model: str, connection: str, choice: str, memory: Memory, skeleton: Transformer) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    extra = recomputed_share(skeleton, SEQ) if choice != "none" else 0.0
    return {
        "model": model,
        "connection": connection,
        "recompute": choice,
        "parameters": parameters,
        "flops_per_token": training_flops_per_token(skeleton, SEQ),
        "more_forward": significant(extra),
        "activations": memory.activations,
        "transient": memory.transient,
        "update": memory.update,
        "peak": memory.peak,
        "sharded": {str(devices): shard(memory, skeleton, devices).peak for devices in DEVICES},
    }


def environment() -> dict[str, Any]:
    """What the measured figures depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.system(),
        "cpu": cpu_model(),
        "threads": 1,
    }


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def gibibytes(size: int) -> str:
    return f"{size / GIB:,.1f}"


def document_comparison(rows: list[dict[str, Any]]) -> None:
    intro = (
        "Made by `PYTHONPATH=tests python benchmarks/memory_estimate.py --record`: peak of a training step in MiB, 6 "
        "layers of 512, 4 sequences of 256 tokens a micro-batch, vocabulary 8192. Estimate: `fit --dry-run`'s. "
        "Tracked: torch's MemTracker on tensors without content. Measured: growth of a real training's resident memory "
        f"({cpu_model()}, torch {torch.__version__})."
    )
    table = [
        (row["case"], *(megabytes(row[key]) for key in ("estimate", "tracked", "resident")),
         f"{row['estimate_to_tracked']:.3f}", f"{row['estimate_to_resident']:.3f}")
        for row in rows
    ]  # fmt: skip
    header = ("configuration", "estimate", "tracked", "measured", "estimate / tracked", "estimate / measured")
    write_table("memory-estimate", intro, header, table)


def document_plans(rows: list[dict[str, Any]]) -> None:
    intro = (
        "Made by `PYTHONPATH=tests python benchmarks/memory_estimate.py --record`. **Computed, not measured**: GiB on "
        f"each GPU with {MICRO_BATCH} sequence of {SEQ} tokens at once, vocabulary {VOCABULARY}, bfloat16 autocast, "
        "float32 weights, gradients and moments. Alone or DDP: everything on each GPU. FSDP2: sharded over so many."
    )
    table = [
        (row["model"], row["connection"], row["recompute"], f"{row['more_forward']:.0%}", gibibytes(row["activations"]),
         gibibytes(row["transient"]), gibibytes(row["peak"]),
         *(gibibytes(row["sharded"][str(devices)]) for devices in DEVICES))
        for row in rows
    ]  # fmt: skip
    header = ("model", "connection", "recompute", "more forward", "kept", "transient", "alone or DDP")
    write_table("scaling", intro, (*header, *(f"FSDP2, {devices}" for devices in DEVICES)), table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    return parser.parse_args()


def main() -> None:
    chosen, console = arguments(), Console(width=160)
    cases, plans = [], []
    for overrides in CASES:
        cases.append(compared(overrides))
        console.print(cases[-1])
    for model in MODELS:
        for plan in planned(model):
            plans.append(plan)
            console.print(plan)
    if chosen.record:
        write_json("memory_estimate", {"environment": environment(), "measured": cases, "computed": plans})
        document_comparison(cases)
        document_plans(plans)


if __name__ == "__main__":
    main()
