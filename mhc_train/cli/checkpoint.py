"""`mhc-train checkpoint`: list, verify, prune and convert what a run has saved."""

from pathlib import Path
from typing import Annotated

import typer

from mhc_train.cli.options import Json

SCHEMA_VERSION = 1

checkpoint = typer.Typer(no_args_is_help=True, help="List, verify, prune and convert checkpoints.")

RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]


@checkpoint.command("list")
def list_checkpoints(run: RunDirectory, json: Json = False) -> None:
    """List a run's checkpoints: step, size, how its tensors lie, whether all of its files are there.

    Examples:

    mhc-train checkpoint list runs/20260101-120000-mhc-0a1b2c
    """
    from mhc_train.checkpoints.listing import described, found_in
    from mhc_train.cli.output import print_json, print_table

    rows = [described(path) for path in found_in(run)]
    if json:
        print_json({"schema_version": SCHEMA_VERSION, "run": str(run), "checkpoints": rows})
        return
    titles = ("name", "step", "MiB", "tensors", "written by", "state")
    cells = [
        (
            row["name"],
            f"{row['step']:,}",
            f"{row['bytes'] / 2**20:,.1f}",
            row["tensors"] or "-",
            f"{row['ranks']} process{'es' if row['ranks'] > 1 else ''}" if row["ranks"] else "-",
            row["state"],
        )
        for row in rows
    ]
    print_table(str(run), titles, cells)


@checkpoint.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A run directory, or one of its checkpoints.")],
    json: Json = False,
) -> None:
    """Read every byte of a checkpoint, or of all of a run, and compare it with what was written. Exit code 4 if not.

    Examples:

    mhc-train checkpoint verify runs/20260101-120000-mhc-0a1b2c

    mhc-train checkpoint verify runs/20260101-120000-mhc-0a1b2c/checkpoints/step-00001000
    """
    from mhc_train.checkpoints import verify as problems_of
    from mhc_train.checkpoints.listing import found_in
    from mhc_train.cli.output import print_json
    from mhc_train.errors import CheckpointError

    single = (path / "manifest.json").exists() or path.name.startswith("step-")
    problems = {place: problems_of(place) for place in ([path] if single else found_in(path, aside=False))}
    if json:
        rows = [{"checkpoint": str(place), "problems": found} for place, found in problems.items()]
        print_json({"schema_version": SCHEMA_VERSION, "good": not any(problems.values()), "checkpoints": rows})
    else:
        for place in (place for place, found in problems.items() if not found):
            print(f"{place}: good")
    if any(problems.values()):
        raise CheckpointError("\n".join(f"{place}: {text}" for place, found in problems.items() for text in found))


@checkpoint.command()
def prune(
    run: RunDirectory,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Newest complete checkpoints that stay.")],
    every: Annotated[int, typer.Option("--every", min=0, help="Also those whose step is a multiple of this.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove a run's older checkpoints, and those that a resumed training has left behind. One good one always stays.

    Examples:

    mhc-train checkpoint prune runs/20260101-120000-mhc-0a1b2c --keep 1 --every 10000 --dry-run
    """
    from mhc_train.checkpoints.listing import pruned
    from mhc_train.cli.output import print_json

    names = [path.name for path in pruned(run, keep, every, dry_run)]
    if json:
        print_json({"schema_version": SCHEMA_VERSION, "run": str(run), "dry_run": dry_run, "removed": names})
        return
    for name in names:
        print(f"{name}: {'would be removed' if dry_run else 'removed'}")


@checkpoint.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run with one.")],
    target: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where to write it; must not exist yet.")],
    json: Json = False,
) -> None:
    """Write a checkpoint with whole tensors, however it was sharded: one model.safetensors that other tools read.

    It can be diagnosed. To go on training, no conversion is needed: any number of processes reads either form.

    Examples:

    mhc-train checkpoint convert runs/20260101-120000-mhc-0a1b2c/checkpoints/step-00001000 exported
    """
    from mhc_train.checkpoints.listing import written_whole
    from mhc_train.cli.output import print_json

    path = str(written_whole(source, target))
    if json:
        print_json({"schema_version": SCHEMA_VERSION, "checkpoint": path})
    else:
        print(path)
