"""A store at `faulty://` that reads local files and fails when it is told to; `import faulty` is all it takes.

Faults come from a script, one for every time that the store is asked for something, or for as long as a file named
`down` stands beside the text, which worker processes see too.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec

Fault = Callable[[], Exception] | None


class Refusal(Exception):
    """What an HTTP client that knows no OSError makes of a status."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(
            status_code=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


class Script:
    """What happens next, and what was asked for."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults, self.asked = iter(faults), list[str]()

    def ask(self, operation: str, path: str) -> None:
        self.asked.append(f"{operation} {Path(path).name}")
        fault = next(self.faults, None)
        if fault is not None:
            raise fault()
        if (Path(path).parent / "down").exists():
            raise ConnectionResetError("the store is down")


_now = Script()


@contextmanager
def failing(faults: Iterable[Fault] = ()) -> Iterator[Script]:
    """The store fails by this script."""
    global _now
    before, _now = _now, Script(faults)
    try:
        yield _now
    finally:
        _now = before


pauses: list[float] = []


def no_pause(seconds: float) -> None:
    """Stands for `time.sleep`, also in a `Retry` that goes to another process, where it brings this module along."""
    pauses.append(seconds)


class FaultyFileSystem(fsspec.AbstractFileSystem):
    protocol = "faulty"
    root_marker = "/"
    cachable = False

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        _now.ask("list", path)
        found = [self.facts(str(name)) for name in sorted(Path(path).iterdir())]
        return found if detail else [facts["name"] for facts in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        _now.ask("info", path)
        return self.facts(path)

    def facts(self, path: str) -> dict[str, Any]:
        if Path(path).is_dir():
            return {"name": path, "size": 0, "type": "directory"}
        content = Path(path).read_bytes()
        return {"name": path, "size": len(content), "type": "file", "ETag": hashlib.sha256(content).hexdigest()}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> "FaultyFile":
        _now.ask("open", path)
        return FaultyFile(path)


class FaultyFile(io.RawIOBase):
    def __init__(self, path: str) -> None:
        self.path, self.file = path, io.FileIO(path)

    def readinto(self, buffer: Any) -> int:
        _now.ask("read", self.path)
        return self.file.readinto(memoryview(buffer)[:4096]) or 0  # a store answers in pieces

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
