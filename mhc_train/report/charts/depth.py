"""One measurement over sublayers or composites: a line a model, or a line a statistic of a single model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mhc_train.report.charts.drawing import Chart, Look, Omitted, look, looks
from mhc_train.report.charts.lines import FLOOR, Line, numbers, over_sublayers
from mhc_train.report.words import Number, Real


@dataclass(frozen=True)
class Subject:
    """A measured residual path: its name, the number of its colour, and the document of its measurement."""

    name: str
    index: int
    measurement: dict[str, Any]
    alone: bool = False
    """Whether there is no other in the page, so that its charts need not name it."""
    style: Look | None = None
    """How it is drawn, where not as its index says."""

    @property
    def look(self) -> Look:
        """How it is drawn beside others."""
        return self.style or look(self.index)

    @property
    def tag(self) -> str:
        """What the titles of its own charts add."""
        return "" if self.alone else self.name

    @property
    def streams(self) -> int:
        """How many it has."""
        return int(self.measurement["streams"])


@dataclass(frozen=True)
class Depth:
    """A chart of one measurement over sublayers or composites at the last measurement, a line an arm."""

    title: str
    caption: str
    label: str
    entries: Callable[[dict[str, Any]], list[dict[str, Any]]]
    measure: str
    middle: str = "median"
    upper: bool = True
    """Whether a band reaches up to the largest token."""
    reference: Number = 1.0
    """Where a horizontal line is drawn."""
    dotted: bool = False
    """Whether the composite of token-mean maps is drawn too, while there are few enough arms."""
    floor: float | None = None
    """Smaller values are drawn here, so that a logarithmic axis can show an exact zero."""
    share_of: str = ""
    """The measure that values are divided by, mean by mean."""
    per_stream: bool = False
    """Whether values are divided by the number of streams; such charts have something to say of one stream too."""
    several: bool = False
    """Whether arms with one stream are left out."""
    demand: Real = 20
    """The factor between largest and smallest from which on the axis is logarithmic."""
    statistics: tuple[str, ...] = ("median", "p99", "max")
    """What is drawn of a single model."""


Entries = list[dict[str, Any]]


def sublayers(measurement: dict[str, Any]) -> Entries:
    """The single maps."""
    return list(measurement["sublayers"])


def forward(measurement: dict[str, Any]) -> Entries:
    """The composites from the first sublayer on."""
    return list(measurement["composite"]["forward"])


def backward(measurement: dict[str, Any]) -> Entries:
    """The composites up to the last sublayer."""
    return list(measurement["composite"]["backward"])


PAPER = "As {} of arXiv 2512.24880 show for the authors\u2019 27B runs; here from these runs."
"""Ends the captions of what the paper of mHC shows too."""

DEPTH_CHARTS = {
    "composite-forward": Depth(
        "Composite forward gain over depth",
        "Product of the maps from the first sublayer up to this one: how much a signal from the embedding may have "
        "grown here; {lines}.",
        "forward Amax gain",
        forward,
        "forward_gain",
        dotted=True,
    ),
    "composite-backward": Depth(
        "Composite backward gain over depth",
        "Product of the maps from this sublayer to the last: how much a gradient from the loss may have grown here; "
        "{lines}.",
        "backward Amax gain",
        backward,
        "backward_gain",
        dotted=True,
    ),
    "sublayer-forward": Depth(
        "Forward gain of each sublayer",
        "Largest absolute row sum of H_res: {lines}. At 1 nothing is amplified.",
        "forward Amax gain",
        sublayers,
        "forward_gain",
    ),
    "sublayer-backward": Depth(
        "Backward gain of each sublayer",
        "Largest absolute column sum of H_res: {lines}. At 1 nothing is amplified.",
        "backward Amax gain",
        sublayers,
        "backward_gain",
    ),
    "collapse": Depth(
        "What the maps leave of differences between streams",
        "Difference gain of the composite up to this sublayer: 1 keeps the differences between streams, 0 makes all "
        "streams equal; {lines}. Values below 1e\u221212 are drawn there.",
        "composite difference gain",
        forward,
        "difference_gain",
        floor=FLOOR,
        several=True,
        demand=3,
        statistics=("min", "median", "max"),
    ),
    "stream-difference": Depth(
        "How different the streams are",
        "Share of the streams' energy that lies in differences between them, after each sublayer: "
        "{lines}. At 0 there is nothing to mix.",
        "share of energy",
        sublayers,
        "stream_difference",
        reference=None,
        floor=FLOOR,
        several=True,
        statistics=("min", "median", "max"),
    ),
    "energy": Depth(
        "Energy of the streams over depth",
        "Squared norm of a token's streams after each sublayer, mean over tokens, divided by the number of streams so "
        "that arms with one stream and with several can be compared.",
        "energy per stream",
        sublayers,
        "energy_out",
        middle="mean",
        upper=False,
        reference=None,
        per_stream=True,
    ),
    "energy-gain": Depth(
        "Energy gain of mixing: the signal",
        "||H X||\u00b2 / ||X||\u00b2: {lines}. Above 1, mixing alone creates energy.",
        "energy out / energy in",
        sublayers,
        "energy_gain",
    ),
    "gradient-energy-gain": Depth(
        "Energy gain of mixing: the gradient",
        "||H\u1d40 g||\u00b2 / ||g||\u00b2 with the loss's real gradient g: {lines}. Above 1, mixing creates energy.",
        "energy out / energy in",
        sublayers,
        "gradient_energy_gain",
    ),
}
PAPER_CHARTS = ("sublayer-forward", "sublayer-backward", "composite-forward", "composite-backward")


def _share(title: str, caption: str, measure: str, whole: str) -> Depth:
    return Depth(
        title,
        caption,
        "share of energy",
        sublayers,
        measure,
        middle="mean",
        upper=False,
        share_of=whole,
        per_stream=True,
        demand=math.inf,
    )


LEDGER_CHARTS = {
    "ledger-carried": _share(
        "Energy ledger: carried by the mixer",
        "Of the streams\u2019 energy after a sublayer, the share that the mixer carried on, mean over tokens.",
        "energy_residual",
        "energy_out",
    ),
    "ledger-injected": _share(
        "Energy ledger: injected by the sublayer",
        "The share that the sublayer\u2019s output brought; what is missing from 1, or too much, is the cross term.",
        "energy_injected",
        "energy_out",
    ),
    "ledger-mixer": _share(
        "Gradient ledger: through the mixer",
        "Of the gradient\u2019s energy before a sublayer, the share that came through the mixer, mean over tokens.",
        "gradient_mixer",
        "gradient_out",
    ),
    "ledger-branch": _share(
        "Gradient ledger: through the branch",
        "The share that came back through the sublayer\u2019s input; the rest came through the maps and cross terms.",
        "gradient_branch",
        "gradient_out",
    ),
}

BAND = "line the median token, band up to the largest"
STATISTICS = {
    "mean": "mean",
    "min": "smallest token",
    "median": "median token",
    "p99": "99th percentile",
    "max": "largest token",
}
TOKEN_MEANS = Look(look(1).colour, ":", "")
LOOKS = {
    name: Look(look(0).colour, dashes, marker)
    for name, dashes, marker in (
        ("median", "-", "o"),
        ("mean", "-", "o"),
        ("p99", (0, (5, 2)), ""),
        ("max", "-", "^"),
        ("min", "-", "v"),
    )
}


def over_depth(document: dict[str, Any], key: str) -> Chart | Omitted:
    """One of `DEPTH_CHARTS` or `LEDGER_CHARTS` of a comparison, from the last measurement of each arm's first seed."""
    styles = looks(document)
    measured = [
        Subject(arm["name"], index, arm["last"], style=styles[index])
        for index, arm in enumerate(document["arms"])
        if arm["last"]
    ]
    plot = (DEPTH_CHARTS | LEDGER_CHARTS)[key]
    if key in PAPER_CHARTS:
        plot = replace(plot, caption=f"{plot.caption} {PAPER.format('Figures 3 and 7')}")
    return side_by_side(key, plot, measured, True) or Omitted(plot.title, why_no_depth(document))


def side_by_side(key: str, plot: Depth, subjects: Sequence[Subject], alternating: bool = False) -> Chart | None:
    """A line a model; None if there is nothing to show."""
    shown = _shown(plot, subjects)
    dotted = plot.dotted and len(shown) <= 3
    lines = [line for subject in shown if (line := _line(plot, subject, dotted)).values]
    if not lines:
        return None
    caption = plot.caption.format(lines=BAND)
    caption += " Dotted: the composite of token-mean maps, as the paper draws it." if dotted else ""
    return over_sublayers(key, plot.title, caption, plot.label, lines, plot.reference, plot.demand, alternating)


def by_statistic(key: str, plot: Depth, subject: Subject) -> Chart | None:
    """A line a statistic over tokens; None if there is nothing to show."""
    names = plot.statistics if plot.upper else (plot.middle,)
    lines = [
        Line(STATISTICS[name], LOOKS[name], *_points(plot, subject, partial(_statistic, plot, name)))
        for name in names
        if _shown(plot, [subject])
    ]
    if plot.dotted and lines:
        means = _points(plot, subject, lambda row: row["of_token_means"][plot.measure])
        lines.append(Line("of token-mean maps", TOKEN_MEANS, *means))
    lines = [line for line in lines if line.values]
    caption = plot.caption.format(lines="a line for each statistic over tokens")
    return over_sublayers(key, plot.title, caption, plot.label, lines, plot.reference, plot.demand) if lines else None


def _shown(plot: Depth, subjects: Sequence[Subject]) -> list[Subject]:
    # A gain of one stream is 1 by definition: worth a line beside others, not a chart of its own.
    if not plot.per_stream and all(subject.streams == 1 for subject in subjects):
        return []
    return [subject for subject in subjects if subject.streams > 1 or not plot.several]


def _line(plot: Depth, subject: Subject, dotted: bool) -> Line:
    xs, middle = _points(plot, subject, lambda row: row[plot.measure][plot.middle])
    return Line(
        subject.name,
        subject.look,
        xs,
        middle,
        _points(plot, subject, lambda row: row[plot.measure]["max"])[1] if plot.upper else None,
        _points(plot, subject, lambda row: row["of_token_means"][plot.measure])[1] if dotted else None,
    )


def _statistic(plot: Depth, name: str, row: dict[str, Any]) -> Number:
    value: Number = row[plot.measure][name]
    return value


def _points(plot: Depth, subject: Subject, read: Callable[[dict[str, Any]], Number]) -> tuple[list[int], list[float]]:
    """Where the measurement is known, and what `read` finds there."""
    rows = [row for row in plot.entries(subject.measurement) if plot.measure in row]
    if plot.share_of:
        return [row["index"] for row in rows], numbers(_part(read(row), row[plot.share_of]["mean"]) for row in rows)
    share = subject.streams if plot.per_stream else 1
    return [row["index"] for row in rows], numbers(map(read, rows), share, plot.floor)


def _part(value: Number, whole: Number) -> Number:
    return value / whole if value is not None and whole else None


def any_streams(document: dict[str, Any]) -> bool:
    """Whether any arm of a comparison was measured and has several streams."""
    return any(arm["last"] and arm["last"]["streams"] > 1 for arm in document["arms"])


def why_no_depth(document: dict[str, Any]) -> str:
    """Why a comparison lacks a chart of its residual paths."""
    if not any(arm["last"] for arm in document["arms"]):
        return "the residual path was not measured in these runs"
    if not any_streams(document):
        return "every measured arm has a single stream, which nothing mixes"
    return "no finite value was measured"
