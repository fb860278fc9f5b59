"""An audit: a checkpoint's residual path, measured on its own fixed validation tokens."""

import dataclasses
from pathlib import Path
from typing import Any

from mhc_train.checkpoints import load_checkpoint
from mhc_train.data import open_corpus
from mhc_train.diagnostics.measurement import SCHEMA_VERSION, measure
from mhc_train.diagnostics.probe import observe


def audit(path: Path, tokens: int) -> dict[str, Any]:
    """The document that `diagnose --json` prints.

    Args:
        path: a run directory or a checkpoint.
        tokens: validation tokens to measure on, rounded down to whole sequences, at least one.

    Raises:
        CheckpointError: absent or corrupt.
        DataError: the text that it was trained on is not available.
    """
    checkpoint = load_checkpoint(path)
    data = dataclasses.replace(checkpoint.config.data, tokenizer=str(checkpoint.tokenizer))
    rows = max(1, tokens // data.seq_len)
    model = checkpoint.model()
    document = measure(observe(model, open_corpus(data).validation.blocks[:rows]))
    return {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state["step"],
        "connection": checkpoint.config.connection.title,
        **document,
    }
