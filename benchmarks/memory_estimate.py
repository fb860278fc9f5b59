"""The memory estimate of `fit --dry-run` beside torch's tracker and real trainings on this machine.

Run with `PYTHONPATH=tests`, where the two other ways of finding a peak are defined (tests/memory_peaks.py).
"""

import argparse
import platform
from typing import Any

import torch
from connection_cost import cpu_model
from memory_peaks import resident_peak, tracked_peak
from record import significant, write_json, write_table
from rich.console import Console

from mhc_train.config.compose import compose
from mhc_train.training.device import Device
from mhc_train.training.memory import estimate_memory

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
    ("connection=mhc", "train.recompute=streams", FULL, ONE),
    ("connection=mhc", HALF, ONE),
    ("connection=mhc", "train.recompute=auto", HALF, TWO, UNTIED),
    ("connection=hc", "train.recompute=streams", HALF, TWO),
    ("connection=mhc_single_pass", "train.recompute=3", FULL, ONE),
)


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


def document(rows: list[dict[str, Any]]) -> None:
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    return parser.parse_args()


def main() -> None:
    chosen, console = arguments(), Console(width=160)
    cases = []
    for overrides in CASES:
        cases.append(compared(overrides))
        console.print(cases[-1])
    if chosen.record:
        write_json("memory_estimate", {"environment": environment(), "cases": cases})
        document(cases)


if __name__ == "__main__":
    main()
