"""The arms of a benchmark: which connections are measured, each with its whole configuration, before any starts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mhc_train.config.compose import compose, groups, parse
from mhc_train.errors import ConfigError
from mhc_train.experiments.arms import arm_names, key_of
from mhc_train.experiments.jobs import check
from mhc_train.schema import Config
from mhc_train.training.device import choose_device

BASELINE = "residual"
USUAL = ("hc", "mhc", "mhc_single_pass")
"""What is measured beside the baseline and the configuration's own connection, where nothing else is asked for."""


@dataclass
class Arm:
    """A connection that is measured, and what is known of it."""

    name: str
    overrides: list[str]
    config: Config | None = None
    """None where there is an `error` from the start."""
    error: str | None = None
    """Why there are no measurements, or no more."""
    operators_error: str | None = None
    """Why the operators were not measured by themselves, where all else was."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What `Measurements.facts` says."""
    turns: list[dict[str, float]] = field(default_factory=list)
    """Of each round, what `Measurements.turn` says."""
    memory: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, Any] = field(default_factory=dict)


def plan(
    overrides: Sequence[str], asked: Sequence[str], every: bool, config_name: str, config_dir: Path | None
) -> list[Arm]:
    """The arms of a benchmark, the baseline first.

    Overrides of `connection.` keys hold for all arms but the baseline.

    Args:
        overrides: of the user's configuration.
        asked: arms, each an option of `conf/connection`, or overrides with spaces between them.
        every: whether all options of `conf/connection` are arms.
        config_name: the primary file.
        config_dir: the user's own directory of groups.

    Raises:
        ConfigError: with all that is wrong with the configuration, or with the arms that were asked for. An arm that
            was not, and does not go with the overrides, is one with an error.
    """
    typed = [_words(text) for text in asked]
    _refuse_sweeps([*overrides, *(word for words in typed for word in words)])
    compose(overrides, config_name, config_dir)
    baseline = [f"connection={BASELINE}", *(text for text in overrides if not _of_connection(text))]
    wanted = [baseline, *(_added(overrides, words) for words in typed)]
    arms = [Arm("", run, config) for run, config in zip(wanted, check(wanted, config_name, config_dir), strict=True)]
    if every or not asked:
        options = groups(config_dir)["connection"] if every else USUAL
        arms += [_option(name, overrides, config_name, config_dir) for name in options if name != BASELINE]
        arms.append(Arm("", list(overrides), compose(overrides, config_name, config_dir)))
    return _named(_distinct(arms))


def check_devices(arms: Sequence[Arm]) -> None:
    """Find out what this machine does not have before any arm starts.

    Raises:
        ConfigError: the device of an arm, or the kernels that the environment asks for.
    """
    for arm in arms:
        if arm.config:
            choose_device(arm.config.train)


def _words(text: str) -> list[str]:
    """An arm's overrides, as it was typed."""
    words = text.split()
    if not words:
        raise ConfigError("--arm: names no arm. Type --arm mhc, or --arm 'mhc connection.streams=8'.")
    return [word if "=" in word else f"connection={word}" for word in words]


def _refuse_sweeps(overrides: Sequence[str]) -> None:
    """As all that is compared here are connections.

    Raises:
        ConfigError: with every override that has several values.
    """
    sweeps = [text for text in overrides if parse(text).is_sweep_override()]
    if sweeps:
        raise ConfigError(
            [f"{text}: several values. Type --arm VALUE for each that is to be measured." for text in sweeps]
        )


def _of_connection(override: str) -> bool:
    return key_of(override).partition(".")[0] == "connection"


def _added(overrides: Sequence[str], words: Sequence[str]) -> list[str]:
    """The user's overrides and an arm's own, which count where both say something."""
    own = {key_of(word) for word in words}
    return [*(text for text in overrides if key_of(text) not in own), *words]


def _option(name: str, overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Arm:
    """An arm that nobody named: one that does not go with the overrides is no mistake of theirs."""
    words = _added(overrides, [f"connection={name}"])
    try:
        return Arm(name, words, compose(words, config_name, config_dir))
    except ConfigError as error:
        return Arm(name, words, error=error.problems[0])


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    """Those whose configurations differ in more than the run's name, in order."""
    found: dict[str, Arm] = {}
    for arm in arms:
        identity = (
            {key: value for key, value in asdict(arm.config).items() if key != "name"} if arm.config else arm.name
        )
        found.setdefault(repr(identity), arm)
    return list(found.values())


def _named(arms: list[Arm]) -> list[Arm]:
    """With the names that a comparison would give them."""
    possible = [arm for arm in arms if arm.config]
    for arm, name in zip(possible, arm_names([arm.config for arm in possible if arm.config]), strict=True):
        arm.name = name
    return arms
