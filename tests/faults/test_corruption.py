"""A checkpoint with any file damaged is refused by that file's name; a run falls back to the newest good one."""

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulting import DAMAGES, Ended, Sweeps, command, files_of, flipped, forked, swap
from test_kills import snapshot
from tiny import overrides

from mhc_train.checkpoints import Keep, load_checkpoint, write_checkpoint
from mhc_train.checkpoints.reading import open_checkpoint
from mhc_train.errors import CheckpointError

Case = tuple[str, str, Callable[[Path], object]]
"""A file, what is done, and how, to the directory of all checkpoints."""
DAMAGED, OLDER = "step-00000002", "step-00000001"


def checkpoints(place: Path, sharded: bool) -> Path:
    """Of steps 1 and 2."""
    for step in (1, 2):
        write_checkpoint(place / "checkpoints", snapshot(step, sharded), Keep(9))
    return place


def cases(run: Path) -> Iterator[Case]:
    """All that is done to the newest checkpoint, each of which makes it another."""
    newest, older = (run / "checkpoints" / name for name in (DAMAGED, OLDER))
    draw = random.Random(0)
    names = files_of(newest)
    for name in names:
        for what, damage in DAMAGES.items():
            yield name, what, lambda path, name=name, damage=damage: damage(path / DAMAGED / name)
        for place in (draw.random() for _ in range(3)):
            damage = flipped(lambda size, place=place: int(size * place), 1 << draw.randrange(8))
            yield name, f"a bit at {place:.3f}", lambda path, name=name, damage=damage: damage(path / DAMAGED / name)
        if (newest / name).read_bytes() != (older / name).read_bytes():
            yield name, "of another step", lambda path, name=name: swap(path / DAMAGED / name, path / OLDER / name)
    for one, other in itertools.combinations(names, 2):
        yield (
            one,
            f"swapped with {other}",
            lambda path, one=one, other=other: swap(path / DAMAGED / one, path / DAMAGED / other),
        )


def trouble(run: Path, case: Case) -> str | None:
    """What is wrong with how a damage is met."""
    name, what, damage = case
    path = run / "checkpoints"
    damage(path)
    try:
        open_checkpoint(path / DAMAGED)
        return f"{name}, {what}: not noticed"
    except CheckpointError as error:
        if not names_what_is_wrong(str(error), name, what) or error.exit_code != 4:
            return f"{name}, {what}: {error}"
    if what != "of another step" and load_checkpoint(run).path.name != OLDER:
        return f"{name}, {what}: no way back"
    return None


def names_what_is_wrong(message: str, name: str, what: str) -> bool:
    """Every file that was changed; but a manifest that is no longer one can tell nothing of the others."""
    changed = {name, what.removeprefix("swapped with ")} if what.startswith("swapped with ") else {name}
    if changed == {"manifest.json"} and what == "of another step":
        return "is not the manifest's" in message
    return all(part in message for part in (changed & {"manifest.json"} or changed))


def tried(run: Path, case: Case, place: Path) -> str | None:
    shutil.copytree(run, place)
    try:
        return trouble(place, case)
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("sharded", [False, True])
def test_some_damage_is_noticed_and_named(sharded: bool, tmp_path: Path) -> None:
    run = checkpoints(tmp_path / "run", sharded)
    chosen = random.Random(1).sample(list(cases(run)), 15)
    assert not [text for case in chosen if (text := tried(run, case, tmp_path / "copy"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_all_damage_is_noticed_and_named(kind: str, tmp_path: Path, sweeps: Sweeps) -> None:
    run = checkpoints(tmp_path / "run", kind == "sharded")
    every = list(cases(run))
    failures = [text for case in every if (text := tried(run, case, tmp_path / "copy"))]
    sweeps.record(f"damaged: {kind} checkpoint", len(every), failures)


@pytest.mark.slow
def test_every_bit_of_a_manifest_counts(tmp_path: Path, sweeps: Sweeps) -> None:
    run = checkpoints(tmp_path, False)
    manifest = run / "checkpoints" / DAMAGED / "manifest.json"
    content, failures = manifest.read_bytes(), []
    for place, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        manifest.write_bytes(changed)
        failures += refused(manifest.parent, f"bit {bit} of byte {place}")
    sweeps.record("damaged: every bit of a manifest", 8 * len(content), failures)


def test_a_manifest_cannot_be_taken_for_one_of_the_first_format(tmp_path: Path) -> None:
    run = checkpoints(tmp_path, False)
    manifest = run / "checkpoints" / DAMAGED / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    assert refused(manifest.parent, "its version") == []


def refused(checkpoint: Path, what: str) -> list[str]:
    """Empty if it is, by the manifest's name."""
    try:
        open_checkpoint(checkpoint)
    except CheckpointError as error:
        return [] if "manifest.json" in str(error) else [f"{what}: {error}"]
    return [f"{what}: not noticed"]


def tell(place: Path, *arguments: str) -> Ended:
    """Run a command line."""
    return forked(lambda: command(*arguments), place / "log")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a run of eight steps, saved at the fourth and eighth."""
    place = tmp_path_factory.mktemp("trained")
    assert tell(place, "fit", *overrides(place)).code == 0
    return place


def damaged_run(trained: Path, place: Path, name: str, damage: str) -> Path:
    """The run in a copy of its place, with its newest checkpoint damaged."""
    (run,) = (trained / "runs").iterdir()
    copy = shutil.copytree(run, place / "runs" / run.name)
    DAMAGES[damage](copy / "checkpoints" / "step-00000008" / name)
    return copy


def command_line_trouble(trained: Path, place: Path, name: str, damage: str) -> str | None:
    """What is wrong with how the command line meets a damaged file."""
    run = damaged_run(trained, place, name, damage)
    again = [*overrides(trained), f"runs_dir={place / 'runs'}", "--resume"]
    for arguments in (("fit", "--resume"), ("diagnose",)):
        ended = tell(place, *arguments, str(run / "checkpoints" / "step-00000008"))
        if ended.code != 4 or f"error: {run}" not in ended.said or name not in ended.said:
            return f"{name}, {damage}: {arguments}: {ended}"
    ended = tell(place, "fit", *again, "auto") if len(name) % 2 else tell(place, "fit", "--resume", str(run))
    said = all(text in ended.said for text in (name, "The one before it is used", "at step 4"))
    if ended.code != 0 or not said or load_checkpoint(run).state["step"] != 8:
        return f"{name}, {damage}: going on from the one before: {ended}"
    return None


@pytest.mark.parametrize("name", ["optimizer.safetensors", "manifest.json"])
def test_the_command_line_refuses_what_is_damaged_and_goes_back(name: str, trained: Path, tmp_path: Path) -> None:
    assert command_line_trouble(trained, tmp_path, name, "middle byte") is None


@pytest.mark.slow
def test_the_command_line_meets_damage_of_every_file(trained: Path, tmp_path: Path, sweeps: Sweeps) -> None:
    (run,) = (trained / "runs").iterdir()
    every = list(itertools.product(files_of(run / "checkpoints" / "step-00000008"), ["halved", "last byte", "deleted"]))
    places = (tmp_path / str(number) for number in range(len(every)))
    failures = [
        text
        for (name, damage), place in zip(every, places, strict=True)
        if place.mkdir() is None and (text := command_line_trouble(trained, place, name, damage))
    ]
    sweeps.record("damaged: met by the command line", len(every), failures)
