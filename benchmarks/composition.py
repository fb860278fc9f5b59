"""What becomes of the streams over depth: products of every mixer's maps, from each of its inits."""

from typing import Any

import torch
from figures import name_ends, new_figure, new_style, save
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from record import significant, write_json, write_table
from torch import Tensor

from mhc_train.diagnostics.maps import (
    difference_gain,
    forward_composites,
    forward_gain,
    singular_values,
    spectral_norm,
)
from mhc_train.mixers import MIXERS, build_mixer
from mhc_train.report.charts import look

STREAMS, TOKENS, CHANNELS = 4, 256, 64
DEPTHS = (12, 24, 48, 64, 96, 128)
"""Transformer layers, of two sublayers each."""
SUBLAYERS = 2
START, GROWN = STRENGTHS = (0.01, 1.0)
"""What multiplies unit normal noise in the logits: at the start, and once gates and projections have grown."""
TABLE_DEPTH = 64
DRAWN_INIT = "equivalent"
EXPLODED_GAIN, EXPLODED_NORM, COLLAPSED = 10.0, 2.0, 1e-2
FLOOR = 1e-8
"""The smallest figure that is told apart from zero: below it, rounding differs between machines."""

Row = dict[str, Any]


# Measurements


def composite(mixer: str, init: str, strength: float, depth: int) -> Tensor:
    """The product of all maps of `depth` layers for every token, whose logits are bias + strength x N(0, 1)."""
    # The circulant mixer leaks less, the deeper the model.
    built = build_mixer(mixer, STREAMS, {"sublayers": SUBLAYERS * depth}, {})
    noise = normal(0, SUBLAYERS * depth, TOKENS, built.logits)
    return forward_composites(list(built(built.bias(init) + strength * noise).double()))[-1]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def energy(P: Tensor) -> Tensor:
    """`||P x||^2 / ||x||^2` of every token's random streams."""
    x = normal(1, TOKENS, STREAMS, CHANNELS).double()
    return (P @ x).square().sum((-2, -1)) / x.square().sum((-2, -1))


def row(mixer: str, init: str, strength: float, depth: int) -> Row:
    """Figures of one composite, each by the statistic over tokens that its law is judged by."""
    P = composite(mixer, init, strength, depth)
    figures = {
        "gain": forward_gain(P).max(),
        "spectral_norm": spectral_norm(singular_values(P)).max(),
        "energy": energy(P).mean(),
        "difference_gain": difference_gain(P).median(),
    }
    names = {"mixer": mixer, "init": init, "strength": strength, "depth": depth}
    return names | {name: significant(value.item()) for name, value in figures.items()}


def stands(row: Row) -> str:
    """Where a composite stands between the two ends of one scale."""
    if row["gain"] > EXPLODED_GAIN or row["spectral_norm"] > EXPLODED_NORM:
        return "explodes"
    return "collapses" if row["difference_gain"] < COLLAPSED else "between"


# The table


def table(rows: list[Row]) -> list[list[str]]:
    """Every mixer from every init, those together that come to the same."""
    found = {(row["mixer"], row["init"], row["strength"]): row for row in rows if row["depth"] == TABLE_DEPTH}
    inits: dict[tuple[str, ...], list[str]] = {}
    for mixer, init, strength in found:
        if strength == START:
            cells = compared(found[mixer, init, START], found[mixer, init, GROWN])
            inits.setdefault((mixer, *cells), []).append(init)
    return [[mixer, ", ".join(names), *cells] for (mixer, *cells), names in inits.items()]


def compared(start: Row, grown: Row) -> list[str]:
    """The same figure at both strengths in each cell."""
    numbers = [f"{shown(start[key])} → {shown(grown[key])}" for key in ("gain", "energy", "difference_gain")]
    return [*numbers, " → ".join(dict.fromkeys((stands(start), stands(grown))))]


def shown(value: float) -> str:
    return f"< {FLOOR:.0e}" if value < FLOOR else f"{value:.2g}"


# The figure


def draw(rows: list[Row]) -> None:
    """Gain and difference gain against depth, side by side: equal bytes for equal numbers."""
    with new_style():
        figure = new_figure(11, 4.2)
        title = f"Products of H_res ({STREAMS} streams), init {DRAWN_INIT}, logit noise {GROWN:g}"
        figure.suptitle(title, fontsize="medium")
        left, right = figure.subplots(1, 2)
        panel(left, rows, "gain", "forward gain, largest over tokens", (0.3, None))
        panel(right, rows, "difference_gain", f"difference gain, median, at least {FLOOR:.0e}", (FLOOR / 3, 3.0))
        save(figure, "composition")


def panel(axes: Axes, rows: list[Row], quantity: str, label: str, limits: tuple[float, float | None]) -> None:
    """One line a mixer, named at its end; what is below the floor lies on it."""
    drawn = [row for row in rows if row["init"] == DRAWN_INIT and row["strength"] == GROWN]
    ends = {}
    for index, mixer in enumerate(MIXERS):
        values = [max(row[quantity], FLOOR) for row in drawn if row["mixer"] == mixer]
        style = look(index)
        axes.plot(DEPTHS, values, color=style.colour, linestyle=style.dashes, marker=style.marker)
        ends[mixer] = values[-1]
    axes.set(yscale="log", ylim=limits, xticks=DEPTHS, xlabel="layers composed (two sublayers each)", ylabel=label)
    # Few enough decades that one of the ticks is 1.
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    name_ends(axes, ends, {mixer: look(index).colour for index, mixer in enumerate(MIXERS)})


def main() -> None:
    choices = [(mixer, init, strength) for mixer in MIXERS for init in MIXERS[mixer].policies for strength in STRENGTHS]
    rows = [row(*choice, depth) for choice in choices for depth in DEPTHS]
    intro = (
        f"Made by `python benchmarks/composition.py`: products over {TABLE_DEPTH} layers "
        f"({SUBLAYERS * TABLE_DEPTH} maps) of n = {STREAMS} streams with logits bias + s N(0, 1), drawn anew for each "
        f"sublayer and each of {TOKENS} tokens; every cell at "
        f"s = {START:g} (the start) → s = {GROWN:g} (grown gates). Gain: largest over tokens; energy: mean of "
        f"‖Px‖² / ‖x‖² for random streams; difference gain: median. Explodes: a gain above {EXPLODED_GAIN:g} or a "
        f"spectral norm above {EXPLODED_NORM:g}; collapses: a difference gain below {COLLAPSED:g}."
    )
    write_table("composition", intro, ("mixer", "init", "gain", "energy", "difference gain", "stands"), table(rows))
    write_json("composition", {"streams": STREAMS, "tokens": TOKENS, "rows": rows})
    draw(rows)


if __name__ == "__main__":
    main()
