"""Tokens prepared before: a source's shards as memory-mapped token files, delivered in the order of its text.

A shard becomes `00000.tokens` (16-bit ids, or 32 where the vocabulary asks for it), `00000.lengths.npy` (tokens of
every stored record: 0 if it is not trained on, -1 if it is unreadable), for plain lines `00000.keys.npy` (where each
record begins), and `00000.json`, written last. `manifest.json` says that all are there.
"""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from mhc_train.data.order import Documents
from mhc_train.data.readers import Part, Shard, size_of
from mhc_train.data.text_reader import Found, Tokenizing
from mhc_train.data.tokenizer import Tokens
from mhc_train.errors import DataError
from mhc_train.files import storage_errors, write_bytes, write_json

DOCUMENTS_A_PIECE = 512
"""What is gathered from the files at once."""
Advance = Callable[[int, int, int], None]


def cache_directory(source: Tokenizing, cache_dir: Path) -> Path:
    """Where a source's tokens are kept: another place for other text, tokenizer or choice of documents."""
    reader = source.reader
    facts = [reader.source.identity, reader.skip_unreadable, source.tokenizer.sha256, source.training.identity]
    return cache_dir / "tokens" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def open_cache(directory: Path, shards: tuple[Shard, ...]) -> "TokenCache | None":
    """The tokens kept in a directory; None if they are not there, or not all."""
    return TokenCache(directory, shards) if (directory / "manifest.json").exists() else None


def write_cache(source: Tokenizing, directory: Path, advance: Advance) -> dict[str, Any]:
    """Tokenise every shard that is not there yet; returns the manifest.

    Args:
        source: what is tokenised.
        directory: where to, as `cache_directory` names it.
        advance: called with the finished files, and the documents and tokens so far, whenever some are written.

    Raises:
        DataError: a shard is broken, which only live reading can pass over.
        StorageError: the directory cannot be written.
    """
    for leftover in directory.glob(".*.tokens"):  # of a call that was killed
        leftover.unlink()
    totals = dict.fromkeys(("records", "documents", "unreadable", "tokens", "bytes"), 0)
    for index, shard in enumerate(source.reader.source.shards):
        stem = directory / f"{index:05d}"
        if not stem.with_suffix(".json").exists():
            with storage_errors(stem):
                directory.mkdir(parents=True, exist_ok=True)
                _write_shard(source, shard, index, stem)
        facts = _facts(stem)
        totals = {key: total + facts[key] for key, total in totals.items()}
        advance(index + 1, totals["documents"], totals["tokens"])
    manifest = {"files": source.shards, "tokenizer_sha256": source.tokenizer.sha256} | totals
    write_json(directory / "manifest.json", manifest)
    return manifest


def _write_shard(source: Tokenizing, shard: Shard, index: int, stem: Path) -> None:
    """Write one shard's files; the JSON comes last, so that a shard that has one is whole."""
    keys: list[int] = []
    lengths = [np.empty(0, np.int32)]
    size = 0
    # Under a name of its own: another process may be writing the same.
    unfinished = stem.with_name(f".{stem.name}.{secrets.token_hex(6)}.tokens")
    try:
        with unfinished.open("wb") as stream:
            for chunk in source.reader.chunks(Part(index)):
                if not chunk.keys:
                    raise DataError(
                        f"{shard.url} breaks off: tokens can be kept of whole files only. Mend or remove it."
                    )
                lengths.append(np.zeros(len(chunk.keys), np.int32))
                keys += chunk.keys if shard.keyed_by_bytes else []
                for group in source.find(shard, chunk, range(len(chunk.keys))):
                    _write_group(source, group, lengths[-1], stream)
                    size += sum(found.size for found in group)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(stem.with_suffix(".tokens"))
    finally:
        unfinished.unlink(missing_ok=True)
    every = np.concatenate(lengths)
    write_bytes(_lengths(stem), _npy(every))
    if shard.keyed_by_bytes:
        write_bytes(_keys(stem), _npy(np.array(keys, np.int64)))
    facts = {
        "records": len(every),
        "documents": int((every > 0).sum()),
        "unreadable": int((every < 0).sum()),
        "tokens": int(every.clip(0).sum()),
        "bytes": size,
        "extent": source.reader.retry.call(lambda: size_of(shard.url), shard.url)
        if shard.keyed_by_bytes
        else len(every),
        "type": source.tokenizer.token_type.str,
    }
    write_json(stem.with_suffix(".json"), facts)


def _write_group(source: Tokenizing, group: list[Found], lengths: NDArray[np.int32], stream: BinaryIO) -> None:
    """Append a group's tokens and note the lengths of its documents."""
    readable = [found.place for found in group if found.text is not None]
    lengths[[found.place for found in group if found.text is None]] = -1
    tokens, lengths[readable] = source.tokenizer.encode([found.text for found in group if found.text is not None])
    stream.write(tokens.tobytes())


def _facts(stem: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(stem.with_suffix(".json").read_text()))
    except ValueError as error:
        raise DataError(f"{stem.parent}: the prepared tokens are damaged ({error}). Delete this directory.") from error


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _lengths(stem: Path) -> Path:
    return stem.with_suffix(".lengths.npy")


def _keys(stem: Path) -> Path:
    return stem.with_suffix(".keys.npy")


@dataclass(frozen=True)
class StoredShard:
    """One shard's tokens, mapped into memory."""

    seekable: bool
    extent: int
    tokens: Tokens
    lengths: NDArray[np.int32]
    ends: NDArray[np.int64]
    """Of each record's tokens."""
    keys: NDArray[np.int64] | None
    """Of each record, where they are not its number."""

    def find(self, records: NDArray[np.int64], cursor: int) -> int:
        """Which of some records has this key."""
        return int((records if self.keys is None else self.keys[records]).searchsorted(cursor))

    def records(self, part: Part) -> NDArray[np.int64]:
        """The numbers of a part's records, the same ones that its text has."""
        if not self.seekable:
            return np.arange(part.number, len(self.lengths), part.parts)
        bounds = [self.extent * number // part.parts for number in (part.number, part.number + 1)]
        return np.arange(*(bounds if self.keys is None else self.keys.searchsorted(bounds)))


@dataclass(frozen=True)
class TokenCache:
    """Reads a source's training documents from prepared tokens."""

    directory: Path
    sources: tuple[Shard, ...]
    opened: WeakValueDictionary[int, StoredShard] = field(default_factory=WeakValueDictionary, compare=False)
    """Shards that a lane is reading."""

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenCache, (self.directory, self.sources)  # another process maps the files itself

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.sources)

    def blocks(self, part: Part, size: int, cursor: int | None = None) -> Iterator["TokenBlock"]:
        """The documents of a part, `size` at a time.

        Raises:
            DataError: a file is absent or cut short.
        """
        stored = self._stored(part.shard)
        records = stored.records(part)
        first = 0 if cursor is None else stored.find(records, cursor)
        for start in range(first, len(records), size):
            yield TokenBlock(stored, records[start : start + size])

    def _stored(self, index: int) -> StoredShard:
        stored = self.opened.get(index)
        if stored is None:
            stored = self.opened[index] = _open_shard(self.directory / f"{index:05d}", self.sources[index])
        return stored


@dataclass(frozen=True)
class TokenBlock:
    """Consecutive records of a stored shard's part."""

    stored: StoredShard
    records: NDArray[np.int64]

    @property
    def cursor(self) -> int:
        """The key of the first record."""
        first = self.records[0]
        return int(first if self.stored.keys is None else self.stored.keys[first])

    def __len__(self) -> int:
        return len(self.records)

    def documents(self, order: NDArray[np.int64]) -> Iterator[Documents]:
        """Those to train on, as tokens, in this order of their stored places."""
        lengths = self.stored.lengths[self.records[order]]
        skipped = np.cumsum(lengths < 0)
        trained = np.flatnonzero(lengths > 0)
        ends = self.stored.ends[self.records[order[trained]]]
        memory = self.stored.tokens.data  # whose slices cost half of what an array's do
        for start in range(0, len(trained) + 1, DOCUMENTS_A_PIECE):
            piece = slice(start, start + DOCUMENTS_A_PIECE)
            counts = lengths[trained[piece]].astype(np.int64)
            spans = zip((ends[piece] - counts).tolist(), ends[piece].tolist(), strict=True)
            joined = b"".join([memory[begin:end] for begin, end in spans])
            tokens = np.frombuffer(joined, self.stored.tokens.dtype)
            yield Documents(tokens, counts, trained[piece], np.append(skipped[trained[piece]], skipped[-1:]))


def _open_shard(stem: Path, shard: Shard) -> StoredShard:
    try:
        facts = _facts(stem)
        lengths = np.load(_lengths(stem))
        keys = np.load(_keys(stem), mmap_mode="r") if shard.keyed_by_bytes else None
        tokens = np.fromfile(stem.with_suffix(".tokens"), facts["type"], 0)
        if facts["tokens"]:
            mapped = np.memmap(stem.with_suffix(".tokens"), facts["type"], "r", shape=(facts["tokens"],))
            tokens = np.asarray(mapped).view(np.ndarray)  # a plain array is sliced several times faster
        counted = (len(lengths), int(lengths.clip(0).sum(dtype=np.int64)), len(lengths if keys is None else keys))
        if counted != (facts["records"], facts["tokens"], facts["records"]):
            raise ValueError("its files are not of one shard")
    except (FileNotFoundError, ValueError, TypeError, KeyError, EOFError) as error:
        raise DataError(f"{stem.parent}: the prepared tokens are damaged ({error}). Delete this directory.") from error
    except OSError as error:
        raise DataError(f"{stem.parent}: the prepared tokens cannot be opened ({error}).") from error
    ends = np.maximum(lengths, 0).cumsum(dtype=np.int64)
    return StoredShard(shard.seekable, facts["extent"], tokens, lengths, ends, keys)
