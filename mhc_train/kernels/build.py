"""Builds `native.cpp` for this machine's CPU, once; what was built is kept beside other caches of the user's."""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mhc_train.console import say

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread")
FOR_THIS_CPU = ("-march=native", "-mcpu=native", "-O3")
"""How compilers are told to use all that this CPU can do, and what all of them take; the first that works."""
SECONDS = 120
"""After which a compiler counts as hanging."""


@cache
def library(streams: int) -> ctypes.CDLL | str:
    """The operators for n streams, or why there are none; a failure is told, once."""
    if os.name != "posix":
        return "the C++ kernels are built on Linux and macOS"
    command = _command()
    if not command:
        return "no C++ compiler is installed (c++, g++ or clang++, or set CXX)"
    try:
        return _loaded(_built(command, streams), command, streams)
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{' '.join(command)} cannot build the C++ kernels ({_told_by(error)})"
        say(f"Kernels: {reason}. Taking torch's operators, which are slower.")
        return reason


def _told_by(error: OSError | subprocess.SubprocessError) -> str:
    """What went wrong, in a line: a compiler's own words where it has failed and said any."""
    if isinstance(error, subprocess.CalledProcessError):
        return _first_line(error.stderr or f"exit status {error.returncode}")
    return _first_line(str(error))


def compiler() -> str:
    """Name and version of the compiler, for records of what was measured."""
    command = _command()
    return _version(command) if command else "none"


def _command() -> tuple[str, ...]:
    """The compiler that is installed, and what CXX says after its name ("ccache g++"); empty if there is none."""
    for wanted in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        name, *arguments = wanted.split() or [""]
        if path := shutil.which(name):
            return (path, *arguments)
    return ()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, messages = process.communicate(timeout=SECONDS)
        except BaseException:
            # A compiler is several processes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, messages)


@cache
def _version(command: tuple[str, ...]) -> str:
    answer = _run([*command, "--version"])
    answer.check_returncode()
    return _first_line(answer.stdout)


def _loaded(path: Path, command: tuple[str, ...], streams: int) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # cut short or damaged since it was left there
        _build(command, streams, path)
        return ctypes.CDLL(str(path))


def _built(command: tuple[str, ...], streams: int) -> Path:
    """The shared library: found where it was left, or built. It belongs to one source, compiler and kind of CPU."""
    identity = [SOURCE.read_text(), *FLAGS, *command, _version(command), _cpu(), str(streams)]
    name = f"streams-{streams}-{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:16]}.so"
    path = _directory() / name
    if not path.exists():
        _build(command, streams, path)
    return path


def _build(command: tuple[str, ...], streams: int, path: Path) -> None:
    # Processes that build at the same time each write a file of their own; the last one's stays.
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        made = Path(directory) / path.name
        for flag in FOR_THIS_CPU:
            answer = _run([*command, *FLAGS, flag, f"-DSTREAMS={streams}", "-o", str(made), str(SOURCE)])
            if answer.returncode == 0:
                break
        answer.check_returncode()
        made.replace(path)


def _directory() -> Path:
    """The user's cache directory; else one beside temporary files, for all processes of the user or for this alone."""
    for find in (_cache_directory, lambda: Path(tempfile.gettempdir(), f"mhc-train-{os.getuid()}")):
        with contextlib.suppress(OSError, RuntimeError):  # not to be written; no home
            path = find()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _is_private(path):
                return path
    return Path(tempfile.mkdtemp(prefix="mhc-train-kernels-"))


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mhc-train" / "kernels"


def _is_private(path: Path) -> bool:
    """Whether the user can write there, and nobody else who could leave a library to be loaded."""
    status = path.lstat()  # where a link leads to may change
    private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return private and stat.S_ISDIR(status.st_mode) and os.access(path, os.W_OK)


def _cpu() -> str:
    """What this CPU can do: a home directory may be shared by machines that differ in it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
