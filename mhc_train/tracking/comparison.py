"""Sends a comparison to the tracker."""

from pathlib import Path
from typing import Any

from mhc_train.runs import Run


def send_comparison(comparison: Run, document: dict[str, Any], directory: Path) -> None:
    """Nothing is sent."""
