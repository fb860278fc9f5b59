"""The sources of a configuration: one, or a mixture of several, each with its share of the tokens."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mhc_train.schema import MIXTURE_KEYS, DataConfig


@dataclass(frozen=True)
class Component:
    """One source and its share."""

    config: DataConfig
    share: float
    """Of the tokens, among all sources."""


def components(config: DataConfig) -> list[Component]:
    """The sources of a configuration, in the order of their names."""
    if config.source != "mixture":
        return [Component(config, 1.0)]
    total = sum(float(own["weight"]) for own in config.mixture.values())
    return [Component(_alone(config, own), float(own["weight"]) / total) for _, own in sorted(config.mixture.items())]


def settled(config: DataConfig, settle: Callable[[DataConfig], DataConfig]) -> DataConfig:
    """The configuration with `settle` applied to every source of it."""
    if config.source != "mixture":
        return settle(config)
    return dataclasses.replace(
        config, mixture={name: own | _own(settle(_alone(config, own)), own) for name, own in config.mixture.items()}
    )


def _alone(config: DataConfig, own: dict[str, Any]) -> DataConfig:
    """One source's configuration: nothing of it is left to the mixture but the usual column."""
    default = DataConfig(column=config.column)
    return dataclasses.replace(config, mixture={}, **{key: own.get(key, getattr(default, key)) for key in MIXTURE_KEYS})


def _own(config: DataConfig, own: dict[str, Any]) -> dict[str, Any]:
    """What a settled source says for itself."""
    default = DataConfig(column=config.column)
    said = {key: getattr(config, key) for key in MIXTURE_KEYS}
    return {key: value for key, value in said.items() if key in own or value != getattr(default, key)}
