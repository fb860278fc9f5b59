"""Figures of benchmarks: lines that are named at their ends, SVG of equal bytes for equal numbers."""

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from record import FIGURES

from mhc_train.report.charts import STYLE

TOGETHER, LINE = 0.02, 0.05
"""Shares of an axis: ends closer than the one share a name, and a line of text is as high as the other."""


def new_style() -> Any:
    """A context in which to draw: the reports' style, but powers of ten are set as formulas."""
    return matplotlib.rc_context(STYLE | {"text.parse_math": True})


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of that many inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Figure, name: str) -> None:
    """Leave a figure in `docs/figures/`."""
    figure.savefig(FIGURES / f"{name}.svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def name_ends(axes: Axes, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Name the lines of a logarithmic axis right of their ends, from the top down and without overlap."""
    free = 1 + LINE
    for height, names in ends_together(axes, ends):
        text = textwrap.fill(", ".join(names), 22) + (" (beyond the scale)" if height > 1 else "")
        extent = LINE * (1 + text.count("\n"))
        bottom = max(0.0, min(height - extent / 2, free - extent))
        colour = colours[names[0]] if len(names) == 1 else None
        axes.text(1.02, bottom, text, color=colour, fontsize="small", va="bottom", transform=axes.transAxes)
        free = bottom


def ends_together(axes: Axes, ends: Mapping[str, float]) -> list[tuple[float, list[str]]]:
    """Names by the height of their lines' ends, as a share of the axis, the highest first."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    groups: list[tuple[float, list[str]]] = []
    for name, end in sorted(ends.items(), key=lambda item: -item[1]):
        height = (math.log(end) - low) / (high - low)
        if groups and groups[-1][0] - height < TOGETHER:
            groups[-1][1].append(name)
        else:
            groups.append((height, [name]))
    return groups
