"""Lines over depth: how they are drawn, what a gap in one means, and how they read aloud."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mhc_train.report.charts.curves import QUIET
from mhc_train.report.charts.drawing import INK, Chart, Look, chart, scale
from mhc_train.report.charts.readout import Trace
from mhc_train.report.words import Number, Real, short

FLOOR = 1e-12
"""What an exact zero is drawn at on a logarithmic axis."""


@dataclass(frozen=True)
class Line:
    """Numbers over depth: a central value, and where there are such the largest over tokens and error bars."""

    name: str
    look: Look
    xs: list[int]
    middle: list[float]
    upper: list[float] | None = None
    dotted: list[float] | None = None
    errors: list[float] | None = None

    @property
    def values(self) -> list[float]:
        """Every finite number of the line."""
        everything = [*self.middle, *(self.upper or []), *(self.dotted or [])]
        return [value for value in everything if math.isfinite(value)]

    @property
    def drawn(self) -> list[float]:
        """Every finite number, and the lower ends of the error bars."""
        ends = (value - error for value, error in zip(self.middle, self.errors or [], strict=False))
        return [*self.values, *(value for value in ends if math.isfinite(value))]

    @property
    def gaps(self) -> int:
        """How many points are not finite at the worst token."""
        return sum(not math.isfinite(value) for value in self.upper or self.middle)


def over_sublayers(
    key: str,
    title: str,
    caption: str,
    label: str,
    lines: Sequence[Line],
    reference: Number = None,
    demand: Real = 20,
    alternating: bool = False,
) -> Chart:
    """A chart of lines over depth; `reference` is where a horizontal line stands, `demand` as in `scale`."""

    def draw(axes: Axes) -> None:
        if reference is not None:
            axes.axhline(reference, color=INK, linewidth=1, alpha=0.6)
        for line in lines:
            _draw(axes, line)
        axes.set(xlabel="sublayer (attention and feed-forward in turn)" if alternating else "sublayer", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        scale(axes, [value for line in lines for value in line.drawn], demand)

    text = f"{label} over depth. " + " ".join(map(_spoken, lines))
    legend = [(line.name, line.look) for line in lines]
    traces = [Trace(line.name, line.look.colour, list(zip(line.xs, line.middle, strict=True))) for line in lines]
    caption += gaps((line.name, line.gaps) for line in lines)
    return chart(key, title, caption, draw, legend, text, traces, "sublayers")


def numbers(values: Iterable[Number], share: Real = 1, floor: float | None = None) -> list[float]:
    """Null, which stands for a number that is not finite, becomes a gap in the line."""
    known = [math.nan if value is None else value / share for value in values]
    return [max(value, floor) if floor is not None and math.isfinite(value) else value for value in known]


def gaps(missing: Iterable[tuple[str, int]]) -> str:
    """Says where a line is broken, because a gap alone could be overlooked."""
    return "".join(f" {name} is not finite at {count} of the points: gaps." for name, count in missing if count)


def _draw(axes: Axes, line: Line) -> None:
    if line.look.quiet:
        axes.plot(line.xs, line.middle, color=line.look.colour, linewidth=0.8, alpha=QUIET)
        return
    every = max(1, len(line.xs) // 12)
    style = {"color": line.look.colour, "linestyle": line.look.dashes, "marker": line.look.marker, "markevery": every}
    if line.upper:
        axes.fill_between(line.xs, line.middle, line.upper, color=line.look.colour, alpha=0.2, linewidth=0)
        axes.plot(line.xs, line.upper, color=line.look.colour, linewidth=0.8, alpha=0.8)
    if line.dotted:
        axes.plot(line.xs, line.dotted, color=line.look.colour, linewidth=1.2, linestyle=":")
    if line.errors:
        axes.errorbar(line.xs, line.middle, line.errors, color=line.look.colour, fmt="none", elinewidth=1, capsize=2)
    axes.plot(line.xs, line.middle, **style)


def _spoken(line: Line) -> str:
    middle = [value for value in line.middle if math.isfinite(value)]
    if not middle:
        return f"{line.name}: not finite."
    ends = f"{short(middle[0])} at the first point, {short(middle[-1])} at the last"
    return f"{line.name}: {ends}, largest {short(max(line.values))}."
