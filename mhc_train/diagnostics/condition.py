"""Conditions on a measurement, such as `composite_forward_gain>10` or `fail`, for `--fail-on`."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mhc_train.errors import ConfigError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
PATTERN = re.compile(
    r"\s*(?P<name>[a-z_0-9]+)(?:\.(?P<statistic>mean|min|median|p99|max))?\s*(?P<op>>=|<=|>|<)\s*(?P<limit>\S+)\s*"
)
BETWEEN_STREAMS = frozenset(
    {"difference_gain", "stream_difference", "stream_cosine", "difference_before", "gradient_difference"}
)
"""What has no meaning for one stream, and so is beyond no limit."""
VERDICTS = {"warn": ("warn", "fail"), "fail": ("fail",)}


@runtime_checkable
class Condition(Protocol):
    """Something that a measurement document can violate."""

    def violations(self, document: dict[str, Any]) -> list[str]:
        """Every place of the document where it holds, in words; empty if it holds nowhere.

        Raises:
            ConfigError: the document has nothing that it could hold for.
        """


@dataclass(frozen=True)
class Verdicts:
    """`warn` or `fail`: holds for every law that is judged so, or worse."""

    among: tuple[str, ...]

    def violations(self, document: dict[str, Any]) -> list[str]:
        """The laws, of the biases alone too."""
        parts = [("", document), ("of the biases alone: ", document.get("biases", {"laws": []}))]
        return [
            f"{where}{law['law']}: {law['verdict']} at {law['worst']}"
            for where, part in parts
            for law in part["laws"]
            if law["verdict"] in self.among
        ]


@dataclass(frozen=True)
class Limit:
    """`NAME[.STATISTIC] OP NUMBER`: holds if any sublayer (or any composite of the curve) satisfies it.

    NAME is a measurement of the sublayers, or `composite_` and one of the composites: of the backward curve for
    `composite_backward_gain`, of the forward curve for all others. Without a STATISTIC the extreme token counts:
    the largest for > and >=, the smallest for < and <=.
    """

    name: str
    statistic: str
    op: str
    limit: float

    def violations(self, document: dict[str, Any]) -> list[str]:
        """The sublayers or composites. A number that is not finite is null in a document, and beyond every limit."""
        entries, key = self._entries(document)
        found = [(entry["name"], entry[key][self.statistic]) for entry in entries if _is_measured(entry.get(key))]
        if not found:
            known = sorted({name for entry in entries for name, value in entry.items() if _is_measured(value)})
            raise ConfigError(
                f"--fail-on {self.name}: no such measurement here. There are {', '.join(known)}; and of composites, "
                "such as composite_forward_gain, those that are measured of a single map."
            )
        if document["streams"] == 1 and key in BETWEEN_STREAMS:
            return []
        return [
            f"{self.name}.{self.statistic} = {value} at {name}"
            for name, value in found
            if value is None or OPERATORS[self.op](value, self.limit)
        ]

    def _entries(self, document: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        if not self.name.startswith("composite_"):
            return document["sublayers"], self.name
        curve = "backward" if self.name == "composite_backward_gain" else "forward"
        return document["composite"][curve], self.name.removeprefix("composite_")


def _is_measured(value: object) -> bool:
    return isinstance(value, dict) and "p99" in value


def parse_condition(text: str) -> Condition:
    """Parse `--fail-on`'s argument.

    Raises:
        ConfigError: it is no condition.
    """
    if text.strip() in VERDICTS:
        return Verdicts(VERDICTS[text.strip()])
    match = PATTERN.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        limit = float(match["limit"])
    except ValueError:
        raise ConfigError(
            f"--fail-on {text}: not a condition. Type NAME[.STATISTIC] and a limit in quotes, such as "
            "'composite_forward_gain>10' or 'column_error.p99>1e-3' (statistics are mean, min, median, p99, max); or "
            "fail, or warn, for any law with such a verdict."
        ) from None
    statistic = match["statistic"] or ("max" if match["op"].startswith(">") else "min")
    return Limit(match["name"], statistic, match["op"], limit)
