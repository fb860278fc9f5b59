"""Shards of text and how each format is read: from anywhere, in order, and again from any place in the middle.

A shard is one file, on a disk, the Hub or any store that fsspec knows. Reading one yields (key, record): the key is
where reading it again begins (a row of parquet, a byte of plain lines, a record's number where nothing can be sought).
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

Record = bytes | str | None
Keyed = Iterator[tuple[int, Record]]
BLANK = (b"\n", b"\r\n")
BUFFER_BYTES = 1 << 20
DECOMPRESSED_BYTES = 1 << 14
"""What is decompressed at once; some of what stands before a file's break is lost with it."""
CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


class BrokenShardError(Exception):
    """A shard whose bytes are not what its format asks for; its message says what is wrong."""


class StoreError(Exception):
    """Bytes that could not be got at, whatever they are; its cause is the store's own error."""


class BadDocumentError(Exception):
    """A record that holds no text; its message says why."""


@dataclass(frozen=True)
class Shard:
    """One file of a source, in a format of `FORMATS`, or one shard of a `datasets` stream ("rows")."""

    url: str
    format: str
    identity: str
    """Changes when the shard's content does."""
    column: str = "text"
    arguments: dict[str, Any] = field(default_factory=dict)
    """Rows only: the arguments of `load_dataset`, with this shard's number as `shard`."""

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url).name

    @property
    def compression(self) -> str | None:
        """The suffix of a compressed file, which can only be read from its beginning."""
        suffix = PurePosixPath(self.url).suffix
        return suffix if suffix in CODECS and self.format in ("json", "text") else None

    @property
    def seekable(self) -> bool:
        """Whether a part is a range, rather than every so many-th record of what can only be read from its start."""
        return self.format != "rows" and self.compression is None

    @property
    def keyed_by_bytes(self) -> bool:
        """Whether a record's key is its first byte, rather than its number."""
        return self.format in ("json", "text") and self.compression is None

    def place(self, cursor: int, number: int) -> str:
        """Where a chunk's record is, for messages."""
        if self.keyed_by_bytes:
            return f"{self.name}, record {number + 1} from byte {cursor} on"
        return f"{self.name}, record {number + 1} from record {cursor + 1} on"


class Part(NamedTuple):
    """Which part of which shard: `number` of `parts` that share no record and miss none."""

    shard: int
    number: int = 0
    parts: int = 1


class Chunk(NamedTuple):
    """Consecutive records of a part, and their keys."""

    keys: list[int]
    records: list[Record]

    @property
    def cursor(self) -> int:
        """Where reading it again begins; -1 if it stands for the rest of a broken shard, which has no records."""
        return self.keys[0] if self.keys else -1


def read_chunks(shard: Shard, part: Part, size: int, cursor: int | None) -> Iterator[Chunk]:
    """The records of a part in stored order, `size` at a time; `cursor`, if not None, is the chunk to begin at.

    Raises:
        BrokenShardError: the file is cut short, is no such format, or lacks the column.
    """
    keyed = _broken_when_senseless(FORMATS[shard.format](shard, part, cursor))
    chunk = Chunk([], [])
    try:
        for key, record in keyed:
            chunk.keys.append(key)
            chunk.records.append(record)
            if len(chunk.keys) == size:
                yield chunk
                chunk = Chunk([], [])
    except BrokenShardError:
        # What stands before the break is read, however many records make a chunk.
        if chunk.keys:
            yield chunk
        raise
    if chunk.keys:
        yield chunk


def _broken_when_senseless(keyed: Keyed) -> Keyed:
    """Tell a library's many words for bytes that make no sense from failures to get at the bytes."""
    try:
        yield from keyed
    except (ValueError, OSError) as error:  # Arrow's words; a store's own failures are StoreErrors
        raise BrokenShardError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def text_of(shard: Shard, record: Record) -> tuple[str, bytes]:
    """A record's text and its UTF-8 bytes; empty if it has none.

    Raises:
        BadDocumentError: invalid UTF-8 or JSON, no such column, or something else than text in it.
    """
    try:
        content = _field(record, shard.column) if shard.format == "json" and isinstance(record, bytes) else record
        if content is None:
            return "", b""
        if isinstance(content, bytes):
            return content.decode(), content
        return content, content.encode()
    except UnicodeError as error:
        raise BadDocumentError(f"invalid UTF-8 ({error})") from error
    except (ValueError, RecursionError) as error:
        raise BadDocumentError(f"invalid JSON ({error})") from error


def _field(line: bytes, column: str) -> str | None:
    if not line.strip():
        return None
    row = json.loads(line)
    if not isinstance(row, dict):
        raise BadDocumentError(f"a JSON {type(row).__name__} where one object a line is read")
    if column not in row:
        raise BadDocumentError(f"there is no column {column}; there is {', '.join(row) or 'none'}")
    if not isinstance(row[column], str | None):
        raise BadDocumentError(f"the column {column} holds {type(row[column]).__name__}, not text")
    return row[column]


def _parquet(shard: Shard, part: Part, cursor: int | None) -> Keyed:
    """Rows of a contiguous range; only the row groups that hold it, and only the one column, are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_bytes(shard.url) as stream:
        # Page by page: with its usual settings, Arrow holds a whole column chunk for every lane.
        file = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        _check_column(file.schema_arrow, shard.column)
        rows = file.metadata.num_rows
        first = rows * part.number // part.parts if cursor is None else cursor
        end = rows * (part.number + 1) // part.parts
        for group, start in _row_groups(file.metadata, first, end):
            row = start
            # One row group at a time, so that what is lost at a break does not depend on where reading began; and one
            # thread, since loader workers are how reading scales.
            for batch in file.iter_batches(1024, row_groups=[group], columns=[shard.column], use_threads=False):
                values = batch.column(0)[max(0, first - row) : max(0, end - row)]
                yield from enumerate(values.cast(pa.large_binary()).to_pylist(), max(row, first))
                row += len(batch)


def _check_column(schema: Any, column: str) -> None:
    import pyarrow as pa

    if schema.names.count(column) != 1:
        there = "is no" if column not in schema.names else "is more than one"
        raise BrokenShardError(f"there {there} column {column}; there is {', '.join(schema.names)}")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        raise BrokenShardError(f"the column {column} holds {kind}, not text")


def _row_groups(metadata: Any, first: int, end: int) -> Iterator[tuple[int, int]]:
    """The row groups that hold rows first to end, each with the row that it begins with."""
    start = 0
    for number in range(metadata.num_row_groups):
        stop = start + metadata.row_group(number).num_rows
        if start < end and first < stop:
            yield number, start
        start = stop


def _json(shard: Shard, part: Part, cursor: int | None) -> Keyed:
    return _records(shard, part, cursor, _lines, lambda stream, start: start)


def _text(shard: Shard, part: Part, cursor: int | None) -> Keyed:
    return _records(shard, part, cursor, _paragraphs, _next_paragraph)


def _records(
    shard: Shard,
    part: Part,
    cursor: int | None,
    split: Callable[[IO[bytes], int], Iterator[tuple[int, bytes]]],
    settle: Callable[[IO[bytes], int], int],
) -> Keyed:
    """Records of lines: those that begin in the part's range of bytes, or every so many-th of a compressed file."""
    with open_bytes(shard.url) as stream:
        if shard.compression:
            with decompressed(stream, CODECS[shard.compression]) as content:
                yield from _strided((record for _, record in split(content, 0)), part, cursor)
            return
        size = stream.seek(0, io.SEEK_END)
        start, end = (size * number // part.parts for number in (part.number, part.number + 1))
        if cursor is None:
            cursor = settle(stream, _next_line(stream, start)) if start else 0
        stream.seek(cursor)
        for key, record in split(stream, cursor):
            if key >= end:
                return
            yield key, record


def _strided(records: Iterable[Record], part: Part, cursor: int | None) -> Keyed:
    return islice(enumerate(records), part.number if cursor is None else cursor, None, part.parts)


def _next_line(stream: IO[bytes], start: int) -> int:
    """Where the first line that begins at `start` or later begins."""
    stream.seek(start - 1)
    return start - 1 + len(stream.readline())


def _next_paragraph(stream: IO[bytes], start: int) -> int:
    """Where the first line after a blank one begins, from a line's beginning on."""
    stream.seek(max(0, start - 3))
    before = stream.read(start - max(0, start - 3))
    before = before if start > 3 else b"\n" + before  # a file begins as if a line had ended before it
    inside = not before.endswith((b"\n\n", b"\n\r\n"))
    while inside and (line := stream.readline()):
        start += len(line)
        inside = line not in BLANK
    return start


def _lines(stream: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    for line in stream:
        yield start, line
        start += len(line)


def _paragraphs(stream: IO[bytes], start: int) -> Iterator[tuple[int, bytes]]:
    """Runs of lines between blank ones."""
    lines: list[bytes] = []
    for position, line in _lines(stream, start):
        if line not in BLANK:
            start = start if lines else position
            lines.append(line)
        elif lines:
            yield start, b"".join(lines)
            lines = []
    if lines:
        yield start, b"".join(lines)


def _rows(shard: Shard, part: Part, cursor: int | None) -> Keyed:
    """Rows of a format that only `datasets` reads; it begins at the shard's beginning whatever the place."""
    import datasets

    arguments = dict(shard.arguments)
    number = arguments.pop("shard")
    stream = datasets.load_dataset(**arguments, streaming=True)
    rows = stream.shard(stream.num_shards, number)
    yield from _strided((_text_in(row, shard.column) for row in rows), part, cursor)


def _text_in(row: dict[str, Any], column: str) -> Record:
    if column not in row:
        raise BrokenShardError(f"there is no column {column}; there is {', '.join(row)}")
    if not isinstance(row[column], str | None):
        raise BrokenShardError(f"the column {column} holds {type(row[column]).__name__}, not text")
    return row[column]


def size_of(url: str) -> int:
    """Bytes of a file."""
    with open_bytes(url) as stream:
        return stream.seek(0, io.SEEK_END)


@contextmanager
def open_bytes(url: str) -> Iterator[IO[bytes]]:
    """A seekable, buffered stream of a path or of any address that fsspec knows.

    Raises:
        StoreError: it cannot be opened or, later, read.
    """
    with store_errors():
        raw = _open(url)
    with raw, io.BufferedReader(_Guarded(raw), BUFFER_BYTES) as stream:
        yield stream


def _open(url: str) -> IO[bytes]:
    if "://" not in url:
        return Path(url).open("rb", buffering=0)
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url)
    return filesystem.open(path, "rb")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn whatever a store raises into a `StoreError` that says it."""
    try:
        yield
    except Exception as error:
        raise StoreError(" ".join(f"{type(error).__name__}: {error}".split())) from error


class _Guarded(io.RawIOBase):
    """A store's stream whose failures cannot be mistaken for senseless content."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with store_errors():
            return int(self.raw.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with store_errors():
            self.raw.seek(offset, whence)
            return int(self.raw.tell())

    def tell(self) -> int:
        return int(self.raw.tell())


def decompressed(stream: IO[bytes], codec: str) -> IO[bytes]:
    """The content of a compressed stream, all of it: whatever follows a finished part must be another part."""
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(stream, codec), DECOMPRESSED_BYTES)


FORMATS: dict[str, Callable[[Shard, Part, int | None], Keyed]] = {
    "parquet": _parquet,
    "json": _json,
    "text": _text,
    "rows": _rows,
}
"""How each format is read."""
