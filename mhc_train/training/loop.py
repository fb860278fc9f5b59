"""The training loop: measure, step, validate, log, save, in this order, until the last step or a signal."""

import time
from contextlib import closing
from dataclasses import dataclass

from torch import Tensor

from mhc_train.data import Batches
from mhc_train.errors import DataError, Stopped
from mhc_train.progress import Progress
from mhc_train.training.device import loader_workers
from mhc_train.training.optimizer import learning_rate
from mhc_train.training.session import Session
from mhc_train.training.step import StepResult, take_step
from mhc_train.training.stop import StopRequest, WaitedEnough


@dataclass
class Stopwatch:
    """Time since the last logged step, spent in steps and in waiting for data; validation and saving not counted."""

    tokens: int = 0
    working: float = 0.0
    waiting: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the time of steps and data together."""
        return self.tokens / (self.working + self.waiting)

    @property
    def data_wait(self) -> float:
        """Share of that time spent waiting for data."""
        return self.waiting / (self.working + self.waiting)

    def facts(self, loss: float) -> str:
        """What the display shows beside the step."""
        return f"loss {loss:.4f} · {self.tokens_per_second:,.0f} tokens/s · {self.data_wait:.0%} waiting for data"


def train(session: Session, stop: StopRequest) -> None:
    """Train to `train.steps`, from wherever the session stands.

    Raises:
        NumericsError: a loss or gradient is not finite.
        Stopped: a signal came; the checkpoint is written.
    """
    config, progression = session.config, session.progression
    steps, watch = config.train.steps, Stopwatch()
    batch_size = config.train.batch_tokens // config.data.seq_len
    # Its workers start now, and read meanwhile.
    batches = session.corpus.batches(batch_size, progression.data, workers=loader_workers(session.device, config.data))
    with closing(batches), Progress(config.name, steps, progression.step) as progress:
        if progression.step == 0 and not session.run.metrics.exists():
            begin(session)
        while progression.step < steps:
            started = time.perf_counter()
            batch = next_batch(session, batches, stop)
            received = time.perf_counter()

            session.model.path.anneal(progression.step / max(1, steps - 1))
            for group in session.optimizer.param_groups:
                group["lr"] = learning_rate(config.optim, progression.step, steps)
            result = take_step(
                session.forward,
                session.model,
                session.optimizer,
                batch,
                config.train.micro_batch,
                session.device,
                config.optim.grad_clip,
            )
            session.advance(result, config.train.batch_tokens)

            watch.tokens += config.train.batch_tokens
            watch.waiting += received - started
            watch.working += time.perf_counter() - received
            progress.update(progression.step, watch.facts(result.loss))

            step, last = progression.step, progression.step == steps
            validate = last or step % config.train.eval_every == 0
            if validate or step % config.train.log_every == 0:
                log(session, result, watch, validate)
                watch = Stopwatch()
            if config.diagnostics.every and (last or step % config.diagnostics.every == 0):
                session.measure()
            if last or stop or step % config.train.save_every == 0:
                session.save(batches.state())
            if stop and not last:
                raise stopped(session, stop)


def next_batch(session: Session, batches: Batches, stop: StopRequest) -> Tensor:
    """The next batch; where the text cannot be read on, or must not be waited for, all that was learnt is saved.

    Raises:
        DataError: as `batches` has it.
        Stopped: a signal came while it was waited for.
    """
    try:
        with stop.no_longer_than_this():
            batches.wait()
    except WaitedEnough:
        session.save(batches.state())
        raise stopped(session, stop) from None
    except DataError as error:
        if session.progression.step == 0:
            raise
        session.save(batches.state())
        raise DataError(
            f"{error} Step {session.progression.step} is saved: `mhc-train fit --resume {session.run.path}` goes on."
        ) from error
    return next(batches)


def stopped(session: Session, stop: StopRequest) -> Stopped:
    """What a training ends with that is saved and to be gone on with."""
    return Stopped(
        f"Stopped by {stop.signal} after step {session.progression.step} of {session.config.train.steps}; saved. "
        f"Go on with `mhc-train fit --resume {session.run.path}`."
    )


def begin(session: Session) -> None:
    """Validate and measure the untrained model: the first point of every curve."""
    session.log(session.validate())
    if session.config.diagnostics.every:
        session.measure()


def log(session: Session, result: StepResult, watch: Stopwatch, validate: bool) -> None:
    """Write the line of a logged step; `train_loss` is the mean since the line before."""
    window = session.progression.window
    values = {
        "train_loss": sum(window) / len(window),
        "grad_norm": result.grad_norm,
        "learning_rate": session.optimizer.param_groups[0]["lr"],
        "tokens_per_second": watch.tokens_per_second,
        "data_wait": watch.data_wait,
    }
    session.log(values | (session.validate() if validate else {}))
    window.clear()
