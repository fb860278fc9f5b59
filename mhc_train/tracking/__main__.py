"""`python -m mhc_train.tracking RUN`: send what W&B lacks of a run, or with --report a comparison and its report."""

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mhc_train.errors import MhcTrainError
from mhc_train.files import only_one
from mhc_train.runs import Run, find_run
from mhc_train.schema import TrackerConfig
from mhc_train.stop_signals import SIGNALS
from mhc_train.tracking import comparison
from mhc_train.tracking.sender import KEPT, process_deadline, send
from mhc_train.tracking.service import reason, start_wandb


def main() -> int:
    """Send, and return the exit code."""
    arguments = _parse()
    tell = _teller()
    try:
        if arguments.report:
            comparison.send(Run(arguments.run), arguments.report, tell)
            return 0
        run = find_run(arguments.run)
        if arguments.follow:
            _ignore_stop_signals()
        _send(run, _input_ended if arguments.follow else lambda seconds: True, tell)
    except MhcTrainError as error:
        tell(str(error))
        return error.exit_code
    except Exception as error:  # whatever a service raises
        kept = comparison.KEPT if arguments.report else KEPT
        tell(f"W&B fails ({reason(error)}); {kept}.")
        return 1
    return 0


def _send(run: Run, over: Callable[[float], bool], tell: Callable[[str], None]) -> None:
    document: Any = OmegaConf.to_container(OmegaConf.load(run.config))
    config = TrackerConfig(**document["tracker"])
    with only_one(run.tracker):  # a training that was killed may have left one that is just ending
        send(
            run,
            lambda identity: start_wandb(config, run.path, document, identity, tell),
            over,
            process_deadline(config.timeout, tell),
            tell,
        )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m mhc_train.tracking", description="Send what W&B lacks of a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or with --report a comparison's")
    parser.add_argument("--report", type=Path, metavar="DIRECTORY", help="the comparison's report, to be sent")
    parser.add_argument(
        "--follow", action="store_true", help="go on until standard input ends or has something to read"
    )
    return parser.parse_args()


def _teller() -> Callable[[str], None]:
    """Prints a line, if anyone still reads; nothing that a service starts or prints has a hold on standard output."""
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def tell(message: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(message, file=messages)

    return tell


def _input_ended(seconds: float) -> bool:
    # Looked at, never read: a process that takes this one's place must see it too.
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _ignore_stop_signals() -> None:
    """A scheduler may signal every process of a job: it is the training that decides when to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    # Not sys.exit: what a service has left to be done at the exit may hang, and all that was sent is safe already.
    os._exit(main())
