"""Writes what untrained paths do over depth as one HTML page: connections side by side, and a linear amplifier."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from mhc_train.files import write_text
from mhc_train.report.charts import Chart, look
from mhc_train.report.charts.curves import ends, thick
from mhc_train.report.charts.drawing import Legend, chart, scale
from mhc_train.report.charts.readout import Trace
from mhc_train.report.diagnosis import Section
from mhc_train.report.page import Cell, Table, environment
from mhc_train.report.readings import AMPLIFIER, DEPTH_COLUMNS, depth_rows
from mhc_train.report.words import SYMBOLS, Number, listed, number

Document = dict[str, Any]

MEASURES = (
    ("forward_gain", "max", "Forward gain", "largest over tokens", True),
    ("backward_gain", "max", "Backward gain", "largest over tokens", True),
    ("difference_gain", "median", "Difference gain", "median token", True),
    ("log_determinant", "median", "Volume", "log |det|, median token", False),
)
"""What is drawn of the whole composite: measure, statistic, title, reading, and whether 1.1 I has it as 1.1^L."""


def write_depths(documents: list[Document], path: Path) -> Path:
    """Write the page of `diagnose --at-init` to `path`, and return it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, to_html(documents))
    return path


def to_html(documents: list[Document]) -> str:
    """One self-contained page; equal documents give equal bytes."""
    names = [document["connection"] for document in documents]
    view = {
        "title": f"Untrained depth of {listed(names)}",
        "subjects": [(document["connection"], [_summary(document)]) for document in documents],
        "convention": documents[0]["convention"],
        "measured": _measured(documents),
        "sections": [_section(documents)],
        "colours": [look(index).colour for index in range(len(documents))],
        "symbols": SYMBOLS,
    }
    return environment(True).get_template("diagnosis.html.j2").render(view)


def _summary(document: Document) -> str:
    last = document["depths"][-1]
    gain, kept = last["forward_gain"]["max"], last["difference_gain"]["median"]
    text = f"over {last['sublayers']} sublayers the signal's largest gain is {number(gain)}"
    return f"{text} and differences between streams keep {number(kept)}." if kept is not None else f"{text}."


def _measured(documents: list[Document]) -> Table:
    rows = ("streams", "jitter", "tokens", "seed", "basis")
    cells = [(Cell(row), [Cell(str(document[row])) for document in documents]) for row in rows]
    return Table("What was measured", [document["connection"] for document in documents], cells, arms=True)


def _numbers(documents: list[Document]) -> Table:
    rows = [
        (Cell(f"{depth}: {connection}"), list(map(Cell, cells)))
        for depth, group in depth_rows(documents, number)
        for connection, cells in group
    ]
    columns = [f"{title}, {statistic}" for title, _, statistic in DEPTH_COLUMNS]
    return Table("Of the whole composite, by sublayers and connection", columns, rows)


def _section(documents: list[Document]) -> Section:
    return Section(
        "depth",
        "Over depth",
        "The composite of all sublayers, by their number. 1.1 I multiplies its streams by a tenth more at each: "
        "amplification is exponential in depth. What cannot amplify forgets: a difference gain that falls is the other "
        "end of the same scale.",
        tables=[_numbers(documents)],
        charts=[_chart(documents, *measure) for measure in MEASURES],
    )


def _chart(documents: list[Document], measure: str, statistic: str, title: str, reading: str, amplifier: bool) -> Chart:
    curves = [
        (document["connection"], [(row["sublayers"], row[measure][statistic]) for row in document["depths"]])
        for document in documents
    ]
    if amplifier:
        curves.append((AMPLIFIER, [(row["sublayers"], row["gain"]) for row in documents[0]["amplifier"]]))
    known = [(name, [point for point in points if point[1] is not None]) for name, points in curves]
    caption = f"{title} of the whole composite: {reading}." + "".join(_ends(*curve) for curve in curves)
    legend: Legend = [(name, look(index)) for index, (name, _) in enumerate(known)]

    def draw(axes: Axes) -> None:
        for (_, points), (_, style) in zip(known, legend, strict=True):
            thick(axes, points, style)
        axes.set(xlabel="sublayers", ylabel=reading)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        scale(axes, [value for _, points in known for _, value in points])

    description = " ".join(ends(name, points, "sublayers") for name, points in known)
    traces = [Trace(name, style.colour, points) for (name, points), (_, style) in zip(known, legend, strict=True)]
    return chart(measure.replace("_", "-"), title, caption, draw, legend, description, traces, "sublayers in all")


def _ends(name: str, points: list[tuple[int, Number]]) -> str:
    """Says from where on a curve is missing, because its end alone could be overlooked; one stream never has any."""
    missing = [depth for depth, value in points if value is None]
    return f" {name} is no longer finite from {missing[0]} sublayers on." if 0 < len(missing) < len(points) else ""
