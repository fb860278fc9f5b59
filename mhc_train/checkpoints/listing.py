"""What can be done with a run's checkpoints from outside: describe, prune, convert."""

import json
from pathlib import Path
from typing import Any

from mhc_train.checkpoints.directory import (
    ASIDE,
    Keep,
    checkpoints_aside,
    complete_checkpoints,
    named_checkpoints,
    prune,
    step_of,
    superfluous,
)
from mhc_train.checkpoints.reading import load_checkpoint, verify
from mhc_train.checkpoints.writing import Snapshot, write_checkpoint
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.files import storage_errors
from mhc_train.runs import find_run


def found_in(run: Path, aside: bool = True) -> list[Path]:
    """A run's checkpoints, oldest first, good or not; then, if asked for, those that are set aside.

    Raises:
        CheckpointError: it is no run, or has none.
    """
    directory = find_run(run).checkpoints
    found = named_checkpoints(directory) + (checkpoints_aside(directory) if aside else [])
    if not found:
        raise CheckpointError(f"{run}: it has no checkpoint.")
    return found


def described(path: Path) -> dict[str, Any]:
    """Name, step, size and state of one; its files are looked for, not read."""
    files = [file for file in path.rglob("*") if file.is_file()]
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        missing = [name for name in manifest["files"] if not (path / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        manifest, missing = {}, ["manifest.json"]
    aside = path.name.endswith(ASIDE)
    return {
        "name": path.name,
        "step": step_of(path),
        "bytes": sum(file.stat().st_size for file in files),
        "tensors": manifest.get("tensors"),
        "ranks": manifest.get("ranks"),
        "state": "set aside" if aside else f"lacks {', '.join(missing)}" if missing else "complete",
    }


def pruned(run: Path, keep: int, every: int, dry_run: bool) -> list[Path]:
    """What goes, or would.

    Raises:
        CheckpointError: none of those that would stay is whole, and so nothing may go.
    """
    directory, rule = find_run(run).checkpoints, Keep(keep, every)
    going = superfluous(directory, rule, all_aside=True)
    stay = [path for path in complete_checkpoints(directory) if path not in going]
    if going and all(verify(path) for path in stay):
        raise CheckpointError(f"{run}: all that would stay is damaged; nothing was removed. See `checkpoint verify`.")
    if dry_run:
        return going
    with storage_errors(directory):
        return prune(directory, rule, all_aside=True)


def written_whole(source: Path, target: Path) -> Path:
    """Write the checkpoint at `source` into `target`, with whole tensors; returns where it is.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: `target` exists.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already. Name a directory that does not.")
    checkpoint = load_checkpoint(source)
    parts = {name: checkpoint.tensors(name) for name in ("model", "optimizer", "random")}
    snapshot = Snapshot(
        checkpoint.config,
        checkpoint.vocab_size,
        checkpoint.state,
        checkpoint.tokenizer.read_text(encoding="utf-8"),
        parts["model"],
        parts["optimizer"],
        parts["random"],
    )
    return write_checkpoint(target, snapshot, Keep(1))
