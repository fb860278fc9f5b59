"""From what was typed to one typed configuration: Hydra composes, the schema checks, all problems come at once."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mhc_train.config.validate import validate
from mhc_train.errors import ConfigError
from mhc_train.schema import Config, key_names


def config_directory() -> Path:
    """The packaged configuration groups: inside an installed wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose(overrides: Sequence[str] = (), config_name: str = "config", config_dir: Path | None = None) -> Config:
    """Compose and check a configuration.

    Args:
        overrides: what follows the command, in Hydra's override grammar (no sweeps).
        config_name: the primary file, without `.yaml`.
        config_dir: a directory of the user's own groups and files, searched beside the packaged ones.

    Raises:
        ConfigError: with every problem found, each naming the key and what to type instead.
    """
    problems: list[str] = []
    usable = [text for override in overrides if (text := _usable(override, config_dir, problems))]
    try:
        composed = _hydra(usable, config_name, config_dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, _explain(error)]) from error
    config = _typed(composed, problems)
    problems += map(str, validate(config))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return config


OPEN = ("connection.options.", "data.mixture.")
"""Keys under these are of any name: a mixer's own, the sources of a mixture."""

# What may differ between a run and its continuation: how long, how often, where; never what is learnt from what.
RESUMABLE = (
    "train.steps", "train.eval_every", "train.save_every", "train.log_every", "train.keep_checkpoints",
    "train.keep_every", "train.async_save", "train.on_save_error", "train.on_nonfinite", "train.skip_limit",
    "train.divergence", "train.time_limit", "train.time_margin", "train.parallel", "train.shard_size",
    "train.sample_tokens", "train.device", "train.threads", "train.micro_batch", "train.compile", "train.recompute",
    "diagnostics.every", "diagnostics.tokens", "diagnostics.watch_every", "diagnostics.watch_tokens",
    "data.cache_dir", "data.workers", "data.retries", "data.prepared",
    "data.path", "data.on_error", "tracker.kind", "tracker.mode", "tracker.project",
    "tracker.timeout",
)  # fmt: skip
"""`data.path` too, and every `data.mixture.NAME.path`: text may be moved, but the data position refuses other text."""


def amend(config: Config, overrides: Sequence[str]) -> Config:
    """A run's own configuration with the few changes that a continuation may make.

    Raises:
        ConfigError: an override changes something else, or makes no sense.
    """
    problems: list[str] = []
    document = OmegaConf.create(dataclasses.asdict(config))
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if _may_change(key):
            OmegaConf.update(document, key, override.value())
        else:
            problems += _differences(document, text)
    if problems:
        problems.append(f"What can change on --resume: {', '.join(RESUMABLE)}.")
    amended = _typed(document, problems)
    problems += map(str, validate(amended))
    if problems:
        raise ConfigError(problems)
    return amended


def _may_change(key: str) -> bool:
    return key in RESUMABLE or (key.startswith("data.mixture.") and key.endswith(".path"))


def _differences(document: DictConfig, text: str) -> list[str]:
    """What an override would change that cannot be; nothing where the run has that value."""
    override = parse(text)
    known = OmegaConf.select(document, override.key_or_group, default=None)
    if known is None or isinstance(known, DictConfig):  # a group, or no key at all
        return [
            f"{text}: cannot be given with --resume PATH, which takes the run's own configuration; with --resume auto "
            "it can."
        ]
    if known == override.value():
        return []
    return [f"{text}: cannot change on --resume; the run has {known}."]


def fingerprint(config: Config) -> str:
    """A hash of all that may not change on --resume: equal for runs of which one can go on with the other's work."""
    # Where runs lie is no part of what they are: they may be moved, and a relative path is as good as an absolute one.
    kept = {key: value for key, value in _flat(config).items() if not _may_change(key) and key != "runs_dir"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def carried_over(run: Config, asked: Config) -> Config:
    """A run's own configuration, with what may change on --resume as it is asked for now."""
    document = OmegaConf.create(dataclasses.asdict(run))
    for key, value in _flat(asked).items():
        if _may_change(key):
            OmegaConf.update(document, key, value)
    return from_dict(OmegaConf.to_container(document))  # type: ignore[arg-type]


def _flat(config: Config) -> dict[str, Any]:
    """Every value by its dotted key."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, part in value.items():
                walk(f"{prefix}.{key}" if prefix else key, part)
        else:
            found[prefix] = value

    walk("", dataclasses.asdict(config))
    return found


def from_dict(document: dict[str, Any]) -> Config:
    """A typed configuration from a plain document, such as the one that a checkpoint carries."""
    problems: list[str] = []
    config = _typed(OmegaConf.create(document), problems)
    if problems:
        raise ConfigError(problems)
    return config


def to_yaml(config: Config) -> str:
    """The whole resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Every configuration group and its options, the user's own directory included."""
    found: dict[str, list[str]] = {}
    for root in filter(None, (config_directory(), config_dir)):
        for file in sorted(root.glob("*/*.yaml")):
            found.setdefault(file.parent.name, []).append(file.stem)
    return found


def parse(override: str) -> Override:
    """Parse one override; a syntax error is a `ConfigError` that shows it."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError(
            f"{override}: not an override ({error}). Type KEY=VALUE, quoted if it holds spaces."
        ) from error


def _usable(text: str, config_dir: Path | None, problems: list[str]) -> str | None:
    """The override as Hydra should see it, or None with the problem noted."""
    try:
        override = parse(text)
    except ConfigError as error:
        problems += error.problems
        return None
    key, options = override.key_or_group, groups(config_dir).get(override.key_or_group)
    if override.is_sweep_override():
        problems.append(f"{text}: a sweep is several runs. Type `mhc-train fit -m` to train them all, or one value.")
    elif options is not None:
        return _usable_group(text, key, override.value(), options, problems)
    elif key not in _allowed_keys() and not key.startswith(OPEN):
        problems.append(f"{text}: no such key. {nearest(key, [*key_names(), *groups(config_dir)])}")
    else:
        # Any key of the schema may be set, whether or not a YAML file of the chosen groups mentions it.
        return text if override.is_delete() else "++" + text.lstrip("+")
    return None


def _usable_group(text: str, group: str, choice: object, options: list[str], problems: list[str]) -> str | None:
    if choice in options or isinstance(choice, list) or (group == "experiment" and choice is None):
        return text
    problems.append(f"{group} = {choice}: must be one of {', '.join(options)}. {nearest(str(choice), options)}")
    return None


def _allowed_keys() -> list[str]:
    return [*key_names(), "hydra.searchpath"]


def nearest(word: str, candidates: Sequence[str]) -> str:
    """A hint at what may have been meant, or at where all keys are."""
    close = [
        name for name in sorted(candidates, key=lambda name: -_likeness(word, name)) if _likeness(word, name) > 0.7
    ]
    return f"Did you mean {' or '.join(close[:2])}?" if close else "`mhc-train fit --cfg job` prints all keys."


def _likeness(word: str, name: str) -> float:
    """How alike two keys are, 0 to 1: whole, or by their last parts, since people forget the group (lr, optim.lr)."""
    whole = difflib.SequenceMatcher(None, word, name).ratio()
    last = difflib.SequenceMatcher(None, word.rpartition(".")[2], name.rpartition(".")[2]).ratio()
    return max(whole, last)


def _hydra(overrides: list[str], config_name: str, config_dir: Path | None) -> DictConfig:
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: no such directory.")
        overrides = [f"hydra.searchpath=[file://{config_dir.resolve()}]", *overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_directory()), version_base="1.3", job_name="mhc-train"):
        return hydra_compose(config_name, overrides=overrides)


def _typed(composed: DictConfig, problems: list[str]) -> Config:
    """Copy leaf by leaf into the schema, so that every wrong type and unknown key is noted, not just the first."""
    typed = OmegaConf.structured(Config)
    _make_writable(typed)
    for key, value in _leaves(composed, problems):
        try:
            OmegaConf.update(typed, key, value)
        except OmegaConfBaseException as error:
            if key in key_names():
                problems.append(f"{key} = {value}: {str(error).splitlines()[0]}.")
            else:
                problems.append(f"{key} = {value}: no such key. {nearest(key, key_names())}")
    config = OmegaConf.to_object(typed)
    assert isinstance(config, Config)
    return config


def _leaves(composed: DictConfig, problems: list[str]) -> Iterator[tuple[str, Any]]:
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError([*problems, *(f"{key} has no value. Type {key}=VALUE." for key in missing)])
    try:
        plain = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([*problems, _explain(error)]) from error
    yield from flatten(plain).items()


def flatten(document: Any, prefix: str = "") -> dict[str, Any]:
    """A nested configuration as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _make_writable(node: DictConfig) -> None:
    # A frozen dataclass makes a read-only node, children included.
    OmegaConf.set_readonly(node, False)
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            _make_writable(child)


def _explain(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line for line in f"{error}\n{cause if cause is not error else ''}".splitlines() if line.strip()]
    return " ".join(dict.fromkeys(line.strip() for line in lines[:8]))
