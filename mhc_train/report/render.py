"""Writes a comparison as report.html, report.md, report.json and two tables, all from the document of `compare_runs`.

Nothing is computed here that a reader could not compute from the run files, and no date or random number goes in: the
same runs give the same bytes.
"""

import json
import re
from pathlib import Path
from typing import Any

from mhc_train.files import write_text
from mhc_train.report import charts, tables
from mhc_train.report.charts import Chart, Omitted
from mhc_train.report.charts.depth import PAPER_CHARTS
from mhc_train.report.flat import curves_csv, layers_csv
from mhc_train.report.page import environment, group
from mhc_train.report.readings import Document, prominent
from mhc_train.report.summary import at_equal_budgets, crossings, path_summary, summary
from mhc_train.report.words import SYMBOLS, named


def write_report(document: Document, directory: Path) -> Path:
    """Write report.html, .md and .json, curves.csv and layers.csv into `directory`; returns the path of the HTML page.

    `docs/report.schema.json` describes the document.

    Raises:
        StorageError: a file cannot be written.
    """
    # All are made before any is written: nothing is left half done where one cannot be made.
    files = {
        # One line: indented, every number of a curve would have a line of its own.
        "report.json": json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n",
        "curves.csv": curves_csv(document),
        "layers.csv": layers_csv(document),
        "report.md": to_markdown(document),
        "report.html": to_html(document),
    }
    for name, text in files.items():
        write_text(directory / name, text)
    return directory / "report.html"


def to_html(document: Document) -> str:
    """One self-contained page: nothing loaded from anywhere, and whole where its script does not run."""
    return environment(True).get_template("report.html.j2").render(_view(document) | _drawings(document))


def to_markdown(document: Document) -> str:
    """The same numbers without the charts, for places that show plain text."""
    view = _view(document)
    view["scorecard"] = view["scorecard"] and tables.brief(view["scorecard"])
    view["at_equal_budgets"] = at_equal_budgets(document)
    text = environment(False).get_template("report.md.j2").render(view)
    return re.sub(r"\n{3,}", "\n\n", text)


def _view(document: Document) -> dict[str, Any]:
    """Everything that both pages show, in words and tables."""
    arms = document["arms"]
    names = [arm["name"] for arm in arms]
    return {
        "document": document,
        "title": f"Report on {names[0]}" if len(names) == 1 else f"Comparison of {named(names)}",
        "summary": summary(document),
        "path_summary": path_summary(document),
        "several": sum(len(arm["runs"]) for arm in arms) > 1,
        "in_background": len(arms) - len(prominent(document)),
        "requirements": tables.requirements(document),
        "agreement": tables.agreement(document),
        "unfinished": tables.unfinished(document),
        "tuning": tables.tuning(document),
        "costs": tables.costs(document),
        "results": tables.results(document),
        "differences": tables.differences(document, "reference"),
        "others": tables.differences(document, "others"),
        "budgets": tables.budgets(document),
        "crossings": crossings(document),
        "scorecard": tables.scorecard(document),
        "path": tables.path_numbers(
            "The residual path in numbers, at the last measurement", [(arm["name"], arm["last"]) for arm in arms]
        ),
        "stability": tables.stability(document),
        "samples": tables.samples([arms[index] for index in sorted(prominent(document))]),
        "config_differences": tables.config_differences(document),
        "config_shared": tables.keys("Keys that all arms share", document["configuration"]["shared"]),
        "data": tables.keys("Data", {key: value for key, value in document["data"].items() if key != "attribution"}),
        "environment": tables.keys(
            "Software and hardware of the first run", tables.environment_rows(document["environment"])
        ),
        "commands": tables.commands(document),
        "report_command": tables.report_command(document),
        "untold": tables.untold(document),
        "symbols": SYMBOLS,
    }


def _drawings(document: Document) -> dict[str, Any]:
    def over_depth(*keys: str) -> list[Chart | Omitted]:
        return [charts.over_depth(document, key) for key in keys]

    return {
        "losses": group([charts.loss(document), charts.loss_difference(document), charts.gradient_norm(document)]),
        "courses": group([charts.over_training(document, key) for key in charts.COURSES]),
        "gains": group(over_depth(*PAPER_CHARTS)),
        "collapse": group(over_depth("collapse", "stream-difference")),
        "energies": group(over_depth("energy", "energy-gain", "gradient-energy-gain")),
        "ledgers": group(over_depth(*charts.LEDGER_CHARTS)),
        "maps": charts.heat_maps(document),
        "colours": [style.colour for style in charts.looks(document)],
    }
