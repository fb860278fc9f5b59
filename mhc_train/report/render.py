"""Writes a comparison as report.html, report.md and report.json, all of them from the one document of `compare_runs`.

Nothing is computed here that a reader could not compute from the run files, and no date or random number goes in: the
same runs give the same bytes.
"""

import re
from pathlib import Path
from typing import Any

from mhc_train.files import write_json, write_text
from mhc_train.report import charts, tables
from mhc_train.report.charts import Chart, Omitted
from mhc_train.report.page import environment, group
from mhc_train.report.summary import path_summary, summary
from mhc_train.report.words import SYMBOLS, named


def write_report(document: dict[str, Any], directory: Path) -> Path:
    """Write report.html, report.md and report.json into `directory`; returns the path of the HTML page.

    Raises:
        StorageError: a file cannot be written.
    """
    write_json(directory / "report.json", document)
    write_text(directory / "report.md", to_markdown(document))
    page = directory / "report.html"
    write_text(page, to_html(document))
    return page


def to_html(document: dict[str, Any]) -> str:
    """One self-contained page: no script, nothing loaded from anywhere."""
    return environment(True).get_template("report.html.j2").render(_view(document) | _drawings(document))


def to_markdown(document: dict[str, Any]) -> str:
    """The same numbers without the charts, for places that show plain text."""
    text = environment(False).get_template("report.md.j2").render(_view(document))
    return re.sub(r"\n{3,}", "\n\n", text)


def _view(document: dict[str, Any]) -> dict[str, Any]:
    """Everything that both pages show, in words and tables."""
    names = [arm["name"] for arm in document["arms"]]
    measured = [(arm["name"], arm["measurements"][-1] if arm["measurements"] else None) for arm in document["arms"]]
    return {
        "document": document,
        "title": f"Report on {names[0]}" if len(names) == 1 else f"Comparison of {named(names)}",
        "summary": summary(document),
        "path_summary": path_summary(document["arms"]),
        "several": sum(len(arm["runs"]) for arm in document["arms"]) > 1,
        "requirements": tables.requirements(document),
        "agreement": tables.agreement(document["requirements"]),
        "results": tables.results(document),
        "differences": tables.differences(document),
        "laws": tables.laws_table("Laws of the residual path at the last measurement", measured),
        "path": tables.path_numbers("The residual path in numbers, at the last measurement", measured),
        "samples": tables.samples(document["arms"]),
        "config_differences": tables.config_differences(document),
        "config_shared": tables.keys("Keys that all arms share", document["configuration"]["shared"]),
        "data": tables.keys("Data", {key: value for key, value in document["data"].items() if key != "attribution"}),
        "environment": tables.keys(
            "Software and hardware of the first run", tables.environment_rows(document["environment"])
        ),
        "commands": tables.commands(document),
        "symbols": SYMBOLS,
    }


def _drawings(document: dict[str, Any]) -> dict[str, Any]:
    def over_depth(*keys: str) -> list[Chart | Omitted]:
        return [charts.over_depth(document, key) for key in keys]

    over_training = [charts.gain_over_training(document, way) for way in ("forward", "backward")]
    gains = over_depth("composite-forward", "composite-backward", "sublayer-forward", "sublayer-backward")
    return {
        "losses": group([charts.loss(document), charts.loss_difference(document), charts.gradient_norm(document)]),
        "gains": group(gains + over_training),
        "collapse": group(over_depth("collapse", "stream-difference")),
        "energies": group(over_depth("energy", "energy-gain", "gradient-energy-gain")),
        "maps": charts.heat_maps(document),
        "colours": [charts.look(index).colour for index in range(len(document["arms"]))],
    }
