"""Which family a checkpoint belongs to: by the names of its tensors, its config.json, and what the user says."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.foreign.families import FAMILIES, Family, head_parts
from mhc_train.foreign.tensors import TensorFiles

LOOKS_LIKE = re.compile(r"(?:^|[._])i?m?hc(?:[._]|$)|hyper_?connection|mapping_proj", re.IGNORECASE)
"""What other code bases call such tensors."""
SHOWN = 12
MOST = 10_000
"""Layers, streams or rounds: more than any model has, and few enough to be gone through."""
WIDEST = 10_000_000
"""Channels, likewise."""


def settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def number(source: str, key: str, value: Any, least: int, most: int) -> int | float:
    """A value of config.json, if it is a number between these.

    Raises:
        CheckpointError: it is none; `source` is where the config.json lies.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise CheckpointError(f"{source}/config.json: {key} = {value!r} is not a number from {least} to {most}.")
    return value


def count(source: str, key: str, value: Any, most: int = MOST) -> int:
    """A value of config.json, if it is a whole number from one on.

    Raises:
        CheckpointError: it is none; `source` is where the config.json lies.
    """
    found = number(source, key, value, 1, most)
    if found % 1:
        raise CheckpointError(f"{source}/config.json: {key} = {value!r} is not a whole number.")
    return int(found)


def lookalikes(names: Iterable[str]) -> list[str]:
    """Tensors whose names say that they belong to hyper-connections."""
    return sorted(name for name in names if LOOKS_LIKE.search(name))


def recognise(files: TensorFiles, config: Mapping[str, Any], wanted: str | None) -> Family:
    """The family that is `wanted`, or the only one that name, model type and shapes allow.

    Raises:
        CheckpointError: there are no hyper-connections, none of the wanted family, or config.json makes no sense.
        ConfigError: there is no such family, or it has to be said which.
    """
    if wanted is not None and wanted not in FAMILIES:
        raise ConfigError(f"there is no family {wanted}; there are {', '.join(FAMILIES)}")
    named = [family for family in FAMILIES.values() if family.sites(files.places, files.store.name)]
    if wanted is not None:
        if FAMILIES[wanted] not in named:
            raise CheckpointError(f"{files.store.name} has no hyper-connections of {wanted}. {found(files, config)}")
        return FAMILIES[wanted]
    if not named and not lookalikes(files.places):
        raise CheckpointError(
            f"{files.store.name}: none of its {len(files.places)} tensors belongs to hyper-connections "
            f"(model_type {_type(config)})."
        )
    possible = _of_type([family for family in named if _fits(family, files, config)], _types(files, config))
    if len(possible) != 1:
        raise ConfigError(_undecided(files, config, possible or named))
    return possible[0]


def found(files: TensorFiles, config: Mapping[str, Any]) -> str:
    """What there is, and what is known, for a message."""
    names = lookalikes(files.places)
    shown = [f"{name} {list(entry.shape)}" for name, entry in files.entries(names[:SHOWN]).items()]
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"Found: model_type {_type(config)}; tensors {', '.join(shown) or 'of no such name'}{rest}. "
        f"Families that are known: {', '.join(FAMILIES)}."
    )


def _undecided(files: TensorFiles, config: Mapping[str, Any], possible: list[Family]) -> str:
    choice = " or ".join(f"--family {family.name}" for family in possible)
    advice = (
        f"If its maps are computed as one of these does, say so: {choice}."
        if possible
        else "None of them has tensors of these names."
    )
    return f"{files.store.name}: whose hyper-connections these are is not certain. {found(files, config)} {advice}"


def _types(files: TensorFiles, config: Mapping[str, Any]) -> set[str]:
    """What config.json calls the model, and the language model in it."""
    given = [part["model_type"] for part in (config, settings(config)) if part.get("model_type") is not None]
    for name in given:
        if not isinstance(name, str):
            raise CheckpointError(f"{files.store.name}/config.json: model_type = {name!r} is no name.")
    return set(given)


def _of_type(families: list[Family], types: set[str]) -> list[Family]:
    """Those whose models are called so; where nothing or something else is said, those that names alone tell."""
    exactly = [family for family in families if types & set(family.model_types)]
    return exactly or [family for family in families if not (types and family.model_types)]


def _type(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type", "not given"))


def _fits(family: Family, files: TensorFiles, config: Mapping[str, Any]) -> bool:
    """Whether it has a read-out where the family has one, and projections of the family's shape."""
    sites = family.sites(files.places, files.store.name)
    name = next(iter(sites.values()))[family.projection]
    logits, inputs = family.logits_and_inputs(files.entries([name])[name].shape)
    n, width = streams_and_width(family, logits, inputs, config, files.store.name)
    gated = bool(head_parts(files.places, files.store.name))
    return family.streams_of(logits) == n and n * width == inputs and gated == (family.read_out == "gated")


def streams_and_width(
    family: Family, logits: int, inputs: int, config: Mapping[str, Any], source: str
) -> tuple[int, int]:
    """n and C as config.json has them, or else as the family's rule gives them; zero where neither does."""
    known = settings(config)
    given = known.get(family.streams_key) if family.streams_key else None
    n = family.streams_of(logits) or 0 if given is None else count(source, str(family.streams_key), given)
    width = known.get("hidden_size")
    if width is None:
        return n, inputs // n if n else 0
    return n, count(source, "hidden_size", width, WIDEST)
