"""Arguments and options that several commands share, with their help and shell completion."""

from pathlib import Path
from typing import Annotated

import typer


def complete_override(incomplete: str) -> list[str]:
    """Groups with their options, and keys, for the shell's completion."""
    from mhc_train.config.compose import groups
    from mhc_train.schema import key_names

    candidates = [f"{group}={option}" for group, options in groups().items() for option in options]
    candidates += [f"{key}=" for key in key_names()]
    return [candidate for candidate in candidates if candidate.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OVERRIDES]...",
        help="Hydra overrides: GROUP=OPTION or KEY=VALUE, such as connection=hc or optim.lr=3e-4.",
        autocompletion=complete_override,
        show_default=False,
    ),
]
ConfigName = Annotated[str, typer.Option("--config-name", "-cn", help="Primary configuration file, without .yaml.")]
ConfigDir = Annotated[
    Path | None,
    typer.Option("--config-dir", "-cd", help="Directory with configuration groups of your own.", show_default=False),
]
AtOnce = Annotated[
    int,
    typer.Option(
        "--jobs", min=1, help="Runs at once; several GPUs are dealt out to them. Speeds are no measurements then."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on standard output.")]
