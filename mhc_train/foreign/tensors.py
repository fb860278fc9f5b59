"""Single tensors out of safetensors files: headers first, then the bytes of what is wanted and nothing else."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mhc_train.errors import CheckpointError
from mhc_train.foreign.stores import Store

INDEX, WHOLE, ENDING = "model.safetensors.index.json", "model.safetensors", ".safetensors"
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True)
class Entry:
    """A tensor's place."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    """First byte in the file, and the one after the last."""


class TensorFiles:
    """The safetensors files of a store: one, or shards with or without an index; counts what it reads."""

    def __init__(self, store: Store) -> None:
        self.store, self.bytes_read = store, 0
        self._headers: dict[str, dict[str, Entry]] = {}

    def json(self, file: str) -> dict[str, Any]:
        """A JSON file's content; empty if there is no such file.

        Raises:
            CheckpointError: it is no JSON object.
        """
        if file not in self.store.files:
            return {}
        try:
            content = json.loads(self._read(file, 0, None))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.store.name}/{file} is damaged: it is no JSON document.") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.store.name}/{file} is damaged: it is no JSON object, but {_kind(content)}.")
        return content

    @cached_property
    def places(self) -> dict[str, str]:
        """The file of every tensor: by the index, or else by the headers.

        Raises:
            CheckpointError: there are no safetensors files, one is damaged, or two hold a tensor of one name.
        """
        if INDEX in self.store.files:
            return self._indexed()
        files = [file for file in self.store.files if file.endswith(ENDING)]
        if not files:
            raise CheckpointError(f"{self.store.name}: it has no safetensors files, and no others are read.")
        wanted = [WHOLE] if WHOLE in files else files
        found: dict[str, str] = {}
        for file in wanted:
            for name in self._header(file):
                if found.setdefault(name, file) != file:
                    raise CheckpointError(
                        f"{self.store.name}: {name} is in both {found[name]} and {file}, and no {INDEX} says which is "
                        "meant. Keep the files of one checkpoint alone."
                    )
        return found

    def entries(self, names: Iterable[str]) -> dict[str, Entry]:
        """Where these tensors lie, from the headers of their files alone.

        Raises:
            CheckpointError: a shard is missing or damaged, or does not hold what the index says.
        """
        return {name: self._entry(name) for name in names}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors in float32; neighbours are read at once.

        Raises:
            CheckpointError: as `entries`, or one is of a type that is no number by itself.
        """
        entries = sorted(self.entries(names).values(), key=lambda entry: (entry.file, entry.start))
        for entry in entries:
            if entry.dtype not in TYPES:
                raise CheckpointError(
                    f"{self.store.name}: {entry.name} is stored as {entry.dtype}, which needs scales to be numbers. "
                    f"Hyper-connections are read from {', '.join(TYPES)}: store them so."
                )
        return {name: tensor for group in _neighbours(entries) for name, tensor in self._together(group)}

    def _indexed(self) -> dict[str, str]:
        index = self.json(INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
            raise self._damaged(INDEX, "its weight_map does not give every tensor a file")
        return index

    def _together(self, group: list[Entry]) -> Iterator[tuple[str, Tensor]]:
        first = group[0].start
        # A copy that may be written to, as torch wants it.
        content = bytearray(self._read(group[0].file, first, group[-1].end))
        for entry in group:
            flat = torch.frombuffer(content[entry.start - first : entry.end - first], dtype=TYPES[entry.dtype])
            yield entry.name, flat.view(entry.shape).float()

    def _entry(self, name: str) -> Entry:
        file = self.places[name]
        if file not in self.store.files:
            raise CheckpointError(
                f"{self.store.name}: the shard {file} is missing, which holds {name}. Fetch it again."
            )
        found = self._header(file).get(name)
        if found is None:
            raise CheckpointError(f"{self.store.name}/{file}: it has no {name}, though {INDEX} says so.")
        return found

    def _header(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            length = int.from_bytes(self._read(file, 0, 8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise self._damaged(file, "it does not begin with a header")
            self._headers[file] = self._parsed(file, length)
        return self._headers[file]

    def _parsed(self, file: str, length: int) -> dict[str, Entry]:
        size = self.store.files[file]
        try:
            header: Mapping[str, Any] = json.loads(self._read(file, 8, 8 + length))
            entries = {
                name: _checked(name, file, facts, 8 + length)
                for name, facts in header.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(file, "its header is not one of the format") from error
        for name, entry in entries.items():
            if size is not None and entry.end > size:
                raise self._damaged(file, f"it ends before {name} does")
            if entry.dtype in TYPES and math.prod(entry.shape) * TYPES[entry.dtype].itemsize != entry.end - entry.start:
                raise self._damaged(file, f"its header gives {name} a place of another size than its shape")
        return entries

    def _read(self, file: str, start: int, end: int | None) -> bytes:
        content = self.store.read_range(file, start, end)
        if end is not None and len(content) != end - start:
            raise self._damaged(file, f"of bytes {start} to {end}, {len(content)} came")
        self.bytes_read += len(content)
        return content

    def _damaged(self, file: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self.store.name}/{file} is damaged or incomplete: {why}. Fetch it again.")


def _checked(name: str, file: str, facts: Any, data: int) -> Entry:
    """What a header says of a tensor, offsets counted from byte `data`; ValueError if it is not of the format."""
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not (isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets)):
        raise ValueError(name)
    begin, end = offsets
    if begin > end:
        raise ValueError(name)
    return Entry(name, file, dtype, tuple(shape), data + begin, data + end)


def _are_counts(values: Any) -> bool:
    """Whether it is a list of whole numbers from zero on; true and 2.0 are none."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _kind(content: Any) -> str:
    """What JSON calls it."""
    return "null" if content is None else f"a {type(content).__name__}"


def _neighbours(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries, in order, in groups that lie side by side in one file."""
    group: list[Entry] = []
    for entry in entries:
        if group and (entry.file, entry.start) != (group[-1].file, group[-1].end):
            yield group
            group = []
        group.append(entry)
    if group:
        yield group
