"""What every kind of `--fail-on` condition is made of: operators, limits, and names that there are."""

import difflib
import math
import operator
from collections.abc import Callable, Iterable

from mhc_train.errors import ConfigError

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
OPERATOR = "|".join(OPERATORS)
"""The same in a regular expression, longer ones first."""
AMONG = {"warn": ("warn", "fail"), "fail": ("fail",)}
"""The verdicts that are as bad as a word asks for, or worse."""


def limit(text: str) -> float:
    """A number that can be compared with.

    Raises:
        ValueError: it is none, or not finite.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def check_name(condition: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is none of `names`.

    Raises:
        ConfigError: with the nearest, and all that there are.
    """
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"--fail-on {condition}: there is no {name}; {hint}There are {', '.join(names)}.")
