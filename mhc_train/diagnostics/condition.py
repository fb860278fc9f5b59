"""Conditions on a measurement, such as `composite_forward_gain>10` or `fail:mass`, for `--fail-on`."""

import functools
import re
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from mhc_train.conditions import AMONG, OPERATOR, OPERATORS, check_name, limit
from mhc_train.diagnostics.measurement import measure
from mhc_train.diagnostics.observation import Backward, Crossing, Observation
from mhc_train.errors import ConfigError

LIMIT = re.compile(
    r"\s*(?P<name>[a-z_0-9]+)(?:\.(?P<statistic>mean|min|median|p99|max))?\s*"
    rf"(?P<op>{OPERATOR})\s*(?P<limit>\S+)\s*"
)
VERDICT = re.compile(r"\s*(?P<grade>warn|fail)(?::(?P<law>[a-z_]+))?\s*")
BETWEEN_STREAMS = frozenset(
    {"difference_gain", "stream_difference", "stream_cosine", "difference_before", "gradient_difference"}
)
"""What has no meaning for one stream, and so is beyond no limit."""
COMPOSITE = "composite_"


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
    """`fail`, `warn`, `fail:LAW`, `warn:LAW`: holds for a law, or any, that is judged so or worse."""

    among: tuple[str, ...]
    law: str | None

    def violations(self, document: dict[str, Any]) -> list[str]:
        """The laws, of the biases alone too."""
        parts = [("", document), ("of the biases alone: ", document.get("biases", {"laws": []}))]
        return [
            f"{where}{law['law']}: {law['verdict']} at {law['worst']}"
            for where, part in parts
            for law in part["laws"]
            if law["verdict"] in self.among and self.law in (None, law["law"])
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
        found = [(entry["name"], entry[key][self.statistic]) for entry in entries if key in entry]
        if not found:
            raise ConfigError(f"--fail-on {self.name}: it was not measured here; {document['basis']} do not have it.")
        if document["streams"] == 1 and key in BETWEEN_STREAMS:
            return []
        return [
            f"{self.name}.{self.statistic} {self.op} {self.limit:g}: it is "
            f"{'not finite' if value is None else f'{value:.6g}'} at {name}"
            for name, value in found
            if value is None or OPERATORS[self.op](value, self.limit)
        ]

    def _entries(self, document: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        if not self.name.startswith(COMPOSITE):
            return document["sublayers"], self.name
        curve = "backward" if self.name == "composite_backward_gain" else "forward"
        return document["composite"][curve], self.name.removeprefix(COMPOSITE)


def parse_condition(text: str) -> Condition:
    """Parse `--fail-on`'s argument.

    Raises:
        ConfigError: it is no condition, or of nothing that there is.
    """
    measured, laws = known()
    if verdict := VERDICT.fullmatch(text):
        if verdict["law"] is not None:
            check_name(text, verdict["law"], laws)
        return Verdicts(AMONG[verdict["grade"]], verdict["law"])
    match = LIMIT.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        bound = limit(match["limit"])
    except ValueError:
        raise ConfigError(
            f"--fail-on {text}: not a condition. Type NAME[.STATISTIC] and a limit in quotes, such as "
            "'composite_forward_gain>10' or 'column_error.p99>1e-3' (statistics are mean, min, median, p99, max); or "
            "fail, or warn, for any law with such a verdict, fail:mass for one."
        ) from None
    check_name(text, match["name"], measured)
    statistic = match["statistic"] or ("max" if match["op"].startswith(">") else "min")
    return Limit(match["name"], statistic, match["op"], bound)


@functools.cache
def known() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every measurement, and every law, that a document can have: those of one in which nothing is missing."""
    n, C = 2, 2
    X, H = torch.ones(1, n, C), torch.eye(n).unsqueeze(0)
    logits, vector = H.flatten(1), torch.ones(1, C)
    back = Backward(X, vector, X, X, logits)
    crossing = Crossing(vector, vector, H, logits, H, X, vector, back)
    document = measure(Observation(["one"], [crossing], "", last=X))
    sublayer, composite = document["sublayers"][0], document["composite"]["forward"][0]
    measured = [key for key, value in sublayer.items() if isinstance(value, dict) and "p99" in value]
    measured += [COMPOSITE + key for key, value in composite.items() if isinstance(value, dict) and "p99" in value]
    return tuple(measured), ("energy", *(law["law"] for law in document["laws"]))
