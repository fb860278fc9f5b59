"""The one place that writes files: whole or not at all, and with a message when the disk refuses."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mhc_train.errors import StorageError

BLOCK = 1 << 16
"""Bytes that are read at once from a file's end."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}. Free some space, or choose a writable place with runs_dir=DIR "
            "(run directories) or data.cache_dir=DIR (corpora and tokenizers)."
        ) from error


def make_output(output: Path) -> None:
    """Make the directory that --output names, before time is spent on what is to be written there.

    Raises:
        StorageError: nothing can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise StorageError(
            f"--output {output}: {error.strerror or error}. Name a directory that can be written to."
        ) from error


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`; others wait, and should then look whether it is there."""
    from filelock import FileLock

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file. The file is not made, and no other look is kept from it.

    Who wants the lock itself must try for longer than a moment: the look shares it for as long as it takes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to a hidden sibling, flush it to the disk, then rename it onto `path`."""
    sibling = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with sibling.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            sibling.replace(path)
        except OSError:
            sibling.unlink(missing_ok=True)
            raise


def write_json(path: Path, document: Any) -> None:
    """Write `document` as indented JSON, its keys in their own order; NaN and infinity are refused."""
    write_text(path, json_text(document))


def finite(number: float) -> float | None:
    """The number, if JSON has it; None for infinities and what is no number."""
    return number if math.isfinite(number) else None


def json_text(document: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


class HashedFile:
    """A file that is hashed as it is written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._digest, self._size = stream, hashlib.sha256(), 0

    def write(self, content: bytes | memoryview) -> None:
        """Add `content` to its end."""
        self._stream.write(content)
        self._digest.update(content)
        self._size += len(content)

    def facts(self) -> dict[str, Any]:
        """`sha256` and `bytes` of what was written."""
        return {"sha256": self._digest.hexdigest(), "bytes": self._size}


@contextlib.contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """A new file that is on the disk when the block ends; for directories that nobody looks into before that."""
    with storage_errors(path), path.open("wb") as stream:
        yield HashedFile(stream)
        stream.flush()
        os.fsync(stream.fileno())


def append_json_line(path: Path, document: Any) -> None:
    """Append `document` as one line of JSON; a crash can cut the last line only, which `read_json_lines` drops."""
    line = json.dumps(document, allow_nan=False) + "\n"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a JSON-lines file, in order; an absent file is an empty one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def json_lines_from_end(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a JSON-lines file from the last to the first, of which only what is asked for is read."""
    if path.exists():
        yield from map(json.loads, _lines_from_end(path))


def _lines_from_end(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        position, rest, ended = stream.seek(0, os.SEEK_END), b"", False
        while position:
            size = min(BLOCK, position)
            position = stream.seek(position - size)
            rest, *lines = (stream.read(size) + rest).split(b"\n")
            if lines and not ended:  # what follows the last newline is yet to be written to its end
                lines.pop()
                ended = True
            yield from filter(None, reversed(lines))
        if ended and rest:
            yield rest


def sync(path: Path) -> None:
    """Flush a file, or a directory's entries so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
