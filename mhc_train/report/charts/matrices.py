"""Matrices as heat maps that print every entry, and the sums of rows and columns."""

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from mhc_train.report.charts.drawing import COLOURS, INK, Chart, svg
from mhc_train.report.readings import prominent
from mhc_train.report.words import Number, Real

Matrix = list[list[Number]]
SMALL = 4
"""Streams up to which a matrix is drawn in the smallest size."""


def heat_maps(document: dict[str, Any]) -> list[tuple[str, list[Chart]]]:
    """For every arm that charts show in full strength and that has several streams, the token-mean H_res of three
    sublayers and of the whole composite."""
    shown = prominent(document)
    return [
        (arm["name"], _maps_of(f"map-{index}", arm["name"], arm["last"]))
        for index, arm in enumerate(document["arms"])
        if index in shown and arm["last"] and arm["last"]["streams"] > 1
    ]


def _maps_of(key: str, name: str, measurement: dict[str, Any]) -> list[Chart]:
    sublayers, whole = measurement["sublayers"], measurement["composite"]["forward"][-1]
    places = dict.fromkeys((0, len(sublayers) // 2, len(sublayers) - 1))
    maps = [(f"{place}", sublayers[place]["name"], sublayers[place]["mean_maps"]["res"]) for place in places]
    maps.append(("whole", "mean composite of all sublayers", whole["mean_map"]))
    return [heat_map(f"{key}-{place}", name, title, matrix) for place, title, matrix in maps]


def heat_map(key: str, arm: str, title: str, matrix: Matrix) -> Chart:
    """One matrix; `arm` and `title` say whose and which, `key` is its id."""
    rows = [[math.nan if entry is None else entry for entry in row] for row in matrix]
    listed = "; ".join(_entries(row) for row in rows)
    text = f"Token-mean stream mixer of {arm}, {title}; rows receive, columns send. Rows, top to bottom: {listed}. "
    text += f"Row sums: {_entries(map(sum, rows))}. Column sums: {_entries(map(sum, zip(*rows, strict=True)))}."
    return Chart(title, "", svg(key, f"{arm}: {title}", text, (_side(len(rows)),) * 2, lambda axes: _paint(axes, rows)))


def _side(n: int) -> float:
    """Inches in which n columns of four characters and their sums have room."""
    return 2.9 if n <= SMALL else 0.5 * n + 0.9


def _entries(values: Iterable[Real]) -> str:
    return " ".join(map(_entry, values))


def _paint(axes: Axes, rows: list[list[Any]]) -> None:
    """Cells whose opacity is the entry's size, so that zero is the page's own background; sums at the margins."""
    n = len(rows)
    size = 10 if n <= SMALL else 9
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
