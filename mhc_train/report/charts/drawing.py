"""From axes to inline SVG: the one place where matplotlib's drawings become part of a page.

Text and axes are drawn with `currentColor`, so that they take the page's. Equal numbers give equal bytes.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mhc_train.report.charts.readout import Trace, readout
from mhc_train.report.readings import prominent
from mhc_train.report.words import Real, typeset

INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
# Each has a contrast of at least 3.8 against white and against the page's dark background; the hues follow Okabe and
# Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#2680c8", "#d55e00", "#00946b", "#c0609a", "#a87900", "#7c6fd6")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (7, 2, 1.5, 2)), (0, (1.5, 1.5)), (0, (9, 2)), (0, (4, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
SIZE = (5.2, 3.4)
DPI = 72
"""What makes matplotlib's pixels the units of its SVG."""
LEGEND_ROW = 0.21
"""Inches that a figure grows for each further row of its legend, so that the axes keep their size."""
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
    quiet: bool = False
    """Whether it stays in the background, thin and without a place in the legend, because there are too many."""


Legend = list[tuple[str, Look]]
"""What is drawn, by name, and how."""


def look(index: int) -> Look:
    """Colour, dashes and marker of the arm at `index`; a seventh arm takes the first colour with other dashes."""
    colour, turn, round_ = index % len(COLOURS), index // len(COLOURS), index // (len(COLOURS) * len(DASHES))
    marker = (index + turn + round_) % len(MARKERS)
    return Look(COLOURS[colour], DASHES[(index + turn) % len(DASHES)], MARKERS[marker])


def looks(document: dict[str, Any]) -> list[Look]:
    """How every arm of a comparison is drawn."""
    shown = prominent(document)
    return [replace(look(index), quiet=index not in shown) for index in range(len(document["arms"]))]


def titled(title: str, name: str) -> str:
    """A title with the name of whose chart it is, where there are several."""
    return f"{title}: {name}" if name else title


def scale(axes: Axes, values: Sequence[Real], demand: Real = 20, span: Real = 0.02) -> None:
    """Logarithmic where values differ by more than a factor `demand`; never magnified so far that noise looks large."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    low, high = min(finite), max(finite)
    if low > 0 and high / low > demand:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: typeset(f"{value:g}")))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    bottom, top = sorted(axes.get_ylim())
    if top - bottom < span:
        bottom, top = (bottom + top - span) / 2, (bottom + top + span) / 2
    if low >= 0 > bottom:
        # An error below zero has no meaning; what lies on the edge is drawn whole.
        bottom, top = 0.0, max(top, span)
        for line in axes.lines:
            line.set_clip_on(False)
    axes.set_ylim(bottom, top)


def chart(
    key: str,
    title: str,
    caption: str,
    draw: Callable[[Axes], None],
    legend: Legend,
    description: str,
    traces: Sequence[Trace] = (),
    unit: str = "",
) -> Chart:
    """A chart of the usual size, under a legend; `traces` are what the page's script reads out, at x in `unit`."""
    return Chart(title, caption, svg(f"chart-{key}", title, description, SIZE, draw, legend, traces, unit))


def svg(
    key: str,
    title: str,
    description: str,
    size: tuple[Real, Real],
    draw: Callable[[Axes], None],
    legend: Legend | None = None,
    traces: Sequence[Trace] = (),
    unit: str = "",
) -> str:
    """What `draw` puts on axes of `size` inches, as an `<svg>` element with unique ids that begin with `key`."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        entries = _entries(legend or [])
        rows = _legend_rows([name for name, _ in entries]) if entries else []
        height = size[1] + LEGEND_ROW * max(0, len(rows) - 1)
        # Without pyplot there is no state that outlives the figure, and no display is looked for.
        figure = Figure(figsize=(size[0], height), layout="constrained", dpi=DPI)
        axes = figure.add_subplot()
        draw(axes)
        if entries:
            _legend(figure, entries, len(rows[0]))
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
        values = readout(axes, height * DPI, traces, unit) if traces else ""
    return _inline(stream.getvalue(), key, title, description, values)


def _entries(legend: Legend) -> Legend:
    """The legend without what stays in the background, which is only counted."""
    quiet = sum(style.quiet for _, style in legend)
    shown = [(name, style) for name, style in legend if not style.quiet]
    return [*shown, (f"{quiet} others, thin", Look(INK, "-", "", True))] if quiet else shown


def _legend_rows(names: list[str]) -> list[list[str]]:
    """As many names in a row as fit."""
    columns = max(1, min(len(names), 52 // (max(map(len, names)) + 6)))
    return [names[start : start + columns] for start in range(0, len(names), columns)]


def _legend(figure: Figure, legend: Legend, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dashes, marker=s.marker, linewidth=0.8 if s.quiet else 2)
        for _, s in legend
    ]
    # matplotlib takes a leading underscore for "not in the legend".
    labels = [_shortened(f"\u200b{name}" if name.startswith("_") else name) for name, _ in legend]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, handlelength=3.2)


def _shortened(name: str, most: int = 54) -> str:
    return name if len(name) <= most else name[: most - 1] + "\u2026"


def _inline(drawing: str, key: str, title: str, description: str, values: str) -> str:
    """A stand-alone SVG file as one `<svg>` element that can stand beside others in a page, with `values` to read."""
    box = re.search(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', drawing)
    assert box
    # A style sheet inside would apply to the whole page; metadata and comments are for stand-alone files.
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", drawing[box.end() :], flags=re.DOTALL)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", _with_ids(body, key).replace("xlink:href", "href"))
    # Text in the page's own font and colour.
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    body = re.sub(r"font: (?:(italic) )?([\d.]+px) [^;\"]+", _font, body).replace(INK, "currentColor")
    head = f'<svg class="chart" role="img" viewBox="{box[1]}" aria-labelledby="{key}-title {key}-desc"'
    head += f' data-readout="{escape(values)}"' if values else ""
    head += ' stroke-linejoin="round" stroke-linecap="butt">'
    head += f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
    # A hundredth of a point is finer than any screen, and thousands of coordinates fit into a page.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return head + re.sub(r"\s*\n\s*", "\n", body)


def _font(match: re.Match[str]) -> str:
    return f"font-size: {match[2]}; font-style: {match[1] or 'normal'}"


def _with_ids(body: str, key: str) -> str:
    """Only ids that something refers to, each with the chart's name before it: ids must be unique in a page."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{key}-{match[1]}"' if match[1] in used else "", body)
    return re.sub(r'(url\(|href=")#', rf"\1#{key}-", body)
