"""The arms of a comparison, planned from overrides with sweeps: their names, and what differs on purpose."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mhc_train.config.compose import OPEN, flatten, nearest, parse
from mhc_train.errors import ConfigError
from mhc_train.experiments.jobs import check, multiply
from mhc_train.report.collect import RunRecord, group_arms
from mhc_train.schema import Config, key_names

DEFAULT_ARMS = "connection=residual,hc,mhc"
Overrides = tuple[str, ...]


def plan_arms(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> dict[Overrides, list[list[str]]]:
    """The arms of a comparison, each by its overrides without the seed, and its runs by theirs.

    Sweeps (`connection=residual,hc`, `seed=range(1,4)`) are multiplied out. Without a sweep other than of the seed the
    arms are residual, hc and mhc, or residual and the connection that was given.

    Raises:
        ConfigError: with every override that is none; or there is a single arm.
    """
    arms: dict[Overrides, list[list[str]]] = {}
    for run in multiply(with_default_arms(overrides), config_dir):
        own = arms.setdefault(tuple(text for text in run if key_of(text) != "seed"), [])
        if run not in own:
            own.append(run)
    if len(arms) == 1:
        (name,) = arm_names(check([run for runs in arms.values() for run in runs][:1], config_name, config_dir))
        raise ConfigError(f"one arm, {name}: nothing to compare. Type connection=residual,mhc.")
    return arms


def with_default_arms(overrides: Sequence[str]) -> list[str]:
    """The overrides with the connections to compare, if no sweep says what differs between the arms."""
    parsed = {override.key_or_group: override for override in map(parse, overrides)}
    if any(override.is_sweep_override() for key, override in parsed.items() if key != "seed"):
        return list(overrides)
    given = parsed.get("connection")
    if given is None:
        return [*overrides, DEFAULT_ARMS]
    if given.value() == "residual":
        raise ConfigError("connection=residual alone: nothing to compare. Type connection=residual,mhc.")
    return [f"connection=residual,{given.value()}" if parse(text) == given else text for text in overrides]


def key_of(override: str) -> str:
    """The key or group that an override sets."""
    key: str = parse(override).key_or_group
    return key


def swept_keys(runs: Sequence[Sequence[str]]) -> list[str]:
    """The keys and groups whose overrides differ between runs, in order."""
    shared = set.intersection(*map(set, runs))
    return list(dict.fromkeys(key_of(text) for run in runs for text in run if text not in shared))


def varied_keys(swept: Sequence[str], configs: Sequence[Config]) -> list[str]:
    """The configuration's keys that differ because they were swept, or a group that holds them was.

    The connection's own are left out: its difference is what a comparison is of.
    """
    flat = [flatten(asdict(config)) for config in configs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    differing = [key for key in keys if len({repr(config.get(key)) for config in flat}) > 1]
    return [
        key
        for key in differing
        if key not in ("name", "seed", "runs_dir")
        and not key.startswith("connection.")
        and any(group in (key, key.partition(".")[0], "experiment") for group in swept)
    ]


def check_varied(keys: Sequence[str]) -> None:
    """Refuse keys, and groups of them, that there are not.

    Raises:
        ConfigError: with the nearest that there are.
    """
    known = key_names()
    problems = [
        f"--vary {key}: no such key. {nearest(key, known)}"
        for key in keys
        if not key.startswith(OPEN) and not any(name == key or name.startswith(f"{key}.") for name in known)
    ]
    if problems:
        raise ConfigError(problems)


def arm_names(configs: Sequence[Config]) -> list[str]:
    """What a report will call arms of these configurations.

    Raises:
        ConfigError: two are the same, and a report would take them for one.
    """
    # As runs of different seeds, which a report takes for one arm if all else is the same.
    records = [
        RunRecord(Path(), asdict(config), {"seed": place}, {}, [], [], []) for place, config in enumerate(configs)
    ]
    arms = group_arms(records)
    for arm in arms:
        if len(arm.records) > 1:
            raise ConfigError(
                f"Two arms of {arm.name} differ in nothing that makes an arm: name, runs_dir, data.seed and the "
                "tracker do not. Leave that sweep out; 'data.seed=${seed}' varies the order of the text with the seed."
            )
    return [arm.name for arm in arms]
