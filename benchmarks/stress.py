"""How far composites leave 1 in real trainings: `python benchmarks/stress.py RUN...` reads what they measured.

The runs are those of `mhc-train compare experiment=stress` and `experiment=quickstart` (docs/stress.md says which).
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from figures import new_figure, new_style, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from record import significant, write_json, write_table

from mhc_train.report.charts import look
from mhc_train.report.collect import RunRecord, group_arms, read_run

Row = dict[str, Any]
Number = float | None
DIRECTIONS = {"forward": "forward_gain", "backward": "backward_gain"}
"""Curves of composites, and the gain that each is judged by."""
HEADER = (
    "arm",
    "seed",
    "forward gain",
    "backward gain",
    "of token-mean maps",
    "largest during training",
    "difference gain",
    "largest gradient norm",
    "validation loss",
)


# Measurements


def rows(records: list[RunRecord]) -> list[Row]:
    """The figures of every run of one experiment, named as a report would name its arms."""
    return [row(arm.name, record) for arm in group_arms(records) for record in arm.records]


def row(arm: str, record: RunRecord) -> Row:
    """What a run measured at its end, and the largest that it measured on the way."""
    *_, last = record.measurements
    curves = {direction: curve(last["composite"][direction], gain) for direction, gain in DIRECTIONS.items()}
    on_the_way = [
        entry[gain]["max"]
        for measurement in record.measurements
        for direction, gain in DIRECTIONS.items()
        for entry in measurement["composite"][direction]
    ]
    differences = [rounded(entry["difference_gain"]["median"]) for entry in last["composite"]["forward"]]
    return {
        "arm": arm,
        "seed": record.config["seed"],
        "steps": record.status["step"],
        "sublayers": len(differences),
        "largest": {direction: largest(points["max"]) for direction, points in curves.items()},
        "largest_of_token_means": largest(gain for points in curves.values() for gain in points["of_token_means"]),
        "largest_during_training": largest(map(rounded, on_the_way)),
        "difference_gain": differences[-1],
        "gradient_norm": largest(rounded(norm) for _, norm in record.curve("grad_norm")),
        "val_loss": rounded(record.final("val_loss")),
        "curves": curves,
        "differences": differences,
    }


def curve(entries: list[Row], gain: str) -> dict[str, list[Number]]:
    """A gain over depth: the largest over tokens, and that of the composite of token-mean maps."""
    return {
        "max": [rounded(entry[gain]["max"]) for entry in entries],
        "of_token_means": [rounded(entry["of_token_means"][gain]) for entry in entries],
    }


def rounded(number: Number) -> Number:
    return None if number is None else significant(number)


def largest(numbers: Iterable[Number]) -> Number:
    """None, which is what is not finite, is larger than any number."""
    found = list(numbers)
    return None if None in found else max(number for number in found if number is not None)


def largest_gain(row: Row) -> Number:
    """Forwards or backwards, over tokens and depth."""
    return largest(row["largest"].values())


# Table and figures


def cells(row: Row) -> list[str]:
    # One stream has no differences.
    difference = "" if row["difference_gain"] is None else shown(row["difference_gain"])
    gains = [*row["largest"].values(), row["largest_of_token_means"], row["largest_during_training"]]
    return [
        f"`{row['arm']}`",
        str(row["seed"]),
        *map(shown, gains),
        difference,
        shown(row["gradient_norm"]),
        f"{row['val_loss']:.3f}",
    ]


def shown(number: Number) -> str:
    return "not finite" if number is None else f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def draw(name: str, rows: list[Row]) -> None:
    """Composite gain over depth, forwards and backwards, and difference gain over depth: two figures."""
    several = [row for row in rows if row["difference_gain"] is not None]
    with new_style():
        figure = new_figure(11, 4.2)
        left, right = figure.subplots(1, 2, sharey=True)
        gains(left, several, "forward", "H_l ... H_1: from the embedding to sublayer l")
        gains(right, several, "backward", "H_L ... H_l: from the end back to sublayer l")
        name_arms(figure, several)
        save(figure, f"{name}-gain")
        figure = new_figure(6.4, 4.2)
        differences(figure.subplots(), several)
        name_arms(figure, several)
        save(figure, f"{name}-differences")


def gains(axes: Axes, rows: list[Row], direction: str, title: str) -> None:
    """A solid line a run, the largest gain over tokens; a dotted one for the composite of token-mean maps."""
    for row, colour, dashes in styled(rows):
        points = row["curves"][direction]
        axes.plot(depths(row), points["max"], color=colour, linestyle=dashes)
        axes.plot(depths(row), points["of_token_means"], color=colour, linestyle=":", linewidth=1)
    axes.set(yscale="log", xlabel="sublayer l", ylabel=f"{direction} gain of the composite")
    # Two powers of ten are in sight however small the gains.
    axes.set_ylim(0.5, max(20.0, axes.get_ylim()[1]))
    axes.set_title(title, fontsize="small", loc="left")
    axes.yaxis.set_major_locator(LogLocator(numticks=8))
    axes.yaxis.set_minor_formatter(NullFormatter())


def differences(axes: Axes, rows: list[Row]) -> None:
    """A line a run: what the composite so far makes of differences between streams."""
    for row, colour, dashes in styled(rows):
        axes.plot(depths(row), row["differences"], color=colour, linestyle=dashes)
    axes.set(yscale="log", xlabel="sublayer l", ylabel="difference gain of H_l ... H_1, median")
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.4, low), max(2.5, high))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def styled(rows: list[Row]) -> list[tuple[Row, str, Any]]:
    """Every run with its arm's colour and dashes."""
    looks = {arm: look(index) for index, arm in enumerate(arms(rows))}
    return [(row, looks[row["arm"]].colour, looks[row["arm"]].dashes) for row in rows]


def arms(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def depths(row: Row) -> list[int]:
    return list(range(1, row["sublayers"] + 1))


def name_arms(figure: Figure, rows: list[Row]) -> None:
    """One legend for all panels."""
    lines = {row["arm"]: Line2D([], [], color=colour, linestyle=dashes) for row, colour, dashes in styled(rows)}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=len(lines))


def environment(record: RunRecord) -> dict[str, Any]:
    names = ("mhc_train", "python", "torch", "platform", "processor", "threads")
    return {name: record.environment[name] for name in names}


def write(name: str, records: list[RunRecord]) -> list[Row]:
    """The table and the figures of one experiment."""
    found = rows(records)
    machine = environment(records[0])
    intro = (
        f"Made by `python benchmarks/stress.py` from runs of `experiment={name}`: {found[0]['steps']} steps, "
        f"{found[0]['sublayers']} sublayers ({machine['processor']}, torch {machine['torch']}, {machine['threads']} "
        "thread). Forward and backward gain: the largest composite gain over depth and tokens after the last step; of "
        "token-mean maps: that of their composite, forwards or backwards, as the mHC paper draws it; difference gain: "
        "of the composite over all sublayers, median over tokens."
    )
    write_table(name, intro, HEADER, map(cells, found))
    draw(name, found)
    return found


def main() -> None:
    experiments: dict[str, list[RunRecord]] = {}
    for record in map(read_run, map(Path, sys.argv[1:])):
        experiments.setdefault(record.config["name"].partition("-")[0], []).append(record)
    document: Row = {"environment": environment(next(iter(experiments.values()))[0])}
    for name, records in experiments.items():
        document[name] = write(name, records)
    write_json("stress", document)


if __name__ == "__main__":
    main()
