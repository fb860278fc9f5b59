"""The arms of a comparison: planned from overrides with sweeps, trained one after another in processes of their own."""

from collections.abc import Sequence
from pathlib import Path

from mhc_train.config.compose import parse
from mhc_train.console import say
from mhc_train.errors import ConfigError
from mhc_train.runs import new_run_path
from mhc_train.schema import Config
from mhc_train.training.jobs import Forwarding, JobError, check, fit_arguments, multiply, run_fit

DEFAULT_ARMS = "connection=residual,hc,mhc"


def plan_arms(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> list[tuple[list[str], Config]]:
    """The runs of a comparison, each as the overrides of its `fit` and its checked configuration.

    Sweeps (`connection=residual,hc`, `seed=range(1,4)`) are multiplied out. Without a sweep other than of the seed the
    arms are residual, hc and mhc, or residual and the connection that was given.

    Raises:
        ConfigError: with the problems of all runs.
    """
    runs = multiply(with_default_arms(overrides), config_dir)
    return list(zip(runs, check(runs, config_name, config_dir), strict=True))


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


def train_arm(overrides: Sequence[str], config: Config, config_name: str, config_dir: Path | None, group: str) -> Path:
    """Train one run in a process of its own; returns its directory. Signals are passed on to it.

    Raises:
        JobError: the run failed or was stopped.
    """
    say(f"\nArm {' '.join(overrides)}")
    run = new_run_path(Path(config.runs_dir), config.name)
    with Forwarding() as signals:
        arguments = ["--run-directory", str(run), *fit_arguments(overrides, config_name, config_dir)]
        code = run_fit(arguments, group, signals)
    if code != 0:
        raise JobError(f"the arm {' '.join(overrides)} ended with exit code {code}.", code)
    return run
