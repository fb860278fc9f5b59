"""Faults for tests: forked processes, death or a power cut at any file-system call, and files that are damaged.

A child is forked, since importing torch anew for each of hundreds takes hours. Where the parent may have used a GPU it
must not be: `pytest` then needs `CUDA_VISIBLE_DEVICES=`.
"""

import builtins
import contextlib
import io
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mhc_train.cli.app import main

DEAD = 66
"""Exit code of a process that died where it was told to."""
CRASHED = 99
"""Exit code of a child with an error that it should not have."""
PATIENCE = 120
"""Seconds that no child may take."""


@dataclass(frozen=True)
class Ended:
    """A child that has ended."""

    code: int
    """Its exit code; of one that a signal killed, the signal's number below zero."""
    said: str
    """What it printed."""


class Child:
    """A forked process that runs `act`, and ends with what that returns as its exit code (None: 0)."""

    def __init__(self, act: Callable[[], int | None], log: Path) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(act)

    def _run(self, act: Callable[[], int | None]) -> NoReturn:
        code = CRASHED
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
            code = act() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended already, and is not waited for yet, ignores it."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Until it has ended; one that hangs is killed."""
        limit = time.monotonic() + PATIENCE
        while True:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                return Ended(os.waitstatus_to_exitcode(status), self.log.read_text() if self.log.exists() else "")
            if time.monotonic() > limit:
                self.send(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a child did not end: {self.log.read_text()}")
            time.sleep(0.002)


def forked(act: Callable[[], int | None], log: Path) -> Ended:
    """Run `act` in a child to its end."""
    return Child(act, log).wait()


def command(*arguments: str) -> int:
    """Run `mhc-train ARGUMENTS` in this process; returns its exit code."""
    sys.argv = ["mhc-train", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


CALLS = ("open", "write", "fsync", "fdatasync", "sync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir",
         "symlink", "link", "truncate", "ftruncate")  # fmt: skip
FATES = ("before", "after", "torn", "power cut")
"""How a process dies: before a call; after it; amid a write; after it, and the machine forgets what was not synced."""
Key = tuple[int, int]


class Change(NamedTuple):
    """A directory's change that is not on the disk."""

    directory: Key
    moved: Key | None
    """The directory that was renamed."""
    undo: Callable[[], Any]


class Disk:
    """Counts every call that changes files, and ends the process at one of them.

    What a power cut forgets: the content of files that were not synced, and names that were made, or changed, in
    directories that were not. It never forgets that a file was deleted: a program must be right in either case.

    Args:
        at: the number of the call to die at; none for a dry run.
        fate: one of `FATES`.
    """

    def __init__(self, at: int | None = None, fate: str = "before") -> None:
        self.at, self.fate = at, fate
        self.calls: list[str] = []
        self.unsynced: dict[Key, int] = {}
        """Of files, by a descriptor of their own."""
        self.changes: list[Change] = []
        self.genuine: dict[str, Any] = {name: getattr(os, name) for name in CALLS}
        self.genuine["stream"] = io.open

    def watch(self) -> None:
        """From now on, for the rest of this process."""
        for name in CALLS:
            setattr(os, name, self._watched(name))
        io.open = builtins.open = self._open_stream  # type: ignore[assignment]

    def call(self, name: str, act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Make a call, unless it is the one to die at."""
        fatal = len(self.calls) == self.at
        self.calls.append(name)
        if fatal and self.fate == "torn" and half is not None:
            half()
        if fatal and self.fate in ("before", "torn"):
            os._exit(DEAD)
        try:
            return act()
        finally:
            if fatal:
                if self.fate == "power cut":
                    self._forget()
                os._exit(DEAD)

    def _watched(self, name: str) -> Callable[..., Any]:
        genuine = self.genuine[name]
        note = getattr(self, f"_{name}", None)

        def call(*arguments: Any, **options: Any) -> Any:
            if note is None:
                return self.call(name, lambda: genuine(*arguments, **options))
            return self.call(name, lambda: note(genuine, *arguments, **options))

        return call

    def _fsync(self, genuine: Any, descriptor: int) -> None:
        genuine(descriptor)
        key = key_of(os.fstat(descriptor))
        if key in self.unsynced:
            os.close(self.unsynced.pop(key))
        self.changes = [change for change in self.changes if change.directory != key]

    _fdatasync = _fsync

    def _mkdir(self, genuine: Any, path: Any, *arguments: Any, **options: Any) -> None:
        genuine(path, *arguments, **options)
        self._changed(path, lambda name, parent: shutil.rmtree(name, dir_fd=parent))

    def _rename(self, genuine: Any, source: Any, target: Any) -> None:
        new = not os.path.lexists(target)
        genuine(source, target)
        if new:  # else what was there is gone for good

            def undo(name: str, parent: int) -> None:
                self.genuine["rename"](name, Path(source).name, src_dir_fd=parent, dst_dir_fd=parent)

            self._changed(target, undo, moved=key_of(Path(target).stat()))

    _replace = _rename

    def _unlink(self, genuine: Any, path: Any, *, dir_fd: int | None = None) -> None:
        parent = key_of(os.fstat(dir_fd) if dir_fd is not None else Path(path).parent.stat())
        genuine(path, dir_fd=dir_fd)
        # Names go after the directory itself was renamed; that they are gone and its old name is not, nothing does.
        self.changes = [change for change in self.changes if change.moved != parent]

    def _changed(self, path: Any, undo: Callable[[str, int], Any], moved: Key | None = None) -> None:
        # By a descriptor, which leads to the directory whatever it is called later.
        name, parent = Path(path).name, self.genuine["open"](Path(path).parent, os.O_RDONLY)

        def forget() -> None:
            with contextlib.suppress(FileNotFoundError):
                undo(name, parent)

        self.changes.append(Change(key_of(os.fstat(parent)), moved, forget))

    def _open_stream(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        genuine = self.genuine["stream"]
        if isinstance(file, int) or "b" not in mode or not set(mode) & set("wax+"):
            return genuine(file, mode, *arguments, **options)
        new = not os.path.lexists(file)
        # Without a buffer: what is written is in the file, for the next call to die at.
        stream = self.call("open to write", lambda: genuine(file, mode, buffering=0))
        self.unsynced.setdefault(key_of(os.fstat(stream.fileno())), os.dup(stream.fileno()))
        if new:
            self._changed(file, lambda name, parent: os.unlink(name, dir_fd=parent))
        return Stream(self, stream)

    def _forget(self) -> None:
        for descriptor in self.unsynced.values():
            self.genuine["ftruncate"](descriptor, 0)
        for name, genuine in self.genuine.items():
            if name != "stream":
                setattr(os, name, genuine)
        for change in reversed(self.changes):
            change.undo()


class Stream:
    """A file that is written to."""

    def __init__(self, disk: Disk, stream: Any) -> None:
        self.disk, self.stream = disk, stream

    def write(self, content: Any) -> int:
        view = memoryview(content).cast("B")
        half = view[: len(view) // 2]
        self.disk.call("write to file", lambda: _write_all(self.stream, view), lambda: _write_all(self.stream, half))
        return len(view)

    def flush(self) -> None:
        self.disk.call("flush", self.stream.flush)

    def close(self) -> None:
        if not self.stream.closed:
            self.disk.call("close", self.stream.close)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _write_all(stream: Any, view: memoryview) -> None:
    while view:
        view = view[stream.write(view) :]


def key_of(facts: os.stat_result) -> Key:
    """What identifies a file whatever it is called."""
    return facts.st_dev, facts.st_ino


def calls_of(act: Callable[[], Any], log: Path) -> list[str]:
    """The names of all calls that `act` makes, in a child."""
    listing = log.with_suffix(".calls")

    def dry_run() -> None:
        disk = Disk()
        disk.watch()
        act()
        with os.fdopen(disk.genuine["open"](listing, os.O_WRONLY | os.O_CREAT), "w") as stream:
            stream.write("\n".join(disk.calls))

    ended = forked(dry_run, log)
    assert ended.code == 0, ended.said
    return listing.read_text().split("\n")


def killed_at(act: Callable[[], Any], at: int, fate: str, log: Path) -> Ended:
    """Run `act` in a child that dies at its call number `at`."""

    def doomed() -> None:
        Disk(at, fate).watch()
        act()

    return forked(doomed, log)


Damage = Callable[[Path], None]


def cut(keep: Callable[[int], int]) -> Damage:
    """Truncates a file to a length that `keep` makes of its own."""
    return lambda path: os.truncate(path, keep(path.stat().st_size))


def flipped(place: Callable[[int], int], bits: int = 0x40) -> Damage:
    """Changes one byte of a file, at a place that depends on its length."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place(len(content))] ^= bits
        path.write_bytes(content)

    return damage


def swap(one: Path, other: Path) -> None:
    """Exchange the contents of two files."""
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGES: dict[str, Damage] = {
    "emptied": cut(lambda size: 0),
    "halved": cut(lambda size: size // 2),
    "one byte short": cut(lambda size: size - 1),
    "one byte long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "first byte": flipped(lambda size: 0),
    "middle byte": flipped(lambda size: size // 2),
    "last byte": flipped(lambda size: size - 1),
    "lowest bit of the first byte": flipped(lambda size: 0, 1),
    "deleted": Path.unlink,
}


def files_of(checkpoint: Path) -> list[str]:
    """Every file of a checkpoint, as errors name it."""
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


class Sweeps:
    """What full sweeps came to, by name."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def record(self, name: str, cases: int, failures: list[str], **facts: Any) -> None:
        """Note a sweep, then let the test fail if any case did."""
        self.found[name] = {"cases": cases, "failures": len(failures)} | facts
        assert not failures, f"{len(failures)} of {cases}: " + "\n".join(failures[:5])
