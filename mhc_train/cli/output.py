"""What commands print on standard output: one JSON document, or a table for people."""

import json
import os
import sys
from typing import Any

from mhc_train.tables import count, duration, number, print_table

__all__ = ["count", "duration", "number", "print_json", "print_table"]


def print_json(document: Any) -> None:
    """The one document of `--json`."""
    try:
        print(json.dumps(document, indent=2, allow_nan=False), flush=True)
    except BrokenPipeError:  # the reader has seen enough; that is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
