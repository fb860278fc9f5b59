"""The directory of a run's checkpoints: their names, which are kept, and how one appears and goes in a single step."""

import contextlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mhc_train.files import sync, write_text

NAME = re.compile(r"step-(\d{8,})")
ASIDE = ".superseded"
"""Ends the names of those that a resumed training has left behind: damaged ones, and a future that was given up."""


@dataclass(frozen=True)
class Keep:
    """Which complete checkpoints stay."""

    last: int
    """This many of the newest; at least one."""
    every: int = 0
    """And all whose step is a multiple of this; 0 for none."""

    def superfluous(self, paths: Sequence[Path]) -> list[Path]:
        """Those of `paths`, oldest first, that may go."""
        return [path for path in paths[: -self.last] if not (self.every and step_of(path) % self.every == 0)]


def name_of(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint, also one that is set aside, was taken after."""
    found = NAME.match(path.name)
    assert found is not None
    return int(found[1])


def named_checkpoints(directory: Path) -> list[Path]:
    """Whatever has a checkpoint's name, oldest first, good or not."""
    return sorted((path for path in directory.glob("step-*") if NAME.fullmatch(path.name)), key=step_of)


def complete_checkpoints(directory: Path) -> list[Path]:
    """Every checkpoint that has a manifest, which is written last; oldest first."""
    return [path for path in named_checkpoints(directory) if (path / "manifest.json").is_file()]


def set_aside(directory: Path, after: int) -> list[Path]:
    """Rename all checkpoints of steps after `after`, so that a training which goes on from there cannot be mistaken."""
    moved = [path for path in named_checkpoints(directory) if step_of(path) > after]
    for path in moved:
        _set_aside(path)
    left = complete_checkpoints(directory)
    if moved and left:
        _point_to(left[-1])
    return moved


def checkpoints_aside(directory: Path) -> list[Path]:
    """Those that were set aside, oldest first."""
    return sorted(directory.glob(f"step-*{ASIDE}"))


def _point_to(path: Path) -> None:
    write_text(path.parent / "latest", path.name + "\n")


def _set_aside(path: Path) -> None:
    target = path.with_name(path.name + ASIDE)
    if target.exists():
        remove(target)
    path.rename(target)


def publish(hidden: Path, final: Path) -> None:
    """Give a checkpoint that is completely written its name, and point `latest` to it."""
    sync(hidden)
    if final.exists():  # damaged, or it would not be written again
        _set_aside(final)
    hidden.rename(final)
    sync(final.parent)
    _point_to(final)


def prune(directory: Path, keep: Keep, all_aside: bool = False) -> list[Path]:
    """Remove what is `superfluous`; returns it."""
    found = superfluous(directory, keep, all_aside)
    for path in found:
        remove(path)
    return found


def superfluous(directory: Path, keep: Keep, all_aside: bool = False) -> list[Path]:
    """What `keep` does not hold, and what was set aside: at steps that are complete again, or all of it."""
    complete = complete_checkpoints(directory)
    newest = step_of(complete[-1]) if complete else -1
    aside = [path for path in checkpoints_aside(directory) if all_aside or step_of(path) <= newest]
    return keep.superfluous(complete) + aside


def remove(path: Path) -> None:
    """Delete a checkpoint; it is out of sight before its first file goes."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # somebody else prunes too
        path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what processes that were killed have left half written or half removed."""
    for path in directory.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".latest.*"):
        path.unlink(missing_ok=True)
