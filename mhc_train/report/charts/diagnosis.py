"""The charts of a diagnosis: of one model a line a statistic, of several a line a model; only what was measured."""

import math
from collections.abc import Sequence
from typing import Any

from mhc_train.report.charts.depth import (
    DEPTH_CHARTS,
    Depth,
    Subject,
    by_statistic,
    forward,
    side_by_side,
    sublayers,
)
from mhc_train.report.charts.drawing import Chart, Look, look, titled
from mhc_train.report.charts.lines import FLOOR, Line, numbers, over_sublayers
from mhc_train.report.charts.matrices import Matrix, heat_map
from mhc_train.report.charts.spans import span_map
from mhc_train.report.readings import numbered
from mhc_train.report.words import kind_name

PROFILES = DEPTH_CHARTS | {
    "spectral-norm": Depth(
        "Spectral norm of each sublayer",
        "Largest singular value of H_res: {lines}. Above 1, some pattern of the streams leaves with more energy than "
        "it came with.",
        "spectral norm",
        sublayers,
        "spectral_norm",
    ),
    "row-error": Depth(
        "Row error",
        "How far the sums of rows lie from 1: {lines}. At 0 gradients keep their total; values below 1e\u221212 are "
        "drawn there.",
        "largest |row sum \u2212 1|",
        sublayers,
        "row_error",
        reference=None,
        floor=FLOOR,
        demand=3,
    ),
    "column-error": Depth(
        "Column error",
        "How far the sums of columns lie from 1: {lines}. At 0 the streams keep their total; values below 1e\u221212 "
        "are drawn there.",
        "largest |column sum \u2212 1|",
        sublayers,
        "column_error",
        reference=None,
        floor=FLOOR,
        demand=3,
    ),
    "log-mass": Depth(
        "Mass of the composites",
        "Largest |log |column sum|| of the composite up to this sublayer: {lines}. 0 conserves; it grows with leaks, "
        "which gains do not see, as much as with pumps.",
        "|log column sum|",
        forward,
        "log_mass",
        reference=None,
    ),
    "effective-streams": Depth(
        "Effective streams",
        "Over how many streams the energy is spread, after each sublayer: {lines}. At 1, one stream carries all.",
        "effective streams",
        sublayers,
        "effective_streams",
        reference=None,
        several=True,
        statistics=("min", "median", "max"),
    ),
    "effective-rank": Depth(
        "Effective rank of the composites",
        "How many independent directions the composite up to this sublayer keeps: {lines}. At 1 only the average of "
        "the streams is left.",
        "effective rank",
        forward,
        "effective_rank",
        several=True,
        statistics=("min", "median", "max"),
    ),
    "gradient-energy": Depth(
        "Energy of the gradient over depth",
        "Squared norm of the loss's gradient at a token's streams before each sublayer, mean over tokens, divided by "
        "the number of streams.",
        "energy per stream",
        sublayers,
        "gradient_out",
        middle="mean",
        upper=False,
        reference=None,
        per_stream=True,
    ),
    "outlier": Depth(
        "Activation outliers",
        "Largest absolute value of a sublayer's output over its root mean square: {lines}. Above about 10, a few "
        "channels dominate.",
        "largest / root mean square",
        sublayers,
        "outlier",
        reference=10.0,
    ),
    "logit-range": Depth(
        "Logit range of the mixer",
        "Largest minus smallest logit of a token: {lines}. The wider, the longer a Sinkhorn normalisation takes to "
        "converge; it explains errors, it does not judge.",
        "logit range",
        sublayers,
        "logit_range",
        reference=None,
    ),
    "mixer-drift": Depth(
        "Mixer drift",
        "Distance of H_res from the one before training, relative to its size: {lines}. Near 0 the mixer has learned "
        "nothing.",
        "relative distance",
        sublayers,
        "mixer_drift",
        reference=None,
    ),
    "mixer-gradient": Depth(
        "Gradient at the mixer",
        "Norm of the loss's gradient at the mixer's logits: {lines}. At 0 the mixer cannot learn; values below "
        "1e\u221212 are drawn there.",
        "gradient norm",
        sublayers,
        "mixer_gradient",
        reference=None,
        floor=FLOOR,
    ),
}
SPANS = {
    "forward_gain": ("Forward gain of every span", "Largest forward gain over tokens"),
    "backward_gain": ("Backward gain of every span", "Largest backward gain over tokens"),
    "difference_gain": ("Difference gain of every span", "What is left of differences between streams, median token"),
}
HALVES = {"first": "composite of the first half", "second": "composite of the second half", "whole": "whole composite"}
INFORMATION = {
    "r2": (
        "The embedding, read off the streams (estimate)",
        "Linear R\u00b2 on held-out tokens of the embedding from the streams before each sublayer, with its standard "
        "error. An estimate: 1 means that a linear map recovers the embedding, and a fall that it is less accessible.",
        "R\u00b2",
    ),
    "cka": (
        "Likeness to the embedding (estimate)",
        "Linear CKA of the embedding and the streams before each sublayer, with its standard error. An estimate: 1 "
        "means the same geometry of tokens.",
        "CKA",
    ),
}


def profiles(subjects: Sequence[Subject], *keys: str, prefix: str = "") -> list[Chart]:
    """Those of `PROFILES` that the subjects have numbers for; `prefix` keeps ids apart in a page."""
    drawn = [_profile(prefix + key, PROFILES[key], subjects) for key in keys]
    return [chart for chart in drawn if chart]


def _profile(key: str, plot: Depth, subjects: Sequence[Subject]) -> Chart | None:
    return by_statistic(key, plot, subjects[0]) if len(subjects) == 1 else side_by_side(key, plot, subjects)


def spans(subject: Subject, *measures: str) -> list[Chart]:
    """The triangles of one model for those of `SPANS` that it has."""
    measured = subject.measurement["composite"].get("spans", {}) if subject.streams > 1 else {}
    caption = "{} from one sublayer (row) through another (column): orange above 1, blue below, deeper is further. "
    caption += f"Sublayer {numbered(sublayers(subject.measurement))}."
    drawn = [
        span_map(
            f"span-{measure}-{subject.index}",
            SPANS[measure][0],
            caption.format(SPANS[measure][1]),
            subject.tag,
            measured[measure],
        )
        for measure in measures
        if measure in measured
    ]
    return [chart for chart in drawn if chart]


def matrices(subject: Subject, prefix: str = "") -> list[Chart]:
    """Token-mean H_res of the first, middle and last sublayer, and composites of the halves and of all."""
    if subject.streams == 1:
        return []
    measurement, rows = subject.measurement, sublayers(subject.measurement)
    places = dict.fromkeys((0, (len(rows) - 1) // 2, len(rows) - 1))
    maps: list[tuple[str, str, Matrix]] = [
        (f"{place}", rows[place]["name"], rows[place]["mean_maps"]["res"]) for place in places
    ]
    halves = measurement["composite"].get("halves", {})
    maps += [(half, title, halves[half]) for half, title in HALVES.items() if half in halves]
    return [
        heat_map(f"{prefix}map-{subject.index}-{key}", subject.name, title, entries) for key, title, entries in maps
    ]


def information(subjects: Sequence[Subject]) -> list[Chart]:
    """What a linear probe finds of the embedding over depth, with standard errors."""
    measured = [subject for subject in subjects if subject.measurement.get("information")]
    if not measured:
        return []
    return [
        over_sublayers(f"information-{key}", title, caption, label, [_estimates(subject, key) for subject in measured])
        for key, (title, caption, label) in INFORMATION.items()
    ]


def _estimates(subject: Subject, key: str) -> Line:
    rows = subject.measurement["information"]
    return _with_errors(
        subject.name,
        look(subject.index),
        [(row["index"], row[key]["estimate"], row[key]["standard_error"]) for row in rows],
    )


def ablations(subject: Subject) -> Chart | None:
    """The loss that each kind of ablation costs at each sublayer, with standard errors."""
    places = {row["name"]: row["index"] for row in subject.measurement["sublayers"]}
    single = [row for row in subject.measurement.get("ablations", []) if row["sublayer"] in places]
    kinds = list(dict.fromkeys(row["kind"] for row in single))
    lines = [
        _with_errors(
            kind_name(kind),
            Look(look(number).colour, "none", look(number).marker),
            [
                (places[row["sublayer"]], row["loss_difference"], row["standard_error"])
                for row in single
                if row["kind"] == kind
            ],
        )
        for number, kind in enumerate(kinds)
    ]
    title = titled("Ablations, one sublayer at a time", subject.tag)
    caption = "How much the loss rises when one sublayer's map is replaced; bars are standard errors over sequences."
    label = "rise of the loss (nats)"
    return over_sublayers(f"ablations-{subject.index}", title, caption, label, lines, 0.0, math.inf) if lines else None


def _with_errors(name: str, style: Look, points: list[tuple[int, Any, Any]]) -> Line:
    values = numbers(value for _, value, _ in points)
    errors = [0.0 if error is None else error for _, _, error in points]
    return Line(name, style, [x for x, _, _ in points], values, errors=errors)
