"""Tables for people: ruled on a terminal, plain aligned columns in a pipe."""

import sys
from collections.abc import Sequence

WIDTH_IN_A_PIPE = 200


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table on standard output, whose first `left` columns are text and the others numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    terminal = sys.stdout.isatty()
    table = Table(title=title, box=box.SIMPLE_HEAD if terminal else None, title_justify="left", pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if terminal else WIDTH_IN_A_PIPE).print(table)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"
