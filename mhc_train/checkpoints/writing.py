"""Writes a checkpoint: to a hidden sibling, with a manifest of hashes last, then renamed to be seen."""

import contextlib
import functools
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import mhc_train
from mhc_train.checkpoints.directory import Keep, name_of, prune, publish, remove_leftovers
from mhc_train.checkpoints.reading import manifest_text, verify
from mhc_train.checkpoints.tensors import Facts, write_sharded, write_whole
from mhc_train.console import say
from mhc_train.errors import StorageError
from mhc_train.files import hashed_file, json_text, storage_errors
from mhc_train.ranks import Ranks
from mhc_train.runs import git_state
from mhc_train.schema import Config

FORMAT_VERSION = 2
CONVENTION = "X'[i] = sum_j H_res[i, j] X[j] + H_post[i] F(norm(sum_j H_pre[j] X[j])): rows receive, columns send"


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint holds, taken from a training that may go on meanwhile."""

    config: Config
    vocab_size: int
    state: dict[str, Any]
    """step, tokens, data position, losses: a JSON document."""
    tokenizer_json: str
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    """States of the random generators of every rank."""
    sharded: bool = False
    """Whether model and optimizer are distributed tensors, which every rank writes its shards of."""

    @property
    def bytes(self) -> int:
        """About what has to be written, by all ranks together."""
        parts = (self.model, self.optimizer, self.random)
        return sum(tensor.numel() * tensor.element_size() for part in parts for tensor in part.values())


def write_checkpoint(directory: Path, snapshot: Snapshot, keep: Keep, ranks: Ranks | None = None) -> Path:
    """Write `directory/step-XXXXXXXX`, point `latest` to it, then prune. A good one of that step stays as it is.

    Args:
        directory: of the run's checkpoints.
        snapshot: what to write.
        keep: which complete checkpoints stay.
        ranks: of a sharded snapshot, all of which call this together; else rank 0 does alone.

    Raises:
        StorageError: it cannot be written; earlier checkpoints are untouched.
    """
    ranks = ranks or Ranks()
    final = directory / name_of(snapshot.state["step"])
    with _naming_the_need(snapshot, directory), storage_errors(final):
        hidden = ranks.by_first(lambda: _begin(final, snapshot))
        if hidden is None:
            return final
        try:
            files = _write_shards(hidden, snapshot, ranks) if snapshot.sharded else {}
            ranks.by_first(lambda: _complete(hidden, final, snapshot, files, ranks.world))
        finally:
            if ranks.first:
                shutil.rmtree(hidden, ignore_errors=True)
    if ranks.first:
        _prune(directory, keep)
    return final


def _prune(directory: Path, keep: Keep) -> None:
    """Remove what may go; where that fails, nothing is lost but room."""
    try:
        prune(directory, keep)
    except OSError as error:
        say(f"{directory}: older checkpoints could not be removed ({error.strerror}).")


@contextlib.contextmanager
def _naming_the_need(snapshot: Snapshot, directory: Path) -> Any:
    """Say with a refusal how much was to be written."""
    try:
        yield
    except StorageError as error:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        raise StorageError(
            f"{error} The checkpoint takes {snapshot.bytes:,} bytes; {free:,} are free. Earlier ones are untouched."
        ) from error


def _begin(final: Path, snapshot: Snapshot) -> Path | None:
    """An empty hidden sibling; None where the checkpoint is there already and whole."""
    if final.exists() and not verify(final):
        return None
    remove_leftovers(final.parent)
    hidden = final.parent / f".{final.name}.{os.getpid()}"
    hidden.mkdir(parents=True)
    if snapshot.sharded:
        (hidden / "model").mkdir()
        (hidden / "optimizer").mkdir()
    return hidden


def _write_shards(hidden: Path, snapshot: Snapshot, ranks: Ranks) -> Facts:
    model = write_sharded(hidden / "model", snapshot.model, ranks)
    return model | write_sharded(hidden / "optimizer", snapshot.optimizer, ranks)


def _complete(hidden: Path, final: Path, snapshot: Snapshot, files: Facts, world: int) -> None:
    """Write what is not sharded, then the manifest, then make it seen."""
    whole = {} if snapshot.sharded else {"model": snapshot.model, "optimizer": snapshot.optimizer}
    for name, tensors in (whole | {"random": snapshot.random}).items():
        files[f"{name}.safetensors"] = write_whole(hidden / f"{name}.safetensors", tensors)
    texts = {
        "state.json": json_text(snapshot.state),
        "config.json": json_text(asdict(snapshot.config)),
        "tokenizer.json": snapshot.tokenizer_json,
    }
    for name, text in texts.items():
        files[name] = _write_text(hidden / name, text)
    _write_text(hidden / "manifest.json", manifest_text(_description(snapshot, world) | {"files": files}))
    publish(hidden, final)


def _write_text(path: Path, text: str) -> dict[str, Any]:
    with hashed_file(path) as file:
        file.write(text.encode())
    return file.facts()


def _description(snapshot: Snapshot, world: int) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    config = snapshot.config
    return {
        "format_version": FORMAT_VERSION,
        "mhc_train": mhc_train.__version__,
        "git": _git_state(),
        "connection": config.connection.title,
        "convention": CONVENTION,
        "vocab_size": snapshot.vocab_size,
        "tokenizer_sha256": config.data.tokenizer_sha256,
        "tensors": "sharded" if snapshot.sharded else "whole",
        "ranks": world,
    }


_git_state = functools.cache(git_state)
