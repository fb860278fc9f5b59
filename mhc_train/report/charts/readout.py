"""What the page's script needs to read a chart out: where its points are, and what they say."""

import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from mhc_train.report.words import counted

STOPS = 120
"""Places along the x axis at which a chart can be read."""
NEAR = 0.006
"""Share of the axis' width from which on a curve has no value at a stop."""

NUMBERED = {"steps": "step", "sublayers": "sublayer"}
"""Units that are not counted but have a number each."""


@dataclass(frozen=True)
class Trace:
    """A curve's name, colour, and points (x, y) in the order of x."""

    name: str
    colour: str
    points: Sequence[Any]


def readout(axes: Axes, height: float, traces: Sequence[Trace], unit: str) -> str:
    """JSON: the axes' box and the stops' x in the SVG's coordinates, the stops' labels, and every curve's values there.

    `axes` are drawn already; their SVG is `height` units high, and y runs downwards in it. Empty where there is no
    point to read out.
    """
    curves = [_finite(trace.points) for trace in traces]
    stops = _thinned(sorted({x for points in curves for x, _ in points}))
    if not stops:
        return ""
    left, right = sorted(axes.get_xlim())
    near = (right - left) * NEAR
    box, (low, high) = axes.bbox, axes.get_ylim()
    document = {
        "box": _rounded((box.x0, height - box.y1, box.x1, height - box.y0)),
        "y": [low, high, int(axes.get_yscale() == "log")],
        "x": _rounded(axes.transData.transform((x, low))[0] for x in stops),
        "at": "|".join(f"{NUMBERED[unit]} {x:g}" if unit in NUMBERED else f"{counted(x)} {unit}" for x in stops),
        "lines": [
            {"name": trace.name, "colour": trace.colour, "values": [_at(points, x, near) for x in stops]}
            for trace, points in zip(traces, curves, strict=True)
        ],
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def _finite(points: Iterable[Any]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _thinned(stops: list[Any]) -> list[Any]:
    """At most `STOPS`, the first and the last among them."""
    if len(stops) <= STOPS:
        return stops
    return [stops[place * (len(stops) - 1) // (STOPS - 1)] for place in range(STOPS)]


def _at(points: list[tuple[float, float]], x: float, near: float) -> float | None:
    """The value at the point next to x, to five digits; null where none is near."""
    place = bisect_left(points, x, key=lambda point: point[0])
    found = min(points[max(0, place - 1) : place + 1], key=lambda point: abs(point[0] - x), default=None)
    return float(f"{found[1]:.5g}") if found and abs(found[0] - x) <= near else None


def _rounded(numbers: Iterable[float]) -> list[float]:
    return [round(float(number), 1) for number in numbers]
