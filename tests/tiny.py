"""A corpus and a configuration small enough for a test, and the command line run in this process."""

import json
import random
import sys
from pathlib import Path

import pytest

from mhc_train.cli.app import main

WORDS = ("stream", "mixer", "gain", "energy", "row", "column", "depth", "token", "signal", "noise", "path", "gate")
TINY = (
    "model.dim=32", "model.layers=2", "model.heads=2", "model.kv_heads=1", "model.ffn_dim=48",
    "data.seq_len=32", "data.vocab_size=300", "data.holdout=0.2", "data.validation_tokens=512",
    "data.shuffle_block=16", "train.steps=8", "train.batch_tokens=256", "train.micro_batch=4", "train.eval_every=4",
    "train.save_every=4", "train.log_every=2", "train.sample_tokens=4", "diagnostics.every=4", "diagnostics.tokens=64",
    "train.device=cpu", "optim.warmup_steps=2", "tracker=none",
)  # fmt: skip


def write_corpus(directory: Path, documents: int = 200) -> Path:
    """A JSON-lines file of short documents, the same every time."""
    draw = random.Random(0)
    path = directory / "corpus.jsonl"
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=draw.randint(5, 40)))}) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")
    return path


def overrides(directory: Path) -> list[str]:
    """The tiny configuration on the tiny corpus, everything kept under `directory`."""
    corpus = directory / "corpus.jsonl"
    path = corpus if corpus.exists() else write_corpus(directory)
    return [
        "data=json",
        f"data.path={path}",
        f"data.cache_dir={directory / 'data'}",
        f"runs_dir={directory / 'runs'}",
        *TINY,
    ]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `mhc-train ARGUMENTS` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["mhc-train", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
