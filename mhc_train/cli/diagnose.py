"""`mhc-train diagnose`: measure a checkpoint's residual path."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mhc_train.cli.options import Json

COLUMNS = (
    ("fwd gain", "forward_gain", "max"),
    ("bwd gain", "backward_gain", "max"),
    ("row error", "row_error", "max"),
    ("col error", "column_error", "max"),
    ("sigma max", "spectral_norm", "max"),
    ("energy gain", "energy_gain", "mean"),
    ("grad energy", "gradient_energy_gain", "mean"),
    ("difference", "stream_difference", "mean"),
)


def diagnose(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|RUN", help="A run directory, or one of its checkpoints.")
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Validation tokens to measure on.")] = 4096,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            help="Exit with code 6 if this holds anywhere: 'composite_forward_gain>10'. May be repeated.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure how much every sublayer amplifies, leaks and mixes, on real tokens.

    Examples:

    mhc-train diagnose runs/20260101-120000-mhc-0a1b2c

    mhc-train diagnose runs/20260101-120000-mhc-0a1b2c/checkpoints/step-00001000 --json

    mhc-train diagnose runs/20260101-120000-hc-0a1b2c --fail-on 'composite_forward_gain>10'
    """
    from mhc_train.cli.output import print_json
    from mhc_train.diagnostics.audit import audit
    from mhc_train.diagnostics.condition import parse_condition
    from mhc_train.errors import VerdictError

    conditions = [parse_condition(text) for text in fail_on or []]
    document = audit(checkpoint, tokens)
    found = [place for condition in conditions for place in condition.violations(document)]
    if json:
        print_json(document)
    else:
        _print_tables(document)
    if found:
        raise VerdictError("\n".join(found))


def _print_tables(document: dict[str, Any]) -> None:
    from mhc_train.cli.output import number, print_table

    composites = zip(document["composite"]["forward"], document["composite"]["backward"], strict=True)
    rows = [
        (
            row["name"],
            *(number(row[key][statistic], 4) for _, key, statistic in COLUMNS),
            number(forward["forward_gain"]["max"], 4),
            number(backward["backward_gain"]["max"], 4),
        )
        for row, (forward, backward) in zip(document["sublayers"], composites, strict=True)
    ]
    titles = [f"{title} ({statistic})" for title, _, statistic in COLUMNS]
    print_table(
        f"{document['checkpoint']}: {document['connection']}, n = {document['streams']}, {document['tokens']} tokens. "
        f"Composite forward is H_l ... H_1, backward H_L ... H_l; H_res: {document['convention']}",
        ("sublayer", *titles, "composite fwd (max)", "composite bwd (max)"),
        rows,
    )
    print_table(
        "Laws",
        ("law", "verdict", "worst at", "measured", "ok to", "declared to"),
        [_law_row(law, number) for law in document["laws"]],
    )


def _law_row(law: dict[str, Any], number: Any) -> tuple[str, ...]:
    evidence, declared = law["evidence"] or {}, law["declared"] or {}
    measured = f"{evidence['measure']} {number(evidence['value'], 4)}" if evidence else "-"
    return (
        law["law"],
        law["verdict"],
        law["worst"] or "-",
        measured,
        number(evidence.get("ok"), 4),
        number(declared.get("tolerance"), 4),
    )
