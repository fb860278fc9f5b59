"""What people read while a command runs: plain lines on standard error, so that standard output stays for results."""

import contextlib
import sys

from mhc_train.ranks import is_first


def say(message: str) -> None:
    """Print one line, if anyone is there to read it; of processes that train together, the first alone does."""
    if not is_first():
        return
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
