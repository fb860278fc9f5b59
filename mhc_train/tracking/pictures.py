"""Pictures of one measurement of the residual path: some of its maps, and its course over the depth."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Line = dict[str, Any]

MOST_NUMBERS = 8
"""Streams up to which every entry of a map is written on it."""
FLOOR = 1e-12
"""What zero is drawn at on a logarithmic axis."""
PANEL = (2.6, 2.8)
"""Inches of one map."""
Curve = tuple[str, str, str, str]
"""A label, and where its numbers are: sublayers, forward or backward; the measurement; the statistic."""
COMPOSITES: tuple[Curve, ...] = (
    ("forward gain up to here, max", "forward", "forward_gain", "max"),
    ("backward gain from here on, max", "backward", "backward_gain", "max"),
    ("difference gain up to here, median", "forward", "difference_gain", "median"),
)
STREAMS: tuple[Curve, ...] = (
    ("energy after the sublayer, mean", "sublayers", "energy_out", "mean"),
    ("share of differences, median", "sublayers", "stream_difference", "median"),
)
LEAST_SPAN = (0.5, 2.0)
"""What the axis of composites shows at least, so that rounding does not look like a course."""


def pictures(line: Line) -> dict[str, bytes]:
    """PNG files by name: `maps` where there are several streams, `profile` where there are several sublayers."""
    drawn = {"maps": _maps(line), "profile": _profile(line)}
    with matplotlib.rc_context({"font.size": 9}):
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _maps(line: Line) -> Figure | None:
    """Token means of the first, the middle and the last H_res, and of the composite of all."""
    rows = [row for row in line["sublayers"] if "mean_maps" in row]
    if not rows or len(rows[0]["mean_maps"]["res"]) == 1:
        return None
    chosen = sorted({0, (len(rows) - 1) // 2, len(rows) - 1})
    panels = [(rows[index]["name"], rows[index]["mean_maps"]["res"]) for index in chosen]
    whole = line["composite"]["forward"][-1].get("mean_map")
    panels += [("composite of all", whole)] if whole else []
    figure = Figure((PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    for number, (title, matrix) in enumerate(panels, 1):
        _map(figure.add_subplot(1, len(panels), number), title, matrix)
    return figure


def _map(axes: Axes, title: str, matrix: list[list[float | None]]) -> None:
    """Null, which is what was not finite, stays white."""
    limit = max([1.0, *(abs(entry) for row in matrix for entry in row if entry is not None)])
    axes.imshow(
        [[math.nan if entry is None else entry for entry in row] for row in matrix],
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
    )
    axes.set(title=title, xlabel="sends", ylabel="receives", xticks=[], yticks=[])
    if len(matrix) <= MOST_NUMBERS:
        for i, row in enumerate(matrix):
            for j, entry in enumerate(row):
                if entry is not None:
                    colour = "w" if abs(entry) > limit / 2 else "k"
                    axes.text(j, i, f"{entry:.2f}", ha="center", va="center", color=colour)


def _profile(line: Line) -> Figure | None:
    """What the depth does to signal, gradient and differences, sublayer by sublayer."""
    if len(line["sublayers"]) < 2:
        return None
    figure = Figure((9, 3), layout="constrained")
    sources = {"sublayers": line["sublayers"], **line["composite"]}
    for number, (title, curves) in enumerate((("composites", COMPOSITES), ("streams", STREAMS)), 1):
        axes = figure.add_subplot(1, 2, number)
        axes.set(title=title, xlabel="sublayer", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for label, where, measure, statistic in curves:
            _plot(axes, label, [row.get(measure, {}).get(statistic) for row in sources[where]])
        if axes.lines:
            axes.legend()
    composites = figure.axes[0]
    low, high = composites.get_ylim()
    composites.set_ylim(min(low, LEAST_SPAN[0]), max(high, LEAST_SPAN[1]))
    return figure


def _plot(axes: Axes, label: str, values: Sequence[float | None]) -> None:
    known = [(index, max(value, FLOOR)) for index, value in enumerate(values, 1) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker=".", label=label)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
