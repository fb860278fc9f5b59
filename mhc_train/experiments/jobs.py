"""Several runs from one command: sweeps multiplied out and checked together, and a process for each run."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Glob, Override

from mhc_train.config.compose import compose, groups, parse
from mhc_train.errors import ConfigError
from mhc_train.schema import Config
from mhc_train.stop_signals import handled_by

FIT = (sys.executable, "-m", "mhc_train", "fit")


def multiply(overrides: Sequence[str], config_dir: Path | None) -> list[list[str]]:
    """The overrides of every run: sweeps in Hydra's grammar multiplied out, the last one varying fastest.

    As in Hydra, the last of several overrides of one key counts.

    Raises:
        ConfigError: with every override that is none, or a sweep that cannot be counted up.
    """
    problems: list[str] = []
    choices: dict[str, list[str]] = {}
    for text in overrides:
        try:
            override = parse(text)
            choices[override.get_key_element()] = _choices(text, override, config_dir)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return [list(run) for run in itertools.product(*choices.values())]


def _choices(text: str, override: Override, config_dir: Path | None) -> list[str]:
    if not override.is_sweep_override():
        return [text]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{text}: an interval has no list of values. Type range(START,STOP,STEP) or values with commas."
        )
    names, wanted = groups(config_dir).get(override.key_or_group, []), override.value()
    values = wanted.filter(names) if isinstance(wanted, Glob) else list(override.sweep_string_iterator())
    if not values:
        raise ConfigError(f"{text}: a sweep over nothing. It could be over {', '.join(names) or 'a list of values'}.")
    return [f"{override.get_key_element()}={value}" for value in values]


def check(runs: Sequence[Sequence[str]], config_name: str, config_dir: Path | None) -> list[Config]:
    """The configuration of every run, from its overrides.

    Raises:
        ConfigError: with the problems of all runs.
    """
    problems: list[str] = []
    configs: list[Config] = []
    for overrides in runs:
        try:
            configs.append(compose(overrides, config_name, config_dir))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


def fit_arguments(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> list[str]:
    """What follows `mhc-train fit` for one run."""
    return [*(["-cd", str(config_dir)] if config_dir else []), "-cn", config_name, *overrides]


class Forwarding:
    """Passes the stop signals that arrive inside on to all child processes, and remembers the first."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.children: list[subprocess.Popen[bytes]] = []
        self._handling = handled_by(self._forward)

    def __enter__(self) -> "Forwarding":
        self._handling.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._handling.__exit__(*exception)

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """Pass signals on to this child, too; one that came before it was there as well."""
        self.children.append(child)
        if self.received:
            child.send_signal(signal.Signals[self.received])

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
        for child in self.children:  # those that have ended are not signalled
            child.send_signal(number)


def start_fit(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    signals: Forwarding,
    inherited: Sequence[int] = (),
    log: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `mhc-train fit ARGUMENTS` in a process of its own, so that its speed and memory are its own.

    Args:
        arguments: what follows `fit`.
        environment: variables beside those of this process.
        signals: passes signals on, so that the run saves and stops as `fit` does.
        inherited: file descriptors that the process keeps open.
        log: the file that its messages are added to; without one, they go where ours go.
    """
    # A session of its own: the terminal's Ctrl-C then reaches it once, through us.
    with (log or Path(os.devnull)).open("ab") as messages:
        child = subprocess.Popen(
            [*FIT, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=messages if log else None,
            env=os.environ | environment,
            start_new_session=True,
            pass_fds=inherited,
        )
    signals.to(child)
    return child


def exit_code(child: subprocess.Popen[bytes]) -> int | None:
    """A process' exit code; 128 and the signal's number if one killed it; None while it runs."""
    code = child.poll()
    return 128 - code if code is not None and code < 0 else code
