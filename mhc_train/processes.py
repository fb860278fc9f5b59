"""What a process says that was started to answer something, or why it does not."""

import contextlib
import json
import signal
from typing import Any

PATIENCE = 600
"""Seconds that an answer may take, beyond those that were asked for."""


def understood(said: str) -> dict[str, Any]:
    """A process' answer, one JSON object; where it is none, an object whose `error` says so."""
    with contextlib.suppress(ValueError):
        answer = json.loads(said)
        if isinstance(answer, dict):
            return answer
    return {"error": f"its process gave an answer that is none: {said.strip()[:80]!r}"}


def fate(exit_code: int, messages: str) -> str:
    """Why a process is no more.

    Args:
        exit_code: its own; minus the signal's number if one killed it.
        messages: its standard error, whose last line says what went wrong.
    """
    if exit_code < 0:
        return f"its process was killed by {signal.Signals(-exit_code).name}, perhaps for want of memory"
    return (messages.strip().splitlines() or [f"its process ended with exit code {exit_code}"])[-1]
