"""What the reports read off a measurement's document in more than one place."""

from typing import Any

from mhc_train.report.words import Number


def largest(entries: list[dict[str, Any]], measure: str) -> Number:
    """The largest value over entries and tokens; None where one is not finite, since that is the largest."""
    values = [entry[measure]["max"] for entry in entries]
    return None if None in values else max(values)
