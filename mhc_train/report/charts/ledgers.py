"""Where energy comes from, sublayer by sublayer: of the streams forwards, of the gradient backwards."""

import math
from collections.abc import Sequence
from typing import Any

from mhc_train.report.charts.depth import Subject
from mhc_train.report.charts.drawing import Chart, look, titled
from mhc_train.report.charts.lines import Line, over_sublayers
from mhc_train.report.words import Number

Terms = Sequence[tuple[str, str]]
FORWARD: Terms = (
    ("energy_residual", "carried by the mixer"),
    ("energy_injected", "injected by the sublayer"),
    ("energy_cross", "cross term"),
)
BACKWARD: Terms = (
    ("gradient_mixer", "through the mixer"),
    ("gradient_branch", "through the branch"),
    ("gradient_coefficients", "through the maps"),
    ("gradient_mixer_branch", "mixer and branch"),
    ("gradient_mixer_coefficients", "mixer and maps"),
    ("gradient_branch_coefficients", "branch and maps"),
)


def ledgers(subject: Subject) -> list[Chart]:
    """The forward and the backward ledger of one model, as far as its document has them."""
    forward = _ledger(
        f"ledger-forward-{subject.index}",
        titled("Energy ledger", subject.tag),
        "What the streams' energy after a sublayer consists of, as shares of its mean over tokens that add up to 1. "
        "Below zero, the cross term says that the sublayer takes back what the streams carry.",
        subject,
        FORWARD,
        "energy_out",
    )
    backward = _ledger(
        f"ledger-backward-{subject.index}",
        titled("Gradient ledger", subject.tag),
        "Where the gradient's energy before a sublayer comes from, as shares of its mean over tokens that add up to "
        "1: through the mixer, through the sublayer's input (branch), through the maps, which depend on the streams "
        "too, and their cross terms.",
        subject,
        BACKWARD,
        "gradient_out",
    )
    return [drawn for drawn in (forward, backward) if drawn]


def _ledger(key: str, title: str, caption: str, subject: Subject, terms: Terms, total: str) -> Chart | None:
    rows = [row for row in subject.measurement["sublayers"] if total in row]
    lines = [
        Line(name, look(index), [row["index"] for row in rows], [_share(row, term, total) for row in rows])
        for index, (term, name) in enumerate(terms)
        if rows and all(term in row for row in rows)
    ]
    return over_sublayers(key, title, caption, "share of energy", lines, 0.0, math.inf) if lines else None


def _share(row: dict[str, Any], term: str, total: str) -> float:
    part: Number = row[term]["mean"]
    whole: Number = row[total]["mean"]
    return part / whole if part is not None and whole else math.nan
