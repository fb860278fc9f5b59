"""What people read while a command runs: plain lines on standard error, so that standard output stays for results."""

import contextlib
import sys


def say(message: str) -> None:
    """Print one line for people; work goes on where nobody is there to read it any more."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)
