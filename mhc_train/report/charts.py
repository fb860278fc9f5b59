"""The charts of a report: inline SVG without scripts, equal bytes for equal numbers, readable on light and dark pages.

Text and axes are drawn with `currentColor`, so that they take the page's; an arm keeps its colour, line style and
marker through all charts. A chart with nothing to show is an `Omitted`, which says why.
"""

import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
# Each has a contrast of at least 3.8 against white and against the page's dark background; the hues follow Okabe and
# Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#2680c8", "#d55e00", "#00946b", "#c0609a", "#a87900", "#7c6fd6")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (7, 2, 1.5, 2)), (0, (1.5, 1.5)), (0, (9, 2)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SIZE, MAP_SIZE = (5.2, 3.4), (2.9, 2.9)
LEGEND_ROW = 0.21
"""Inches that a figure grows for each further row of its legend, so that the axes keep their size."""
SPANS = 300
"""Stretches that a long curve is drawn by."""
FLOOR = 1e-12
"""What an exact zero is drawn at on a logarithmic axis."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mhc-train",
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.parse_math": False,  # a dollar sign in an arm's name is a dollar sign
}

Points = Sequence[Any]
"""Pairs (x, y): tuples, or lists where the document was read from a file."""
Real = float | int
Number = Real | None


@dataclass(frozen=True)
class Chart:
    """A drawn chart: heading, one or two sentences on how to read it, and an `<svg>` element."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Omitted:
    """A chart that was left out, and why."""

    title: str
    reason: str


@dataclass(frozen=True)
class Look:
    """How an arm is drawn in every chart."""

    colour: str
    dashes: Any
    marker: str


@dataclass(frozen=True)
class Line:
    """One arm's numbers over depth: a central value, and the largest over tokens where there is one."""

    name: str
    look: Look
    xs: list[int]
    middle: list[float]
    upper: list[float] | None = None
    dotted: list[float] | None = None

    @property
    def values(self) -> list[float]:
        """Every finite number of the line."""
        everything = [*self.middle, *(self.upper or []), *(self.dotted or [])]
        return [value for value in everything if math.isfinite(value)]

    @property
    def gaps(self) -> int:
        """How many points are not finite at the worst token."""
        return sum(not math.isfinite(value) for value in self.upper or self.middle)


def look(index: int) -> Look:
    """Colour, dashes and marker of the arm at `index`; a seventh arm takes the first colour with other dashes."""
    colour, turn = index % len(COLOURS), index // len(COLOURS)
    return Look(COLOURS[colour], DASHES[(index + turn) % len(DASHES)], MARKERS[(index + turn) % len(MARKERS)])


# ---------------------------------------------------------------- training


def loss(document: dict[str, Any]) -> Chart | Omitted:
    """Training and validation loss against tokens."""
    title = "Loss"
    arms = _with_curve(document, "train_loss") | _with_curve(document, "val_loss")
    if not arms:
        return Omitted(title, "no run logged a loss")
    several = any(len(arm["curves"]) > 1 for arm in arms.values())
    caption = "Thick with markers: validation loss" + (" (mean over seeds; thin: each seed)." if several else ".")
    caption += " Thin and pale: training loss, the mean since the logged step before."

    def draw(axes: Axes) -> None:
        for index, arm in arms.items():
            for run in arm["curves"]:
                _thin(axes, run["train_loss"], look(index), 0.45)
            _over_seeds(axes, _runs(arm, "val_loss"), look(index))
        _tokens_axis(axes, "loss (nats per token)")

    ends = [_ends(arm["name"], _mean_curve(_runs(arm, "val_loss")), "tokens") for arm in arms.values()]
    text = "Validation loss against tokens. " + " ".join(ends)
    return _chart("loss", title, caption, draw, _names(document, sorted(arms)), text)


def loss_difference(document: dict[str, Any]) -> Chart | Omitted:
    """Validation loss minus the first arm's, at the same tokens and seed."""
    title = "Validation loss relative to the first arm"
    first, *others = document["arms"]
    if not others:
        return Omitted(title, "there is only one arm")
    curves = {index: _differences(first, arm) for index, arm in enumerate(others, start=1)}
    curves = {index: runs for index, runs in curves.items() if any(len(run) > 1 for run in runs)}
    if not curves:
        return Omitted(title, f"no arm was validated at the same tokens and seeds as {first['name']} more than once")
    caption = f"Below zero: lower loss than {first['name']} at the same number of tokens, with the same seed."

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, alpha=0.6)
        for index, runs in curves.items():
            _over_seeds(axes, runs, look(index))
        _tokens_axis(axes, "difference of loss (nats)")

    ends = [_ends(document["arms"][index]["name"], _mean_curve(runs), "tokens") for index, runs in curves.items()]
    text = f"Validation loss minus that of {first['name']}, against tokens. " + " ".join(ends)
    return _chart("loss-difference", title, caption, draw, _names(document, curves), text)


def gradient_norm(document: dict[str, Any]) -> Chart | Omitted:
    """Global gradient norm before clipping, against tokens."""
    title = "Gradient norm"
    arms = _with_curve(document, "grad_norm")
    if not arms:
        return Omitted(title, "no run logged a gradient norm")
    clip = document["configuration"]["shared"].get("optim.grad_clip")
    caption = "Global norm of the gradient before clipping"
    caption += f"; the horizontal line is the clipping threshold, {clip:g}." if clip else "."

    def draw(axes: Axes) -> None:
        if clip:
            axes.axhline(clip, color=INK, linewidth=1, alpha=0.6)
        for index, arm in arms.items():
            for points in _runs(arm, "grad_norm"):
                _thin(axes, points, look(index), 0.9, look(index).dashes)
        _tokens_axis(axes, "gradient norm")
        _scale(axes, [norm for arm in arms.values() for run in _runs(arm, "grad_norm") for _, norm in run], span=0.1)

    ends = [_ends(arm["name"], _mean_curve(_runs(arm, "grad_norm")), "tokens") for arm in arms.values()]
    text = "Gradient norm before clipping, against tokens. " + " ".join(ends)
    return _chart("gradient-norm", title, caption, draw, _names(document, arms), text)


def _with_curve(document: dict[str, Any], key: str) -> dict[int, dict[str, Any]]:
    """Arms of which some run logged `key`, by their index."""
    return {index: arm for index, arm in enumerate(document["arms"]) if any(_runs(arm, key))}


def _runs(arm: dict[str, Any], key: str) -> list[Points]:
    return [run[key] for run in arm["curves"]]


# ---------------------------------------------------------------- residual path over depth


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
    per_stream: bool = False
    """Whether values are divided by the number of streams; such charts have something to say of one stream too."""
    several: bool = False
    """Whether arms with one stream are left out."""
    demand: Real = 20
    """The factor between largest and smallest from which on the axis is logarithmic."""


BAND = "line the median token, band up to the largest"
DEPTH_CHARTS = {
    "composite-forward": Depth(
        "Composite forward gain over depth",
        "Product of the maps from the first sublayer up to this one: how much a signal from the embedding may have "
        f"grown here; {BAND}.",
        "forward Amax gain",
        lambda measurement: measurement["composite"]["forward"],
        "forward_gain",
        dotted=True,
    ),
    "composite-backward": Depth(
        "Composite backward gain over depth",
        "Product of the maps from this sublayer to the last: how much a gradient from the loss may have grown here; "
        f"{BAND}.",
        "backward Amax gain",
        lambda measurement: measurement["composite"]["backward"],
        "backward_gain",
        dotted=True,
    ),
    "sublayer-forward": Depth(
        "Forward gain of each sublayer",
        f"Largest absolute row sum of H_res: {BAND}. At 1 nothing is amplified.",
        "forward Amax gain",
        lambda measurement: measurement["sublayers"],
        "forward_gain",
    ),
    "sublayer-backward": Depth(
        "Backward gain of each sublayer",
        f"Largest absolute column sum of H_res: {BAND}. At 1 nothing is amplified.",
        "backward Amax gain",
        lambda measurement: measurement["sublayers"],
        "backward_gain",
    ),
    "collapse": Depth(
        "What the maps leave of differences between streams",
        "Difference gain of the composite up to this sublayer: 1 keeps the differences between streams, 0 makes all "
        f"streams equal; {BAND}. Values below {FLOOR:g} are drawn there.",
        "composite difference gain",
        lambda measurement: measurement["composite"]["forward"],
        "difference_gain",
        floor=FLOOR,
        several=True,
        demand=3,
    ),
    "stream-difference": Depth(
        "How different the streams are",
        "Share of the streams' energy that lies in differences between them, before each sublayer but the first, "
        f"where they are copies of the embedding; {BAND}. At 0 there is nothing to mix.",
        "share of energy",
        lambda measurement: measurement["sublayers"][1:],
        "stream_difference",
        reference=None,
        floor=FLOOR,
        several=True,
    ),
    "energy": Depth(
        "Energy of the streams over depth",
        "Squared norm of a token's streams after each sublayer, mean over tokens, divided by the number of streams so "
        "that arms with one stream and with several can be compared.",
        "energy per stream",
        lambda measurement: measurement["sublayers"],
        "energy_out",
        middle="mean",
        upper=False,
        reference=None,
        per_stream=True,
    ),
    "energy-gain": Depth(
        "Energy gain of mixing: the signal",
        f"||H X||\u00b2 / ||X||\u00b2: {BAND}. Above 1, mixing alone creates energy.",
        "energy out / energy in",
        lambda measurement: measurement["sublayers"],
        "energy_gain",
    ),
    "gradient-energy-gain": Depth(
        "Energy gain of mixing: the gradient",
        f"||H\u1d40 g||\u00b2 / ||g||\u00b2 with the loss's real gradient g: {BAND}. Above 1, mixing creates energy.",
        "energy out / energy in",
        lambda measurement: measurement["sublayers"],
        "gradient_energy_gain",
    ),
}


def over_depth(document: dict[str, Any], key: str) -> Chart | Omitted:
    """One of `DEPTH_CHARTS`; the composites are those of figures 3 and 7 of arXiv 2512.24880."""
    plot = DEPTH_CHARTS[key]
    measured = [
        (index, arm)
        for index, arm in enumerate(document["arms"])
        if _streams(arm) > 1 or (_streams(arm) and not plot.several)
    ]
    dotted = plot.dotted and len(measured) <= 3
    lines = {index: line for index, arm in measured if (line := _line(plot, index, arm, dotted)).values}
    # A gain of one stream is 1 by definition: worth a line beside others, not a chart of its own.
    if not lines or not (plot.per_stream or _any_streams(document)):
        return Omitted(plot.title, _why_no_depth(document))

    def draw(axes: Axes) -> None:
        if plot.reference is not None:
            axes.axhline(plot.reference, color=INK, linewidth=1, alpha=0.6)
        for line in lines.values():
            _draw_line(axes, line)
        axes.set(xlabel="sublayer (attention and feed-forward in turn)", ylabel=plot.label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _scale(axes, [value for line in lines.values() for value in line.values], plot.demand)

    caption = plot.caption + (" Dotted: the composite of token-mean maps, as the paper draws it." if dotted else "")
    text = f"{plot.label} over depth. " + " ".join(map(_spoken, lines.values()))
    return _chart(
        key,
        plot.title,
        caption + _gaps((line.name, line.gaps) for line in lines.values()),
        draw,
        _names(document, lines),
        text,
    )


def _line(plot: Depth, index: int, arm: dict[str, Any], dotted: bool) -> Line:
    rows = plot.entries(arm["measurements"][-1])
    share = _streams(arm) if plot.per_stream else 1

    def values(read: Callable[[dict[str, Any]], Number]) -> list[float]:
        return _numbers(map(read, rows), share, plot.floor)

    return Line(
        arm["name"],
        look(index),
        [row["index"] for row in rows],
        values(lambda row: row[plot.measure][plot.middle]),
        values(lambda row: row[plot.measure]["max"]) if plot.upper else None,
        values(lambda row: row["of_token_means"][plot.measure]) if dotted else None,
    )


def gain_over_training(document: dict[str, Any], direction: str) -> Chart | Omitted:
    """The largest composite gain at every measurement; `direction` is forward or backward."""
    title = f"Composite {direction} gain during training"
    runs = {index: _gains(arm, direction) for index, arm in enumerate(document["arms"]) if arm["measurements"]}
    if not _any_streams(document):
        return Omitted(title, _why_no_depth(document))
    if not any(len(points) > 1 for points in runs.values()):
        return Omitted(title, "the residual path was measured fewer than two times")

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=INK, linewidth=1, alpha=0.6)
        for index, points in runs.items():
            _thick(axes, points, look(index))
        axes.set(xlabel="optimizer step", ylabel=f"largest {direction} Amax gain")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _scale(axes, [gain for points in runs.values() for _, gain in points])

    ends = [_ends(document["arms"][index]["name"], points, "steps") for index, points in runs.items()]
    text = f"Largest composite {direction} gain against training steps. " + " ".join(ends)
    caption = f"Largest composite {direction} gain over sublayers and tokens at every measurement."
    short = {index: len(document["arms"][index]["measurements"]) - len(points) for index, points in runs.items()}
    caption += _gaps((document["arms"][index]["name"], count) for index, count in short.items())
    return _chart(f"training-{direction}", title, caption, draw, _names(document, runs), text)


def _gains(arm: dict[str, Any], direction: str) -> list[Any]:
    """(step, gain) of every measurement with a finite gain."""
    gains = [(m["step"], largest(m["composite"][direction], f"{direction}_gain")) for m in arm["measurements"]]
    return [(step, gain) for step, gain in gains if gain is not None]


def largest(entries: list[dict[str, Any]], measure: str) -> Number:
    """The largest value over entries and tokens; None where one is not finite, since that is the largest."""
    values = [entry[measure]["max"] for entry in entries]
    return None if None in values else max(values)


# ---------------------------------------------------------------- heat maps


def heat_maps(document: dict[str, Any]) -> list[tuple[str, list[Chart]]]:
    """For every arm with several streams, the token-mean H_res of three sublayers and of the whole composite."""
    return [
        (arm["name"], _maps_of(f"map-{index}", arm["name"], arm["measurements"][-1]))
        for index, arm in enumerate(document["arms"])
        if arm["measurements"] and _streams(arm) > 1
    ]


def _maps_of(key: str, name: str, measurement: dict[str, Any]) -> list[Chart]:
    sublayers, whole = measurement["sublayers"], measurement["composite"]["forward"][-1]
    places = dict.fromkeys((0, len(sublayers) // 2, len(sublayers) - 1))
    maps = [(f"{place}", sublayers[place]["name"], sublayers[place]["mean_maps"]["res"]) for place in places]
    maps.append(("whole", "mean composite of all sublayers", whole["mean_map"]))
    return [_heat_map(f"{key}-{place}", name, title, matrix) for place, title, matrix in maps]


def _heat_map(key: str, arm: str, title: str, matrix: list[list[Number]]) -> Chart:
    rows = [[math.nan if entry is None else entry for entry in row] for row in matrix]
    listed = "; ".join(_entries(row) for row in rows)
    text = f"Token-mean stream mixer of {arm}, {title}; rows receive, columns send. Rows, top to bottom: {listed}. "
    text += f"Row sums: {_entries(map(sum, rows))}. Column sums: {_entries(map(sum, zip(*rows, strict=True)))}."
    return Chart(title, "", _svg(key, f"{arm}: {title}", text, MAP_SIZE, lambda axes: _paint(axes, rows)))


def _entries(values: Iterable[Real]) -> str:
    return " ".join(map(_entry, values))


def _paint(axes: Axes, rows: list[list[Any]]) -> None:
    """Cells whose opacity is the entry's size, so that zero is the page's own background; sums at the margins."""
    n = len(rows)
    size = 10 if n <= 4 else 40 / n
    strongest = max([1.0, *(abs(entry) for row in rows for entry in row if math.isfinite(entry))])
    for i, row in enumerate(rows):
        for j, entry in enumerate(row):
            shade = min(1.0, abs(entry) / strongest) if math.isfinite(entry) else 0.0
            colour = COLOURS[0] if entry >= 0 else COLOURS[1]
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=0.62 * shade, linewidth=0))
            axes.text(j + 0.5, i + 0.5, _entry(entry), ha="center", va="center", fontsize=size)
        axes.text(n + 0.6, i + 0.5, _entry(sum(row)), ha="center", va="center", fontsize=size, style="italic")
    for j, column in enumerate(zip(*rows, strict=True)):
        axes.text(j + 0.5, n + 0.4, _entry(sum(column)), ha="center", va="center", fontsize=size, style="italic")
    axes.text(n + 0.6, n + 0.4, "sums", ha="center", va="center", fontsize=9, style="italic")
    axes.add_patch(Rectangle((0, 0), n, n, fill=False, edgecolor=INK, linewidth=0.8, clip_on=False))
    axes.set(xlim=(0, n + 1.2), ylim=(n + 0.8, 0), xticks=[], yticks=[])
    axes.set_xlabel("column: sending stream", fontsize=10)
    axes.set_ylabel("row: receiving stream", fontsize=10)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _entry(value: Real) -> str:
    """Three decimals without the leading zero, so that a matrix fits; three digits where values are large."""
    if not math.isfinite(value):
        return "n. f."
    text = f"{value:.3f}" if abs(value) < 9.9995 else f"{value:.3g}"
    text = text.replace("0.", ".", 1) if abs(value) < 0.9995 else text
    return text.replace("-.000", ".000").replace("-", "\u2212")


# ---------------------------------------------------------------- shared by the charts over depth


def _numbers(values: Iterable[Number], share: int, floor: float | None) -> list[float]:
    """Null, which stands for a number that is not finite, becomes a gap in the line."""
    known = [math.nan if value is None else value / share for value in values]
    return [max(value, floor) if floor is not None and math.isfinite(value) else value for value in known]


def _draw_line(axes: Axes, line: Line) -> None:
    every = max(1, len(line.xs) // 12)
    style = {"color": line.look.colour, "linestyle": line.look.dashes, "marker": line.look.marker, "markevery": every}
    if line.upper:
        axes.fill_between(line.xs, line.middle, line.upper, color=line.look.colour, alpha=0.2, linewidth=0)
        axes.plot(line.xs, line.upper, color=line.look.colour, linewidth=0.8, alpha=0.8)
    if line.dotted:
        axes.plot(line.xs, line.dotted, color=line.look.colour, linewidth=1.2, linestyle=":")
    axes.plot(line.xs, line.middle, **style)


def _gaps(missing: Iterable[tuple[str, int]]) -> str:
    """Says where a line is broken, because a gap alone could be overlooked."""
    return "".join(f" {name} is not finite at {count} of the points: gaps." for name, count in missing if count)


def _spoken(line: Line) -> str:
    middle = [value for value in line.middle if math.isfinite(value)]
    if not middle:
        return f"{line.name}: not finite."
    ends = f"{middle[0]:.4g} at the first point, {middle[-1]:.4g} at the last"
    return f"{line.name}: {ends}, largest {max(line.values):.4g}."


def _streams(arm: dict[str, Any]) -> int:
    """Number of streams of a measured arm; 0 for one that was not measured."""
    return int(arm["measurements"][-1]["streams"]) if arm["measurements"] else 0


def _any_streams(document: dict[str, Any]) -> bool:
    return any(_streams(arm) > 1 for arm in document["arms"])


def _why_no_depth(document: dict[str, Any]) -> str:
    if not any(arm["measurements"] for arm in document["arms"]):
        return "the residual path was not measured in these runs"
    if not _any_streams(document):
        return "every measured arm has a single stream, which nothing mixes"
    return "no finite value was measured"


# ---------------------------------------------------------------- shared by the charts over tokens


def _over_seeds(axes: Axes, runs: list[Points], style: Look) -> None:
    """One run: a thick line with markers. Several: a thin line each, and their mean thick."""
    if len(runs) > 1:
        for run in runs:
            _thin(axes, run, style, 0.7)
    _thick(axes, _mean_curve(runs), style)


def _thick(axes: Axes, points: Points, style: Look) -> None:
    drawn = thinned(points)
    every = max(1, len(drawn) // 10)
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    axes.plot(xs, ys, color=style.colour, linestyle=style.dashes, marker=style.marker, markevery=every, linewidth=2)


def _thin(axes: Axes, points: Points, style: Look, alpha: float, dashes: Any = "-") -> None:
    drawn = thinned(points)
    axes.plot(
        [x for x, _ in drawn], [y for _, y in drawn], color=style.colour, alpha=alpha, linewidth=1, linestyle=dashes
    )


def thinned(points: Points, spans: int = SPANS) -> list[Any]:
    """Long curves as the lowest and highest point of each of `spans` stretches, so that no spike is lost."""
    if len(points) <= 2 * spans:
        return list(points)
    kept: list[Any] = []
    for span in range(spans):
        stretch = points[span * len(points) // spans : (span + 1) * len(points) // spans]
        low, high = min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])
        kept += sorted({tuple(low), tuple(high)})
    return kept


def _mean_curve(runs: list[Points]) -> list[Any]:
    """Mean over runs wherever all of them have a point."""
    tables = [_by_x(run) for run in runs]
    common = sorted(set.intersection(*map(set, tables))) if tables else []
    return [(x, statistics.fmean(table[x] for table in tables)) for x in common]


def _by_x(points: Points) -> dict[Any, Any]:
    return dict(points)


def _differences(first: dict[str, Any], arm: dict[str, Any]) -> list[Points]:
    """Validation loss of `arm` minus that of `first`, for every common seed at every common number of tokens."""
    base = {run["seed"]: _by_x(run["val_loss"]) for run in first["curves"]}
    return [
        [
            (tokens, value - base[run["seed"]][tokens])
            for tokens, value in run["val_loss"]
            if tokens in base[run["seed"]]
        ]
        for run in arm["curves"]
        if run["seed"] in base
    ]


def _tokens_axis(axes: Axes, label: str) -> None:
    axes.set(xlabel="training tokens", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: counted(value)))


def counted(value: Real) -> str:
    """A count in short: 950, 1.35 M, 40 k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}\u00a0{unit}"
    return f"{value:.3g}"


def _ends(name: str, points: Points, unit: str) -> str:
    if not points:
        return f"{name}: no values."
    (start, first), (end, last) = points[0], points[-1]
    return f"{name}: {first:.4g} at {counted(start)} {unit}, {last:.4g} at {counted(end)}."


# ---------------------------------------------------------------- from axes to inline SVG


def _scale(axes: Axes, values: Sequence[Real], demand: Real = 20, span: Real = 0.02) -> None:
    """Logarithmic where values differ by more than a factor `demand`; never magnified so far that noise looks large."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    if low > 0 and high / low > demand:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=9))
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: re.sub(r"e([+-])0*", r"e\1", f"{value:g}").replace("e+", "e"))
        )
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif (bottom := min(axes.get_ylim())) > (top := max(axes.get_ylim())) - span:
        centre = (bottom + top) / 2
        axes.set_ylim(centre - span / 2, centre + span / 2)


def _names(document: dict[str, Any], drawn: Iterable[int]) -> dict[int, str]:
    return {index: document["arms"][index]["name"] for index in drawn}


def _chart(
    key: str, title: str, caption: str, draw: Callable[[Axes], None], names: dict[int, str], description: str
) -> Chart:
    """A chart with a legend of the arms `names`, by their index."""
    return Chart(title, caption, _svg(f"chart-{key}", title, description, SIZE, draw, names))


def _svg(
    key: str,
    title: str,
    description: str,
    size: tuple[Real, Real],
    draw: Callable[[Axes], None],
    names: dict[int, str] | None = None,
) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        rows = _legend_rows(list(names.values())) if names else []
        # Without pyplot there is no state that outlives the figure, and no display is looked for.
        figure = Figure(figsize=(size[0], size[1] + LEGEND_ROW * max(0, len(rows) - 1)), layout="constrained")
        draw(figure.add_subplot())
        if names:
            _legend(figure, names, len(rows[0]))
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _inline(stream.getvalue(), key, title, description)


def _legend_rows(names: list[str]) -> list[list[str]]:
    """As many names in a row as fit."""
    columns = max(1, min(len(names), 52 // (max(map(len, names)) + 6)))
    return [names[start : start + columns] for start in range(0, len(names), columns)]


def _legend(figure: Figure, names: dict[int, str], columns: int) -> None:
    """Above the axes, where it hides nothing."""
    styles = [look(index) for index in names]
    handles = [Line2D([], [], color=s.colour, linestyle=s.dashes, marker=s.marker, linewidth=2) for s in styles]
    # matplotlib takes a leading underscore for "not in the legend".
    labels = [_shortened(f"\u200b{name}" if name.startswith("_") else name) for name in names.values()]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=3.2)


def _shortened(name: str, most: int = 54) -> str:
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _inline(drawing: str, key: str, title: str, description: str) -> str:
    """A stand-alone SVG file as one `<svg>` element that can stand beside others in a page."""
    box = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', drawing)
    assert box
    # A style sheet inside would apply to the whole page; metadata and comments are for stand-alone files.
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", drawing[box.end() :], flags=re.DOTALL)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", _with_ids(body, key).replace("xlink:href", "href"))
    # Text in the page's own font and colour.
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    body = re.sub(r"font: (?:(italic) )?([\d.]+px) [^;\"]+", _font, body).replace(INK, "currentColor")
    head = f'<svg class="chart" role="img" viewBox="{box[1]}" aria-labelledby="{key}-title {key}-desc"'
    head += ' stroke-linejoin="round" stroke-linecap="butt">'
    head += f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    return head + re.sub(r"\s*\n\s*", "\n", body)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}; font-style: {match[1] or 'normal'}"


def _with_ids(body: str, key: str) -> str:
    """Only ids that something refers to, each with the chart's name before it: ids must be unique in a page."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{key}-{match[1]}"' if match[1] in used else "", body)
    return re.sub(r'(url\(|href=")#', rf"\1#{key}-", body)
