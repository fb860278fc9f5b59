"""The training loop: report what is due, save what is due, take a step, until the last one or a reason to stop."""

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from mhc_train.console import say
from mhc_train.data import Batches
from mhc_train.errors import ConfigError, DataError, Interrupted, Stopped
from mhc_train.progress import Progress
from mhc_train.training.device import loader_workers
from mhc_train.training.optimizer import learning_rate
from mhc_train.training.session import Session
from mhc_train.training.stop import Reason, WaitedEnough


@dataclass
class Stopwatch:
    """Time since the last logged step, spent in steps and in waiting for data; validation and saving not counted."""

    tokens: int = 0
    working: float = 0.0
    waiting: float = 0.0

    def restart(self) -> None:
        """Count from nothing again."""
        self.tokens, self.working, self.waiting = 0, 0.0, 0.0

    def numbers(self) -> dict[str, float]:
        """Tokens over the time of steps and data together, and the share of that time spent waiting for data."""
        time_spent = self.working + self.waiting
        if not time_spent:
            return {}
        return {"tokens_per_second": self.tokens / time_spent, "data_wait": self.waiting / time_spent}

    def facts(self, loss: float | None) -> str:
        """What the display shows beside the step."""
        numbers = self.numbers()
        return (
            f"loss {math.nan if loss is None else loss:.4f} · {numbers['tokens_per_second']:,.0f} tokens/s · "
            f"{numbers['data_wait']:.0%} waiting for data"
        )


class AskedToStop(Exception):
    """All ranks have agreed to."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.reason = reason


def train(session: Session) -> None:
    """Train to `train.steps`, from wherever the session stands.

    Raises:
        NumericsError: a loss or gradient is not finite, or the loss has diverged.
        Stopped: a signal came, or the time limit; the checkpoint is written.
        DataError: the text cannot be read on; the checkpoint is written.
        StorageError: a checkpoint cannot be written.
    """
    config, progression, ranks = session.config, session.progression, session.parallel.ranks
    steps, watch = config.train.steps, Stopwatch()
    size = config.train.batch_tokens // config.data.seq_len
    workers = loader_workers(session.device, config.data)
    # Its workers start now, and read meanwhile.
    batches = session.corpus.batches(size, progression.data, ranks.rank, ranks.world, workers)
    progress = Progress(config.name, steps, progression.step, shown=session.first)
    with closing(batches), progress, last_save_awaited(session):
        try:
            while True:
                report(session, watch)
                last = progression.step == steps
                if last or (progression.step and progression.step % config.train.save_every == 0):
                    session.save(batches.state(), last)
                if last:
                    break
                started = time.perf_counter()
                batch = next_batch(session, batches)
                received = time.perf_counter()
                session.step(batch)
                watch.tokens += config.train.batch_tokens
                watch.waiting += received - started
                watch.working += time.perf_counter() - received
                progress.update(progression.step, watch.facts(progression.recent[-1] if progression.recent else None))
        except AskedToStop as asked:
            end(session, batches, asked.reason)
    session.finish_saving()


@contextmanager
def last_save_awaited(session: Session) -> Iterator[None]:
    """Whatever goes wrong inside, a checkpoint that is being written meanwhile is; a second signal alone waits not."""
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        failure = session.saver.wait()
        if failure is not None:
            say(str(failure))
        raise


def report(session: Session, watch: Stopwatch) -> None:
    """Log, validate and measure what is due at this step and was not written before; then the watch starts anew.

    Raises:
        AskedToStop: in the validation; nothing is written then, and a resumed training does it again.
    """
    config, progression = session.config, session.progression
    step, last = progression.step, progression.step == config.train.steps
    if step == progression.reported:
        return
    validate = last or step % config.train.eval_every == 0
    if validate or step % config.train.log_every == 0:
        session.settle()
        values: dict[str, Any] = window(session) | watch.numbers() if step else {}
        session.log(values | (session.validate(lambda: check(session)) if validate else {}))
        progression.logged()
        watch.restart()
    if config.diagnostics.every and (last or step % config.diagnostics.every == 0):
        session.measure()
    progression.reported = step


def window(session: Session) -> dict[str, Any]:
    """What a line says of the steps since the line before; `train_loss` is their mean."""
    progression = session.progression
    losses = progression.window
    config = session.config
    # Not the optimizer's, which a training that was resumed has not set yet.
    rate = learning_rate(config.optim, progression.step - 1, config.train.steps)
    values: dict[str, Any] = {"learning_rate": rate}
    if losses:
        values |= {"train_loss": sum(losses) / len(losses), "grad_norm": progression.grad_norm}
    if progression.spike is not None:
        values["loss_spike"] = progression.spike
    if progression.skipped:
        values["skipped_steps"] = len(progression.skipped)
    return values


def check(session: Session, own: Reason = Reason.NONE) -> None:
    """Ask all ranks whether one of them must stop.

    Raises:
        AskedToStop: one must.
    """
    reason = session.asked_to_stop(own)
    if reason is not Reason.NONE:
        raise AskedToStop(reason)


def next_batch(session: Session, batches: Batches) -> Tensor:
    """The next batch, when all ranks have theirs.

    Raises:
        AskedToStop: a rank must stop, or cannot read on.
    """
    own = Reason.NONE
    try:
        with session.stop.no_longer_than_this():
            batches.wait()
    except WaitedEnough:
        pass
    except DataError:
        own = Reason.NO_DATA
    check(session, own)
    return next(batches)


def end(session: Session, batches: Batches, reason: Reason) -> NoReturn:
    """Save all that was learnt and end.

    Raises:
        Stopped: as asked.
        ConfigError: the time limit left no time for a step, so that resuming would not help.
        DataError: the text cannot be read on.
        StorageError: the checkpoint cannot be written.
    """
    if reason is Reason.SAVE_FAILED:
        session.finish_saving()
    step, again = session.progression.step, f"`mhc-train fit --resume {session.run.path}`"
    troubles = [text for text in session.parallel.ranks.gather(str(batches.failure or "")) if text]
    if troubles and step == 0:
        raise DataError(troubles[0])
    session.save(batches.state(), last=True)
    session.finish_saving()
    if reason is Reason.TIME_LIMIT and step == session.begun:
        raise ConfigError(
            f"train.time_limit = {session.config.train.time_limit:g}: it left no time for a step after step {step}. "
            "Type a longer one, or a shorter train.time_margin."
        )
    if troubles:
        raise DataError(f"{troubles[0]} Step {step} is saved: {again} goes on.")
    raise Stopped(f"Stopped by {reason} after step {step} of {session.config.train.steps}; saved. Go on with {again}.")
