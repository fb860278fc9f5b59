"""Checkpoints: safetensors and JSON alone, self-describing, verified before use, never half there."""

from mhc_train.checkpoints.directory import ASIDE, Keep, complete_checkpoints, prune, set_aside
from mhc_train.checkpoints.reading import Checkpoint, load_checkpoint, verify
from mhc_train.checkpoints.writing import Snapshot, write_checkpoint

__all__ = [
    "ASIDE",
    "Checkpoint",
    "Keep",
    "Snapshot",
    "complete_checkpoints",
    "load_checkpoint",
    "prune",
    "set_aside",
    "verify",
    "write_checkpoint",
]
