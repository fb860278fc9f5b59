"""Sends what a run's files say to its service, beside the training: whole steps, in order, each once."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from mhc_train.runs import Run
from mhc_train.tracking.follower import Follower, Step
from mhc_train.tracking.record import begin_session, end_session, load_record
from mhc_train.tracking.service import Service, reason

POLL_SECONDS = 1.0
KEPT = "metrics.jsonl has everything"
Deadline = Callable[[str], contextlib.AbstractContextManager[None]]


def send(
    run: Run,
    connect: Callable[[str], Service],
    over: Callable[[float], bool],
    deadline: Deadline,
    tell: Callable[[str], None],
) -> None:
    """Send every step that the service lacks, until the training is over.

    Args:
        run: whose files are followed.
        connect: begins a session at the service, of the run with this id.
        over: waits for up to so many seconds, and returns whether the training is over.
        deadline: what every call of the service is made in; its argument names the call.
        tell: called with a line for people where pictures cannot be had; numbers go on without them.
    """
    record = load_record(run)
    with deadline("starting"):
        service = connect(record.id)
    begin_session(run, record, service.directory)
    last = record.step if service.last_step is None else service.last_step
    follower, ended, pause, drawing = Follower(run), False, 0.0, True
    while not ended:
        ended, pause = over(pause), POLL_SECONDS
        for step in follower.steps(ended):
            if step.number > last:
                with deadline("sending"):
                    service.log(step.number, step.values)
                drawing = drawing and _draw(step, service, deadline, tell)
                last = step.number
    with deadline("finishing"):
        service.finish()
    end_session(run, record, last)


def _draw(step: Step, service: Service, deadline: Deadline, tell: Callable[[str], None]) -> bool:
    """Send a step's pictures, after its numbers; returns whether that can be done at all."""
    if not step.drawn:
        return True
    try:
        from mhc_train.tracking.pictures import pictures  # what draws takes a second to load

        drawn = {prefix + name: file for prefix, line in step.drawn.items() for name, file in pictures(line).items()}
        if drawn:
            with deadline("sending pictures"):
                service.draw(step.number, drawn)
    except Exception as error:  # whatever a library for drawing or a service raises
        tell(f"No pictures go to W&B ({reason(error)}); the numbers do.")
        return False
    return True


def unconfirmed(run: Run) -> int:
    """How many steps of a run, whose training is over, the service has not confirmed."""
    confirmed = load_record(run).step
    return sum(step.number > confirmed for step in Follower(run).steps(over=True))


def process_deadline(seconds: float, tell: Callable[[str], None], kept: str = KEPT) -> Deadline:
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
            tell(f"W&B does not answer: {what} took more than {seconds:g} s; {kept}.")
        finally:
            os._exit(1)

    return deadline
