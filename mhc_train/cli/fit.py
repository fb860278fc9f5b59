"""`mhc-train fit`: train one model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mhc_train.cli.options import AtOnce, ConfigDir, ConfigName, Json, Overrides
from mhc_train.ranks import is_first

if TYPE_CHECKING:
    from mhc_train.schema import Config


def fit(
    overrides: Overrides = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    cfg: Annotated[
        Literal["job"] | None,
        typer.Option("--cfg", help="Print the composed configuration and exit.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, tokens a step and memory; train nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="PATH|auto",
            help="Go on from a run directory's newest good checkpoint, or from one of its checkpoints/step-*. "
            "Overrides may then change only how long and how often, where the text lies and how it is read, device, "
            "processes and memory, what follows a failure, and the tracker. auto: with the newest run of the "
            "configuration that the overrides give, which begins if there is none: what a job that is queued again "
            "should type.",
            show_default=False,
        ),
    ] = None,
    multirun: Annotated[
        bool,
        typer.Option(
            "--multirun",
            "-m",
            help="Train every combination of values with commas, range() or glob(), one process each. "
            "With --resume: go on with a sweep's directory.",
        ),
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="With -m: whether a job that fails ends the sweep.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With -m --resume: try failed jobs again, too.")
    ] = False,
    at_once: AtOnce = 1,
    run_directory: Annotated[Path | None, typer.Option("--run-directory", hidden=True)] = None,
    json: Json = False,
) -> None:
    """Train one model on any configuration, or with -m one after another on every combination of values.

    Examples:

    mhc-train fit experiment=quickstart connection=mhc

    mhc-train fit model=small connection=hc connection.streams=2 optim.lr=1e-3 train.steps=2000

    mhc-train fit data=json 'data.path=corpus/*.jsonl' data.column=text

    mhc-train fit --resume runs/20260101-120000-mhc-0a1b2c train.steps=4000

    mhc-train fit model=small connection=mhc --resume auto

    mhc-train fit -m connection=residual,hc,mhc 'seed=range(1,4)' optim.lr=1e-3,3e-4

    mhc-train fit -m --resume runs/20260101-120000-sweep-0a1b2c

    torchrun --nproc-per-node=8 -m mhc_train fit model=1b train.parallel=fsdp
    """
    given = overrides or []
    if multirun:
        from mhc_train.cli.sweep import sweep

        sweep(given, config_name, config_dir, cfg, dry_run, resume, fail_fast, retry_failed, at_once, json)
        return
    from mhc_train.config.compose import compose, to_yaml
    from mhc_train.errors import ConfigError

    if fail_fast or retry_failed or at_once > 1:
        raise ConfigError("--fail-fast, --retry-failed and --jobs are for sweeps. Type -m, too, or leave them out.")
    path = Path(resume) if resume not in (None, "auto") else None
    if path is not None and (path / "ledger.json").is_file():
        raise ConfigError(
            f"{path} is no run. A sweep goes on with `mhc-train fit -m --resume {path}`, a comparison with `mhc-train "
            f"compare --resume {path}`."
        )
    if cfg or dry_run:
        config = compose(given, config_name, config_dir) if path is None else _amended(path, given)
        if cfg:
            print(to_yaml(config), end="")
        else:
            _print_plan(config, json)
        return
    asked = compose(given, config_name, config_dir) if path is None else None
    from mhc_train.cli.output import count, print_json
    from mhc_train.training import fit as training

    if asked is None:
        assert path is not None
        summary = training.resume(path, given)
    elif resume == "auto":
        summary = training.resume_or_fit(asked, given)
    else:
        summary = training.fit(asked, given, run_directory)
    if not is_first():
        return
    if json:
        print_json(summary)
    else:
        print(
            f"{summary['run']}: step {summary['steps']}, validation loss {summary['val_loss']:.4f}, "
            f"{summary['val_bpb']:.4f} bits per byte, {count(summary['tokens_per_second'])} tokens/s"
        )


def _amended(path: Path, overrides: list[str]) -> "Config":
    """The configuration that a resumed run would have."""
    from mhc_train.checkpoints import load_checkpoint
    from mhc_train.config.compose import amend

    return amend(load_checkpoint(path).config, overrides)


def _print_plan(config: "Config", json: bool) -> None:
    from mhc_train.cli.output import print_json, print_table
    from mhc_train.training.plan import plan

    document = plan(config)
    if json:
        print_json(document)
        return
    print_table(
        "Parameters", ("part", "count"), [(part, f"{count:,}") for part, count in document["parameters"].items()]
    )
    memory = document["memory"]
    print_table("Memory", ("of", "MiB"), [(part, _mebibytes(size)) for part, size in memory.items()])
    print_table(
        "Recomputation",
        ("train.recompute", "computed again", "kept, MiB", "peak, MiB", "saves, MiB", "of a forward pass"),
        [
            (row["recompute"], _computed_again(row), _mebibytes(row["activations"]), _mebibytes(row["peak"]),
             _mebibytes(row["saved"]), "-" if row["extra_forward"] is None else f"{row['extra_forward']:.1%}")
            for row in document["recompute"]
        ],
    )  # fmt: skip
    print_table(
        "Sharded, each device",
        ("devices", "states, MiB", "gathered, MiB", "transient, MiB", "at most, MiB"),
        [
            (str(row["devices"]), *(_mebibytes(row[part]) for part in ("states", "gathered", "transient", "peak")))
            for row in document["sharded"]
        ],
    )
    print(
        f"{document['tokens_per_step']:,} tokens a step ({document['accumulation']} micro-batches), "
        f"{document['total_tokens']:,} tokens in all, {document['flops_per_token'] / 1e6:,.1f} MFLOP a token. "
        f"Device: {document['device']}"
    )
    for remark in document["remarks"]:
        print(remark)


def _computed_again(row: dict[str, Any]) -> str:
    """What the backward pass makes a second time, in a few words."""
    if row["streams_only"] and row["extra_forward"] is None:
        return f"segments of {row['sublayers']}, but for products"
    if row["streams_only"]:
        return f"streams, from one state in {row['sublayers']}"
    return f"segments of {row['sublayers']} sublayers" if row["sublayers"] else "-"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"
