"""What can go wrong, and the exit code that each failure ends the process with."""

from collections.abc import Sequence


class MhcTrainError(Exception):
    """A failure that a user can understand and mend; its message says how.

    `exit_code` is part of the command line's contract (see README.md). A plain `MhcTrainError` is never
    raised: an error that is none of the kinds below is an internal one, exit code 1, and so is a lost rank's.
    """

    exit_code = 1


class ConfigError(MhcTrainError):
    """The command line or the configuration cannot be used; `problems` lists everything that is wrong."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class LostRankError(MhcTrainError):
    """Another process of the same training has ended or cannot be reached."""


class DataError(MhcTrainError):
    """The text or the tokenizer is absent, unreachable or unreadable."""

    exit_code = 3


class CheckpointError(MhcTrainError):
    """A run or checkpoint is absent, incomplete or corrupt."""

    exit_code = 4


class NumericsError(MhcTrainError):
    """A loss or gradient is not finite."""

    exit_code = 5


class VerdictError(MhcTrainError):
    """A `--fail-on` condition holds."""

    exit_code = 6


class StorageError(MhcTrainError):
    """A file cannot be written: no space, no permission, a read-only place."""

    exit_code = 7


class Stopped(MhcTrainError):
    """A signal ended the training after a good save; it can be resumed."""

    exit_code = 75


class Interrupted(MhcTrainError):
    """A second signal ended the process at once."""

    exit_code = 130
