"""`--fail-on` of a comparison: looked through before anything is trained, and held against the document at the end."""

from collections.abc import Iterable, Sequence
from typing import Any

from mhc_train.conditions import check_name
from mhc_train.diagnostics.condition import known
from mhc_train.errors import VerdictError
from mhc_train.report import condition
from mhc_train.report.condition import ComparisonCondition, Relation, Shown, Term, Verdicts


def check_conditions(texts: Iterable[str], arms: Sequence[str]) -> None:
    """Refuse what is no condition, or is of an arm or a law that there will not be: a mistyped one may cost hours.

    Raises:
        ConfigError: with the nearest name, and all that there are.
    """
    for text in texts:
        parsed = condition.parse_comparison(text)
        for name in _arms_of(parsed):
            check_name(text, name, arms)
        if isinstance(parsed, Verdicts) and parsed.law is not None:
            check_name(text, parsed.law, known()[1])


def _arms_of(parsed: ComparisonCondition) -> list[str]:
    match parsed:
        case Verdicts(arm=str(arm)):
            return [arm]
        case Relation(left=left, right=right):
            return [side.arm for side in (left, right) if isinstance(side, Term)]
        case Shown(higher=higher, lower=lower):
            return [higher, lower]
    return []


def raise_if_held(texts: Iterable[str], document: dict[str, Any]) -> None:
    """Say which conditions hold of a comparison's document, and where.

    Raises:
        VerdictError: one does.
    """
    if found := [place for text in texts for place in condition.parse_comparison(text).violations(document)]:
        raise VerdictError("\n".join(found))
