"""What people read while a command runs: plain lines on standard error, so that standard output stays for results."""

import sys


def say(message: str) -> None:
    """Print one line for people."""
    print(message, file=sys.stderr, flush=True)
