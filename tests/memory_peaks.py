"""The most memory that a training step takes, found without the estimator: by torch's tracker, by the kernel."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from mhc_train.config.compose import compose
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.step import Guard, take_step

EAGER_FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Lets the C library give memory back at once, so that what is resident is what is allocated."""


def built(config: Config) -> tuple[Transformer, torch.optim.AdamW]:
    """The model and its optimizer, as a training makes them."""
    model = Transformer(config.model, config.connection, config.data.vocab_size)
    model.adapt(config.train)
    return model, build_optimizer(model, config.optim)


def tracked_peak(config: Config) -> int:
    """Bytes of the second step, by torch's MemTracker, on tensors without content."""
    with FakeTensorMode():
        model, optimizer = built(config)
        tokens = torch.zeros(config.train.micro_batch, config.data.seq_len + 1, dtype=torch.long)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if config.train.batch_tokens == config.train.micro_batch * config.data.seq_len:
            optimizer.zero_grad()
        tracker = MemTracker()
        tracker.track_external(model, optimizer, tokens)
        with tracker:
            _loss(model, tokens, choose_device(config.train).dtype).backward()
            optimizer.step()
    return sum(total["Total"] for total in tracker.get_tracker_snapshot("peak").values())


def _loss(model: Transformer, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").sum()


def resident_peak(overrides: list[str]) -> int:
    """Bytes by which the resident memory of a process of its own grows at most, from no model to the second step."""
    package = Path(__file__).resolve().parents[1]
    environment = os.environ | EAGER_FREEING | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *overrides]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(result.stdout)


def _train(config: Config, steps: int) -> None:
    model, optimizer = built(config)
    rows = config.train.batch_tokens // config.data.seq_len
    batch = torch.randint(config.data.vocab_size, (rows, config.data.seq_len + 1))
    device = choose_device(config.train)
    parallel, guard = lay_out(model, config, Ranks()), Guard(hold=True)
    for _ in range(steps):
        take_step(parallel, optimizer, guard, batch, config.train.micro_batch, device, config.optim.grad_clip)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def main() -> None:
    """Print the growth for the overrides that follow the command."""
    torch.set_num_threads(1)
    overrides = sys.argv[1:]
    # Once in small, so that code, kernels and their buffers are there before anything is counted.
    small = ["model.dim=32", "model.heads=2", "model.kv_heads=1", "model.layers=2", "model.ffn_dim=64"]
    _train(compose([*overrides, *small, "data.vocab_size=300"]), 2)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    _train(compose(overrides), 2)
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    main()
