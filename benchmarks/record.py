"""Where benchmarks leave their figures: JSON for programs, Markdown fragments for the documentation."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
RESULTS = BENCHMARKS / "results"
FIGURES = BENCHMARKS.parent / "docs" / "figures"


def significant(value: float) -> float:
    """Four digits: fewer than another CPU's rounding would change, more than anyone reads."""
    return float(f"{value:.4g}")


def write_json(name: str, document: Any, folder: Path = RESULTS) -> None:
    """Leave a document in `benchmarks/results/`, or elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_table(name: str, intro: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Leave a sentence and a table in `docs/figures/`."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    FIGURES.mkdir(parents=True, exist_ok=True)
    (FIGURES / f"{name}.md").write_text("\n".join([intro, "", *lines]) + "\n")
