"""`mhc-train fit`: train one model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mhc_train.cli.options import ConfigDir, ConfigName, Json, Overrides


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
        Path | None,
        typer.Option(
            "--resume",
            help="Go on from a run directory's newest checkpoint, or from one of its checkpoints/step-*. "
            "Overrides may then change only how long and how often, where the text lies and how it is read, the device "
            "and the tracker.",
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
    run_directory: Annotated[Path | None, typer.Option("--run-directory", hidden=True)] = None,
    json: Json = False,
) -> None:
    """Train one model on any configuration, or with -m one after another on every combination of values.

    Examples:

    mhc-train fit experiment=quickstart connection=mhc

    mhc-train fit model=small connection=hc connection.streams=2 optim.lr=1e-3 train.steps=2000

    mhc-train fit data=json 'data.path=corpus/*.jsonl' data.column=text

    mhc-train fit --resume runs/20260101-120000-mhc-0a1b2c train.steps=4000

    mhc-train fit -m connection=residual,hc,mhc 'seed=range(1,4)' optim.lr=1e-3,3e-4

    mhc-train fit -m --resume runs/20260101-120000-sweep-0a1b2c
    """
    if multirun:
        from mhc_train.cli.sweep import sweep

        sweep(overrides or [], config_name, config_dir, cfg, dry_run, resume, fail_fast, retry_failed, json)
        return
    from mhc_train.errors import ConfigError

    if fail_fast or retry_failed:
        raise ConfigError("--fail-fast and --retry-failed are for sweeps. Type -m, too, or leave them out.")
    from mhc_train.config.compose import amend, compose, to_yaml

    if resume is not None:
        from mhc_train.checkpoints import load_checkpoint

        if (resume / "ledger.json").is_file():
            raise ConfigError(f"{resume} is a sweep. Type `mhc-train fit -m --resume {resume}`.")
        checkpoint = load_checkpoint(resume)
        config = amend(checkpoint.config, overrides or [])
    else:
        config = compose(overrides or [], config_name, config_dir)
    if cfg:
        print(to_yaml(config), end="")
        return
    if dry_run:
        _print_plan(config, json)
        return
    from mhc_train.cli.output import print_json
    from mhc_train.training import fit as training

    if resume is None:
        summary = training.fit(config, overrides or [], run_directory)
    else:
        summary = training.resume(resume, config, checkpoint, overrides or [])
    if json:
        print_json(summary)
    else:
        print(
            f"{summary['run']}: step {summary['steps']}, validation loss {summary['val_loss']:.4f}, "
            f"{summary['val_bpb']:.4f} bits per byte, {summary['tokens_per_second']:,.0f} tokens/s"
        )


def _print_plan(config: object, json: bool) -> None:
    from mhc_train.cli.output import print_json, print_table
    from mhc_train.training.plan import plan

    document = plan(config)  # type: ignore[arg-type]
    if json:
        print_json(document)
        return
    print_table(
        "Parameters", ("part", "count"), [(part, f"{count:,}") for part, count in document["parameters"].items()]
    )
    print_table("Memory", ("of", "MiB"), [(part, f"{size / 2**20:,.1f}") for part, size in document["memory"].items()])
    print(
        f"{document['tokens_per_step']:,} tokens a step ({document['accumulation']} micro-batches), "
        f"{document['total_tokens']:,} tokens in all, {document['flops_per_token'] / 1e6:,.1f} MFLOP a token. "
        f"Device: {document['device']}"
    )
