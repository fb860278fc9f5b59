"""What people read while a command runs: plain lines on standard error, so that standard output stays for results."""

import sys

from mhc_train.ranks import is_first


def say(message: str, every_rank: bool = False) -> None:
    """Print one line for people; of several processes that train together, the first alone does."""
    if every_rank or is_first():
        print(message, file=sys.stderr, flush=True)
