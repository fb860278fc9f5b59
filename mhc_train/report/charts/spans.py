"""A composite for every span of sublayers, as an L x L triangle: where the depth amplifies, and where it collapses."""

import math
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator

from mhc_train.report.charts.drawing import COLOURS, INK, Chart, chart, titled
from mhc_train.report.charts.lines import FLOOR
from mhc_train.report.words import Number, number

CLASSES = 6
"""Colours on either side of 1."""
FACTORS = (1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)
"""What neighbouring classes differ by: the smallest that suffices."""
NEUTRAL = math.log(1.01)
"""Values within 1 % of 1 are drawn as 1."""
NOT_FINITE = CLASSES + 1
LEAST = 3
"""Sublayers below which a triangle shows nothing that the curves do not."""
TICKS = 8
"""At most so many sublayers have their number at an axis, each in the middle of its cells."""
ROW, KEY_SIZE = 0.052, 9
"""Height of a row of the key, as a share of the axes, and its font size."""

Triangle = list[list[Number]]


def span_map(key: str, title: str, caption: str, name: str, values: Triangle) -> Chart | None:
    """`values[a][b]` of the composite from sublayer a to b, drawn by how far they lie from 1; None if there are few."""
    if len(values) < LEAST:
        return None
    factor = _factor(values)
    classes = [[_class(value, factor) for value in row[a:]] for a, row in enumerate(values)]

    def draw(axes: Axes) -> None:
        for level in sorted({level for row in classes for level in row}):
            axes.add_patch(PathPatch(_outline(classes, level), antialiased=False, **_fill(level)))
        _key(axes, classes, factor)
        size = len(values)
        axes.set(
            xlim=(-0.5, size - 0.5),
            ylim=(size - 0.5, -0.5),
            xlabel="last sublayer of the span",
            ylabel="first sublayer",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(range(0, size, math.ceil(size / TICKS))))
        axes.set_aspect("equal")
        axes.grid(False)

    return chart(key, titled(title, name), caption, draw, [], _spoken(title, values))


def _factor(values: Triangle) -> float:
    known = [abs(math.log(max(value, FLOOR))) for row in values for value in row if value is not None]
    furthest = max(known, default=0.0)
    return next((factor for factor in FACTORS if CLASSES * math.log(factor) >= furthest), FACTORS[-1])


def _class(value: Number, factor: float) -> int:
    """0 near 1; k where the value lies between factor^(k-1) and factor^k, with the sign of its logarithm."""
    if value is None:
        return NOT_FINITE
    distance = math.log(max(value, FLOOR))
    if abs(distance) <= NEUTRAL:
        return 0
    level = min(CLASSES, max(1, math.ceil(abs(distance) / math.log(factor) - 1e-9)))
    return level if distance > 0 else -level


def _outline(classes: list[list[int]], level: int) -> Outline:
    """All cells of one class as one path, cells that touch in a row as one rectangle."""
    boxes = [_box(x - 0.5, end - 0.5, y - 0.5) for x, end, y in _runs(classes, level)]
    return Outline.make_compound_path(*boxes)


def _box(left: float, right: float, top: float) -> Outline:
    corners = [(left, top), (right, top), (right, top + 1), (left, top + 1), (left, top)]
    return Outline(corners, closed=True)


def _runs(classes: list[list[int]], level: int) -> Iterator[tuple[int, int, int]]:
    for a, row in enumerate(classes):
        start = None
        for b, found in enumerate([*row, None]):
            if found == level and start is None:
                start = b
            elif found != level and start is not None:
                yield a + start, a + b, a
                start = None


def _fill(level: int) -> dict[str, Any]:
    if level in (0, NOT_FINITE):
        return {"facecolor": INK, "alpha": 0.08 if level == 0 else 0.75, "linewidth": 0}
    colour = COLOURS[1] if level > 0 else COLOURS[0]
    return {"facecolor": colour, "alpha": 0.12 + 0.83 * abs(level) / CLASSES, "linewidth": 0}


def _key(axes: Axes, classes: list[list[int]], factor: float) -> None:
    """In the empty corner, where spans would end before they begin."""
    found = sorted({level for row in classes for level in row}, reverse=True)
    for place, level in enumerate(found):
        y = 0.02 + ROW * (len(found) - 1 - place)
        axes.add_patch(Rectangle((0.02, y), 0.045, ROW * 0.85, transform=axes.transAxes, **_fill(level)))
        axes.text(0.08, y + ROW * 0.4, _label(level, factor), transform=axes.transAxes, va="center", fontsize=KEY_SIZE)


def _label(level: int, factor: float) -> str:
    if level == NOT_FINITE:
        return "not finite"
    if level == 0:
        return "1 (within 1 %)"
    return f"{'up' if level > 0 else 'down'} to {number(factor**level, 2)}"


def _spoken(title: str, values: Triangle) -> str:
    """The extremes and where they are, and the whole depth."""
    known = [
        (value, a, b) for a, row in enumerate(values) for b, value in enumerate(row) if b >= a and value is not None
    ]
    missing = sum(value is None for a, row in enumerate(values) for value in row[a:])
    text = f"{title}, of every span of {len(values)} sublayers. "
    if known:
        ends = [
            f"{word} {number(value)} from sublayer {a} to {b}"
            for word, (value, a, b) in (("Largest", max(known)), ("smallest", min(known)))
        ]
        text += f"{'; '.join(ends)}; whole depth {number(values[0][-1])}. "
    return text + (f"Not finite at {missing} spans." if missing else "")
