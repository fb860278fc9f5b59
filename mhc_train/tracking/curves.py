"""What a service shows of one line of a run's files."""

from typing import Any

Line = dict[str, Any]
Values = dict[str, float]

OF_SUBLAYERS = {
    "forward_gain": "max",
    "backward_gain": "max",
    "column_error": "max",
    "energy_gain": "max",
    "gradient_energy_gain": "max",
    "stream_difference": "median",
    "mixer_drift": "mean",
    "logit_range": "p99",
    "outlier": "max",
}
"""Measurements of which each sublayer has a curve, and the statistic that is shown: `NAME/SUBLAYER`."""


def metrics(line: Line) -> Values:
    """All of a line of metrics.jsonl but its step."""
    return {name: value for name, value in line.items() if name != "step"}


def measurement(line: Line) -> Values:
    """Of a line of measurements.jsonl: what every sublayer does, and the composites."""
    numbers: dict[str, float | None] = {}
    for row in line["sublayers"]:
        for name, statistic in OF_SUBLAYERS.items():
            numbers[f"{name}/{row['name']}"] = row.get(name, {}).get(statistic)
        numbers[f"energy/{row['name']}"] = row.get("energy_out", {}).get("mean")
    for direction in ("forward", "backward"):
        gains = [row[f"{direction}_gain"]["max"] for row in line["composite"][direction]]
        numbers[f"composite/{direction}_gain"] = max(gains, key=lambda gain: float("inf") if gain is None else gain)
    numbers["composite/difference_gain"] = line["composite"]["forward"][-1]["difference_gain"]["median"]
    return {name: number for name, number in numbers.items() if number is not None}


def watched(line: Line) -> Values:
    """Of a line of watch.jsonl: the same, as `watch/NAME`, since it comes from other tokens."""
    return {f"watch/{name}": value for name, value in measurement(line).items()}
