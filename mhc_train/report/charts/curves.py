"""Numbers over the course of training: long curves, several seeds, an axis of tokens."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mhc_train.report.charts.drawing import Look
from mhc_train.report.words import counted, short

SPANS = 300
"""Stretches that a long curve is drawn by."""
QUIET = 0.4
"""Opacity of what stays in the background."""
Points = Sequence[Any]
"""Pairs (x, y): tuples, or lists where the document was read from a file."""


def over_seeds(axes: Axes, runs: Sequence[Points], style: Look) -> None:
    """One run: a thick line with markers. Several: a thin line each, their mean thick. In the background: the mean."""
    if len(runs) > 1 and not style.quiet:
        for run in runs:
            thin(axes, run, style, 0.7)
    thick(axes, mean_curve(runs), style)


def thick(axes: Axes, points: Points, style: Look) -> None:
    """A curve in full strength, with markers; a thin one where its look is quiet."""
    if style.quiet:
        thin(axes, points, style, QUIET)
        return
    drawn = thinned(points)
    every = max(1, len(drawn) // 10)
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    axes.plot(xs, ys, color=style.colour, linestyle=style.dashes, marker=style.marker, markevery=every, linewidth=2)


def thin(axes: Axes, points: Points, style: Look, alpha: float, dashes: Any = "-") -> None:
    """A curve in the background."""
    drawn = thinned(points, SPANS // 3 if style.quiet else SPANS)
    width = 0.8 if style.quiet else 1
    axes.plot(
        [x for x, _ in drawn], [y for _, y in drawn], color=style.colour, alpha=alpha, linewidth=width, linestyle=dashes
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


def mean_curve(runs: Sequence[Points]) -> list[Any]:
    """Mean over runs wherever all of them have a point."""
    tables = [by_x(run) for run in runs]
    common = sorted(set.intersection(*map(set, tables))) if tables else []
    return [(x, statistics.fmean(table[x] for table in tables)) for x in common]


def by_x(points: Points) -> dict[Any, Any]:
    """The y of every x."""
    return dict(points)


def tokens_axis(axes: Axes, label: str) -> None:
    """Training tokens, counted in short, along the bottom."""
    axes.set(xlabel="training tokens", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: counted(value)))


def ends(name: str, points: Points, unit: str) -> str:
    """A curve's first and last value, in words."""
    if not points:
        return f"{name}: no values."
    (start, first), (end, last) = points[0], points[-1]
    return f"{name}: {short(first)} at {counted(start)} {unit}, {short(last)} at {counted(end)}."
