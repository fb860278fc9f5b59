"""Conditions on a comparison, such as `mhc.val_loss > residual.val_loss` or `mhc.fail:mass`, for `--fail-on`."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mhc_train.conditions import AMONG, OPERATOR, OPERATORS, check_name, limit
from mhc_train.errors import ConfigError
from mhc_train.report.readings import worst_gain
from mhc_train.report.words import Number

Document = dict[str, Any]
TIMED = ("tokens_per_second", "relative_step_time", "seconds")
"""Metrics that say nothing where runs shared the machine."""
TESTED = ("val_loss",)
"""Metrics whose differences between arms have a verdict."""
NOT_COMPARABLE = re.compile(r"\s*not[- ]comparable\s*")
VERDICT = re.compile(r"\s*(?:(?P<arm>.+)\.)?(?P<grade>warn|fail)(?::(?P<law>[a-z_]+))?\s*")
RELATION = re.compile(rf"\s*(?P<shown>shown:)?(?P<left>[^<>]+)(?P<op>{OPERATOR})(?P<right>[^<>]+)")
# Names of arms may hold dots, as in "mhc lr=0.001": the last one stands before the metric.
TERM = re.compile(r"\s*(?:(?P<factor>[\d.]+(?:e[+-]?\d+)?)\s*\*)?\s*(?P<arm>.+)\.(?P<metric>\w+)\s*", re.IGNORECASE)


class ComparisonCondition(Protocol):
    """Something that a comparison's document can violate."""

    def violations(self, document: Document) -> list[str]:
        """Every place of the document where it holds, in words; empty if it holds nowhere.

        Raises:
            ConfigError: the document has nothing that it could hold for.
        """


def _logged(key: str) -> Callable[[Document], Number]:
    return lambda arm: arm.get(key)


def _gain(way: str) -> Callable[[Document], Number]:
    return lambda arm: worst_gain(arm, way)


METRICS: dict[str, Callable[[Document], Number]] = {
    **{
        key: _logged(key)
        for key in (
            "val_loss", "val_bpb", "train_loss", "tokens_per_second", "relative_step_time", "peak_memory", "params",
            "flops_per_token", "seconds", "skipped",
        )
    },
    "forward_gain": _gain("forward"),
    "backward_gain": _gain("backward"),
    "failed": lambda arm: len(arm.get("failed", [])),
}  # fmt: skip
"""Numbers of an arm that can be compared. Over its finished runs, losses are means, speeds and times medians, memory
and gains the largest (gains of the composite at the last measurement, over depth and tokens), `skipped` is the sum;
`failed` counts the runs that did not finish."""


@dataclass(frozen=True)
class NotComparable:
    """`not comparable`: holds if the runs differ in more than what was to be compared."""

    def violations(self, document: Document) -> list[str]:
        """The reasons."""
        return [f"not comparable: {reason}" for reason in document["reasons"]]


@dataclass(frozen=True)
class Verdicts:
    """`[ARM.]fail[:LAW]`, `[ARM.]warn[:LAW]`: holds for a law, or any, that is judged so or worse, of an arm or any."""

    text: str
    arm: str | None
    among: tuple[str, ...]
    law: str | None

    def violations(self, document: Document) -> list[str]:
        """The laws by arm. An arm of which nothing was measured keeps none, as far as anyone knows."""
        arms = document["arms"] if self.arm is None else [_arm(document, self.arm, self.text)]
        judged = {row["law"] for arm in document["arms"] for row in arm["laws"]}
        if self.law is not None and judged:
            check_name(self.text, self.law, sorted(judged))
        return [found for arm in arms for found in self._of(arm)]

    def _of(self, arm: Document) -> list[str]:
        if not arm["laws"]:
            return [f"{self.text}: no law of {arm['name']} was judged, since nothing was measured"]
        return [
            f"{arm['name']}: {row['law']}: {row['verdict']} at {row['worst']}"
            for row in arm["laws"]
            if row["verdict"] in self.among and self.law in (None, row["law"])
        ]


@dataclass(frozen=True)
class Term:
    """`[FACTOR*]ARM.METRIC`."""

    factor: float
    arm: str
    metric: str

    def value(self, document: Document, condition: str) -> Number:
        """The number; None where there is none that is finite."""
        found = METRICS[self.metric](_arm(document, self.arm, condition))
        if self.metric in TIMED and document["concurrent"] > 1:
            return None
        return None if found is None or not math.isfinite(found) else self.factor * found


@dataclass(frozen=True)
class Relation:
    """`TERM OP TERM` or `TERM OP NUMBER`, of the arms' numbers as they are; `METRICS` says how seeds are summed up."""

    text: str
    left: Term
    op: str
    right: Term | float

    def violations(self, document: Document) -> list[str]:
        """What the two sides are. A number that there is not, is beyond every limit."""
        sides = {side: side.value(document, self.text) for side in (self.left, self.right) if isinstance(side, Term)}
        unknown = [f"{side.arm}.{side.metric}" for side, value in sides.items() if value is None]
        if unknown:
            why = "not finite, not logged, every run of the arm failed, or it is of speed and runs shared the machine"
            return [f"{self.text}: {' and '.join(unknown)} not known: {why}"]
        left, right = (sides[side] if isinstance(side, Term) else side for side in (self.left, self.right))
        assert left is not None and right is not None
        return [f"{self.text}: {left:.6g} {self.op} {right:.6g}"] if OPERATORS[self.op](left, right) else []


@dataclass(frozen=True)
class Shown:
    """`shown: ARM.METRIC > ARM.METRIC`: holds if the statistics over seeds show it, not the means alone."""

    text: str
    higher: str
    lower: str
    metric: str

    def violations(self, document: Document) -> list[str]:
        """The difference that is shown."""
        for name in (self.higher, self.lower):
            _arm(document, name, self.text)
        # A row is of b against a, in whichever order the arms came.
        shown = {(self.lower, self.higher): "higher", (self.higher, self.lower): "lower"}
        return [
            f"{self.text}: {row['b']} is {row['verdict']} than {row['a']}, by {abs(row['mean']):.6g} in the mean"
            for row in document["differences"]
            if row["metric"] == self.metric and row["verdict"] == shown.get((row["a"], row["b"]))
        ]


def parse_comparison(text: str) -> ComparisonCondition:
    """Parse `--fail-on`'s argument for a comparison; names of arms are looked up when there is one.

    Raises:
        ConfigError: it is no condition, or of a metric that there is not.
    """
    if NOT_COMPARABLE.fullmatch(text):
        return NotComparable()
    if verdict := VERDICT.fullmatch(text):
        return Verdicts(text, verdict["arm"], AMONG[verdict["grade"]], verdict["law"])
    match = RELATION.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        left, op, right = _term(match["left"]), match["op"], _side(match["right"])
    except ValueError:
        raise ConfigError(
            f"--fail-on {text}: not a condition. Type two numbers of arms, or one and a limit, in quotes: "
            "'mhc.val_loss > residual.val_loss', 'mhc.peak_memory > 1.25*residual.peak_memory', 'hc.forward_gain > "
            "10'; 'shown: mhc.val_loss > residual.val_loss', for what the seeds show; fail or warn, for any law with "
            "such a verdict, mhc.fail:mass for one of an arm; or 'not comparable'."
        ) from None
    for side in (left, right):
        if isinstance(side, Term):
            check_name(text, side.metric, METRICS)
    return _shown(text, left, op, right) if match["shown"] else Relation(text, left, op, right)


def _term(text: str) -> Term:
    match = TERM.fullmatch(text)
    if match is None:
        raise ValueError
    return Term(limit(match["factor"] or "1"), match["arm"].strip(), match["metric"])


def _side(text: str) -> Term | float:
    try:
        return limit(text)
    except ValueError:
        return _term(text)


def _shown(text: str, left: Term, op: str, right: Term | float) -> Shown:
    if (
        not isinstance(right, Term)
        or left.metric != right.metric
        or left.metric not in TESTED
        or left.arm == right.arm
        or (left.factor, right.factor) != (1, 1)
        or op not in ("<", ">")
    ):
        raise ConfigError(
            f"--fail-on {text}: seeds can show that {' or '.join(TESTED)} of one arm is higher or lower than "
            "another's. Type 'shown: mhc.val_loss > residual.val_loss', with arms of yours."
        )
    higher, lower = (left, right) if op == ">" else (right, left)
    return Shown(text, higher.arm, lower.arm, left.metric)


def _arm(document: Document, name: str, condition: str) -> Document:
    arms = {arm["name"]: arm for arm in document["arms"]}
    check_name(condition, name, arms)
    return arms[name]
