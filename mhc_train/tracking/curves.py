"""What a service shows of one line of a run's files."""

from typing import Any

Values = dict[str, float]


def metrics(line: dict[str, Any]) -> Values:
    """All of a line of metrics.jsonl but its step."""
    return {name: value for name, value in line.items() if name != "step"}


def measurement(line: dict[str, Any]) -> Values:
    """Of a line of measurements.jsonl: gain and energy of every sublayer, and the composites."""
    numbers: dict[str, float | None] = {}
    for row in line["sublayers"]:
        for measure_name in ("forward_gain", "backward_gain", "energy_gain", "gradient_energy_gain"):
            numbers[f"{measure_name}/{row['name']}"] = row[measure_name]["max"]
        numbers[f"energy/{row['name']}"] = row["energy_out"]["mean"]
    for direction in ("forward", "backward"):
        gains = [row[f"{direction}_gain"]["max"] for row in line["composite"][direction]]
        numbers[f"composite/{direction}_gain"] = max(gains, key=lambda gain: float("inf") if gain is None else gain)
    numbers["composite/difference_gain"] = line["composite"]["forward"][-1]["difference_gain"]["median"]
    return {name: number for name, number in numbers.items() if number is not None}
