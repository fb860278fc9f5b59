"""What the pages of all reports are made of: tables, groups of charts, and the environment of their templates."""

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mhc_train.report.charts.drawing import Chart, Omitted
from mhc_train.report.words import fenced, markdown_text

TEMPLATES = Path(__file__).parent / "templates"
SCRIPT = (TEMPLATES / "charts.js").read_text()
"""The one script of a page, which reads its charts out."""


@dataclass(frozen=True)
class Cell:
    """A table cell: what it says, in smaller type what supports it, and a state that gives it a colour."""

    text: str
    detail: str = ""
    state: str = ""


@dataclass(frozen=True)
class Table:
    """A table with row headers, for both page templates."""

    caption: str
    columns: list[str]
    rows: list[tuple[Cell, list[Cell]]]
    arms: bool = False
    """Whether the columns are the arms, which have colours."""
    details: list[str] = field(default_factory=list)
    """What explains each column in smaller type, where anything does."""
    across: bool = False
    """Whether the rows are the arms, because they are too many for columns."""
    stacked: bool = False
    """Whether a narrow screen shows the cells of a row below each other, each after its column's name."""


@dataclass(frozen=True)
class Group:
    """Charts that are read together, and those that were left out."""

    drawn: list[Chart] = field(default_factory=list)
    omitted: list[Omitted] = field(default_factory=list)


def group(drawings: list[Chart | Omitted]) -> Group:
    """Drawn charts and omitted ones, apart."""
    return Group(
        [drawing for drawing in drawings if isinstance(drawing, Chart)],
        [drawing for drawing in drawings if isinstance(drawing, Omitted)],
    )


def _integrity(script: str) -> str:
    """What a page's policy allows the script by: that and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def environment(escape: bool) -> Environment:
    """Where templates are found, and what they can do; `escape` for HTML."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.globals |= {"script": Markup(SCRIPT), "script_hash": _integrity(SCRIPT)}
    made.filters |= {"md": markdown_text, "fence": fenced, "svg": Markup}
    return made
