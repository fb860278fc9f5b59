"""Conditions on a comparison, for `compare --fail-on`."""

from typing import Any, NoReturn, Protocol

from mhc_train.errors import ConfigError


class Condition(Protocol):
    """Something that a comparison can violate."""

    def violations(self, document: dict[str, Any]) -> list[str]:
        """Every place of the document where it holds, in words."""


def parse_comparison(text: str) -> Condition | NoReturn:
    """Parse the argument of `--fail-on`.

    Raises:
        ConfigError: it is no condition.
    """
    raise ConfigError(f"--fail-on {text}: not a condition.")
