"""`mhc-train diagnose`: measure the residual path of checkpoints, ours or others', or of a configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mhc_train.cli.options import ConfigDir, ConfigName, Json, complete_override

if TYPE_CHECKING:
    from mhc_train.diagnostics.condition import Condition

DEPTHS = "2,4,8,16,32,64,128"


def diagnose(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT|RUN|FOLDER|ORG/NAME...",
            help="A run directory or one of its checkpoints; a folder with another code base's safetensors; or a model "
            "on the Hub. Several are put side by side. With --at-init: overrides.",
            autocompletion=complete_override,
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            min=1,
            help="Tokens to measure on, in whole sequences: 4096 of ours, 1024 of a text, 256 drawn.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Run another code base's model on this text file, through transformers.", show_default=False
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", help="Whose checkpoint it is, where it does not say.", show_default=False),
    ] = None,
    ablate: Annotated[
        str | None,
        typer.Option(
            "--ablate",
            help="Replace H_res and see what the loss does: all mixers, or each as well.",
            show_default=False,
        ),
    ] = None,
    at_init: Annotated[
        bool, typer.Option("--at-init", help="Untrained paths of a configuration, over depths.")
    ] = False,
    depths: Annotated[str, typer.Option("--depths", help="With --at-init: numbers of sublayers.")] = DEPTHS,
    jitter: Annotated[
        float, typer.Option("--jitter", min=0.0, help="With --at-init: noise on the mixers' logits, as training adds.")
    ] = 0.0,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with all charts and tables.", show_default=False)
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            help="Exit with code 6 if this holds anywhere: 'composite_forward_gain>10', fail, warn, fail:mass. "
            "Repeatable; docs/measurements.md has all names.",
            show_default=False,
        ),
    ] = None,
    config_name: ConfigName = "config",
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Measure how much every sublayer amplifies, leaks, mixes and forgets, and judge it law by law.

    Examples:

    mhc-train diagnose runs/20260101-120000-mhc-0a1b2c --html mhc.html

    mhc-train diagnose runs/20260101-120000-hc-0a1b2c runs/20260101-121500-mhc-3d4e5f

    mhc-train diagnose runs/20260101-120000-mhc-0a1b2c --ablate all

    mhc-train diagnose runs/20260101-120000-hc-0a1b2c --fail-on 'composite_forward_gain>10' --fail-on fail

    mhc-train diagnose models/deepseek-v4-flash --json

    mhc-train diagnose --at-init connection=hc,mhc --jitter 0.1
    """
    from mhc_train.diagnostics.condition import parse_condition

    conditions = [parse_condition(condition) for condition in fail_on or []]
    _check(
        at_init, html, {"--data": text, "--family": family, "--ablate": ablate, "--fail-on": fail_on}, depths, jitter
    )
    if at_init:
        documents = _at_init(targets or [], config_name, config_dir, _numbers(depths), jitter, tokens)
    else:
        documents = _audits(targets or [], tokens, text, family, ablate)
    _show(documents, at_init, html, json)
    _fail(documents, conditions)


def _check(at_init: bool, html: Path | None, of_checkpoints: dict[str, Any], depths: str, jitter: float) -> None:
    """Refuse what would be ignored or could not be written, before anything is measured."""
    from mhc_train.errors import ConfigError

    if html is not None and html.is_dir():
        raise ConfigError(f"--html {html}: this is a directory; name the page, such as {html / 'diagnosis.html'}.")
    given = [name for name, value in of_checkpoints.items() if value]
    if at_init and given:
        raise ConfigError(f"{given[0]} is for checkpoints: --at-init measures paths that have none.")
    if not at_init and (depths != DEPTHS or jitter):
        raise ConfigError("--depths and --jitter are of untrained paths: type --at-init with them.")


def _audits(
    targets: list[str], tokens: int | None, text: Path | None, family: str | None, ablate: str | None
) -> list[dict[str, Any]]:
    from mhc_train.audit import Inquiry, audit, check
    from mhc_train.console import say
    from mhc_train.errors import ConfigError

    if not targets:
        raise ConfigError("Name what to measure: a run, a checkpoint, a folder, a model on the Hub; or type --at-init.")
    inquiry = Inquiry(tokens, text, family, ablate)
    for target in targets:
        check(target, inquiry)
    documents = []
    for number, target in enumerate(targets, 1):
        say(f"Measuring {target} ({number} of {len(targets)})")
        documents.append(audit(target, inquiry))
    return documents


def _at_init(
    overrides: list[str],
    config_name: str,
    config_dir: Path | None,
    depths: list[int],
    jitter: float,
    tokens: int | None,
) -> list[dict[str, Any]]:
    """One document a configuration; without a word on the connection, of the two that tell the story."""
    from mhc_train.diagnostics.at_init import TOKENS, at_init
    from mhc_train.experiments.jobs import check, multiply

    asked = overrides if any("connection=" in text for text in overrides) else [*overrides, "connection=hc,mhc"]
    runs = multiply(asked, config_dir)
    configs = check(runs, config_name, config_dir)
    documents = [at_init(config, depths, jitter, tokens or TOKENS, config.seed) for config in configs]
    titles = [document["connection"] for document in documents]
    if len(set(titles)) < len(titles):  # the same connection with other keys
        for document, run in zip(documents, runs, strict=True):
            document["connection"] = " ".join(run)
    return documents


def _numbers(text: str) -> list[int]:
    from mhc_train.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--depths {text}: type numbers of sublayers with commas between, such as {DEPTHS}."
        ) from None


def _show(documents: list[dict[str, Any]], at_init: bool, html: Path | None, json: bool) -> None:
    """The JSON document or the tables, and the page."""
    from mhc_train.cli.output import print_json
    from mhc_train.console import say

    if json:
        print_json(
            documents[0]
            if len(documents) == 1
            else {"schema_version": documents[0]["schema_version"], "diagnoses": documents}
        )
    elif at_init:
        from mhc_train.report.terminal import print_depths

        print_depths(documents)
    else:
        from mhc_train.report.terminal import print_diagnoses

        print_diagnoses(documents)
    if html is None:
        return
    if at_init:
        from mhc_train.report.depths import write_depths as write
    else:
        from mhc_train.report.diagnosis import write_diagnosis as write
    say(f"Page: {write(documents, html)}")


def _fail(documents: list[dict[str, Any]], conditions: "list[Condition]") -> None:
    """Exit with code 6 if a condition holds anywhere."""
    from mhc_train.errors import VerdictError

    found = [
        (document, place)
        for document in documents
        for condition in conditions
        for place in condition.violations(document)
    ]
    if found:
        several = len(documents) > 1
        raise VerdictError("\n".join(f"{d['checkpoint']}: {place}" if several else place for d, place in found))
