"""Tensors in safetensors files: whole in one that is hashed as it is written, or sharded over the ranks."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mhc_train.files import hashed_file, sha256_file, storage_errors, sync
from mhc_train.ranks import Ranks

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Facts = dict[str, dict[str, Any]]
"""By a file's name in the checkpoint, its `sha256` and `bytes`."""


def write_whole(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; returns its facts.

    The format is an 8-byte length, a JSON header, then the bytes one after another. It is written here, not by its
    library, because that reads the file again to hash it, holds Python's lock while the training waits for it, and
    hides why a disk refused.
    """
    # The widest types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with hashed_file(path) as file:
        file.write(_header(ordered))
        for _, tensor in ordered:
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().flatten()
                file.write(flat.view(torch.uint8).numpy().data)
    return file.facts()


def _header(ordered: list[tuple[str, Tensor]]) -> bytes:
    entries, end = {}, 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_sharded(directory: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> Facts:
    """Write every rank's shards of distributed tensors into `directory`; returns the facts of all files.

    Raises:
        StorageError: on all ranks, where it fails on one.
    """
    # Imported here, as wherever tensors are distributed: it takes a second, which `diagnose` need not wait.
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    alone = ranks.group is None
    writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
    with storage_errors(directory), _quietly():
        try:
            save(dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=alone)
        except CheckpointException as error:
            raise _cause(error) from error
        # Hashing is shared out like writing; one rank lists, since a network's file system may show each another list.
        files = ranks.by_first(lambda: _listed(directory))
        own = files[ranks.rank :: ranks.world]
        return {name: facts for part in ranks.by_each(lambda: _settled(own)) for name, facts in part.items()}


def _cause(error: Any) -> Exception:
    """What is inside of a `CheckpointException`, which no handler of ordinary errors would catch."""
    causes = [failure[0] for failure in error.failures.values()]
    text = "; ".join(map(str, causes))
    return OSError(None, text) if any(isinstance(cause, OSError) for cause in causes) else RuntimeError(text)


def _listed(directory: Path) -> list[Path]:
    sync(directory)
    return sorted(directory.glob("*.safetensors"))


def _settled(paths: list[Path]) -> Facts:
    for path in paths:
        sync(path)
    return {
        f"{path.parent.name}/{path.name}": {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in paths
    }


def read(place: Path) -> dict[str, Tensor]:
    """All tensors of `place` (a path without `.safetensors`), whole, on the CPU, however they were written."""
    if not place.is_dir():
        with safe_open(_file(place), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    targets = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in _described(place).items()}
    _load_shards(place, targets, Ranks())
    return targets


def restore(place: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill `targets`, of any device and any sharding, from the tensors of `place`; each rank reads what it needs.

    Raises:
        ValueError: the names or shapes are not those of the file.
    """
    names = set(_described(place)) if place.is_dir() else set(_keys(place))
    if names != set(targets):
        raise ValueError(f"it lacks or does not expect {', '.join(sorted(names ^ set(targets))[:4])}")
    if place.is_dir():
        _load_shards(place, targets, ranks)
        return
    with safe_open(_file(place), "pt") as file, torch.no_grad():
        for name, target in targets.items():
            whole = file.get_tensor(name)
            if whole.shape != target.shape:
                raise ValueError(f"{name} is {tuple(whole.shape)}, not {tuple(target.shape)}")
            target.copy_(_like(whole, target))


def _like(whole: Tensor, target: Any) -> Tensor:
    if not hasattr(target, "device_mesh"):  # a plain tensor
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole tensor and cuts its own shard: nothing is sent.
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _load_shards(place: Path, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    reader = HuggingFaceStorageReader(str(place))
    with _quietly():
        try:
            load(dict(targets), storage_reader=reader, process_group=ranks.group, no_dist=ranks.group is None)
        except CheckpointException as error:
            raise _cause(error) from error


def _described(place: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    entries = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()}  # type: ignore[union-attr]


def _keys(place: Path) -> list[str]:
    with safe_open(_file(place), "pt") as file:
        return list(file.keys())


def _file(place: Path) -> str:
    return os.fspath(place.with_name(place.name + ".safetensors"))


class _quietly(warnings.catch_warnings):  # noqa: N801
    """Without torch's remark that a process without a group works alone, which is what was asked for."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
