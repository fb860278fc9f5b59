"""Sends what a run's files say to its service, beside the training: whole steps, in order, each once."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from mhc_train.runs import Run
from mhc_train.tracking.follower import Follower
from mhc_train.tracking.record import begin_session, end_session, load_record
from mhc_train.tracking.service import Service

POLL_SECONDS = 1.0
Deadline = Callable[[str], contextlib.AbstractContextManager[None]]


def send(run: Run, connect: Callable[[str], Service], over: Callable[[float], bool], deadline: Deadline) -> None:
    """Send every step that the service lacks, until the training is over.

    Args:
        run: whose files are followed.
        connect: begins a session at the service, of the run with this id.
        over: waits for up to so many seconds, and returns whether the training is over.
        deadline: what every call of the service is made in; its argument names the call.
    """
    record = load_record(run)
    with deadline("starting"):
        service = connect(record.id)
    begin_session(run, record, service.directory)
    last = record.step if service.last_step is None else service.last_step
    follower, ended, pause = Follower(run), False, 0.0
    while not ended:
        ended, pause = over(pause), POLL_SECONDS
        for step, values in follower.steps(ended):
            if step > last:
                with deadline("sending"):
                    service.log(step, values)
                last = step
    with deadline("finishing"):
        service.finish()
    end_session(run, record, last)


def unconfirmed(run: Run) -> int:
    """How many steps of a run, whose training is over, the service has not confirmed."""
    confirmed = load_record(run).step
    return sum(step > confirmed for step, _ in Follower(run).steps(over=True))


def process_deadline(seconds: float, tell: Callable[[str], None]) -> Deadline:
    """Calls that do not return within `seconds` end the process: nothing else ends a call that hangs."""

    @contextlib.contextmanager
    def deadline(what: str) -> Iterator[None]:
        timer = threading.Timer(seconds, end, (what,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(what: str) -> None:
        try:
            tell(f"W&B does not answer: {what} took more than {seconds:g} s; metrics.jsonl has everything.")
        finally:
            os._exit(1)

    return deadline
