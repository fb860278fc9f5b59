"""Tables for people: ruled on a terminal, plain aligned columns in a pipe."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_IN_A_PIPE = 200


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, optional: Sequence[str] = ()
) -> list[str]:
    """Print a table on standard output, whose first `left` columns are text and the others numbers.

    Where there is no room, `optional` columns are left out, the first of them first, and then text is wrapped: half a
    number would be a wrong one. A row without cells is an empty line.

    Returns:
        The columns that are left out.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_A_PIPE)
    for count in range(len(optional) + 1):
        shown = [place for place, column in enumerate(columns) if column not in optional[:count]]
        cells = [[row[place] for place in shown] if row else [] for row in rows]
        table = _table(title, [columns[place] for place in shown], cells, sum(place < left for place in shown))
        if console.measure(table).maximum < console.width:
            break
    show(table, console.width)
    return list(optional[:count])


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, title_justify="left", pad_edge=False
    )
    for place, column in enumerate(columns):
        text = place < left
        table.add_column(column, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def show(content: Any, width: int | None = None, wrap: bool = True) -> None:
    """Print what rich can draw on standard output; a reader who has seen enough, such as `head`, is no error."""
    from rich.console import Console

    try:
        Console(width=width, highlight=False).print(content, soft_wrap=not wrap)
    except (BrokenPipeError, SystemExit):  # rich turns the first into the second, with exit code 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"


def count(value: float | None) -> str:
    """A whole number for people, its thousands apart; a dash where there is none."""
    return "-" if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it; `unknown` where there is none."""
    if seconds is None:
        return "unknown"
    for limit, size, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
