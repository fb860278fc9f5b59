"""What residual paths do over depth before any training: composites of whole connections beside a linear amplifier."""

from typing import Any

import torch
from figures import name_ends, new_figure, new_style, save
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator
from record import significant, write_json, write_table

from mhc_train.config.compose import compose
from mhc_train.diagnostics.at_init import AMPLIFICATION, TOKENS, at_init
from mhc_train.report.charts import look

CONNECTIONS = ("hc", "mhc", "mhc_lite", "ihc", "ohc")
AMPLIFIER = "1.1 I"
DEPTHS = [1, 2, 4, 8, 16, 32, 64, 100, 128]
"""Sublayers."""
JITTERS = (0.0, 0.1, 1.0)
DRAWN = JITTERS[:2]
"""A free path's gain with noise of 1 would leave no room for the others."""
TABLE_DEPTHS = (8, 32, 128)
DIM, SEED = 128, 0
FIGURES = {
    "forward_gain": ("max", "forward gain, largest over tokens"),
    "backward_gain": ("max", "backward gain, largest over tokens"),
    "difference_gain": ("median", "difference gain, median over tokens"),
}
"""Each by the statistic over tokens that its law is judged by."""
LIMITS = (0.2, 4e5)

Row = dict[str, Any]


def rows() -> list[Row]:
    """The figures of every connection, jitter and depth."""
    return [
        {"connection": name, "jitter": jitter, "sublayers": entry["sublayers"]}
        | {figure: significant(entry[figure][statistic]) for figure, (statistic, _) in FIGURES.items()}
        for name in CONNECTIONS
        for jitter in JITTERS
        for entry in at_init(config(name), DEPTHS, jitter, TOKENS, SEED)["depths"]
    ]


def config(connection: str) -> Any:
    return compose([f"connection={connection}", f"model.dim={DIM}"])


def amplifier() -> list[Row]:
    """The linear amplifier's, whose gains are all the same."""
    entries = at_init(config("residual"), DEPTHS, 0.0, 1, SEED)["amplifier"]
    return [
        {"connection": AMPLIFIER, "sublayers": entry["sublayers"]} | dict.fromkeys(FIGURES, significant(entry["gain"]))
        for entry in entries
    ]


def table(rows: list[Row], amplified: list[Row]) -> list[list[str]]:
    """Every connection as it starts and with noise, over a few depths."""
    series = [(f"`{name}`", jitter) for name in CONNECTIONS for jitter in JITTERS]
    lines = [
        [
            name,
            f"{jitter:g}",
            *cells([row for row in rows if (f"`{row['connection']}`", row["jitter"]) == (name, jitter)]),
        ]
        for name, jitter in series
    ]
    return [[f"{AMPLIFICATION:g} I", "", *cells(amplified)], *lines]


def cells(rows: list[Row]) -> list[str]:
    """Forward, backward and difference gain at the depths of the table."""
    found = {row["sublayers"]: row for row in rows}
    return [", ".join(f"{found[depth][figure]:.3g}" for figure in FIGURES) for depth in TABLE_DEPTHS]


def draw(rows: list[Row], amplified: list[Row]) -> None:
    """A row of panels for each jitter drawn: gains forwards and backwards, and what becomes of differences."""
    with new_style():
        figure = new_figure(13, 7.4)
        figure.suptitle("Composites of untrained paths, by the number of sublayers", fontsize="medium")
        panels = figure.subplots(len(DRAWN), len(FIGURES))
        for across, jitter in zip(panels, DRAWN, strict=True):
            noisy = [row for row in rows if row["jitter"] == jitter]
            title = f"logit noise {jitter:g}" if jitter else "as initialised"
            for axes, quantity in zip(across, FIGURES, strict=True):
                panel(axes, [*noisy, *amplified], quantity)
                axes.set_title(title, fontsize="small", loc="left")
        save(figure, "depth")


def panel(axes: Axes, rows: list[Row], quantity: str) -> None:
    """One line a connection, named at its end."""
    ends, colours = {}, {}
    for index, name in enumerate((*CONNECTIONS, AMPLIFIER)):
        values = [row[quantity] for row in rows if row["connection"] == name]
        style = look(index)
        axes.plot(DEPTHS, values, color=style.colour, linestyle=style.dashes, marker=style.marker)
        ends[name], colours[name] = values[-1], style.colour
    axes.set(yscale="log", ylim=LIMITS, xticks=(1, 32, 64, 100, 128), xlabel="sublayers", ylabel=FIGURES[quantity][1])
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    name_ends(axes, ends, colours)


def main() -> None:
    torch.set_num_threads(1)
    measured, amplified = rows(), amplifier()
    intro = (
        f"Made by `python benchmarks/depth.py`: untrained paths of width {DIM} on {TOKENS} tokens of normal streams. "
        f"Jitter: standard deviation of normal noise on every mixer's logits, in their own units (for `hc` entries of "
        f"H_res), drawn anew for each sublayer and token. Each cell: forward gain and backward gain (largest over "
        f"tokens), difference gain (median) of the whole composite. {AMPLIFICATION:g} I is the linear amplifier: every "
        f"gain is {AMPLIFICATION:g}^L, which is {AMPLIFICATION**100:,.0f} at 100 sublayers."
    )
    header = ("connection", "jitter", *(f"{depth} sublayers" for depth in TABLE_DEPTHS))
    write_table("depth", intro, header, table(measured, amplified))
    write_json("depth", {"dim": DIM, "tokens": TOKENS, "seed": SEED, "rows": measured, "amplifier": amplified})
    draw(measured, amplified)


if __name__ == "__main__":
    main()
