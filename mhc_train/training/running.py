"""One run from its parts to its end: built or restored, trained, sampled, its status true however it ends."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import DistError

from mhc_train import kernels
from mhc_train.checkpoints import Checkpoint, Keep
from mhc_train.console import say
from mhc_train.data import Corpus, order_fingerprint, skipped_documents
from mhc_train.errors import (
    DataError,
    Interrupted,
    LostRankError,
    MhcTrainError,
    NumericsError,
    Stopped,
    StorageError,
)
from mhc_train.files import read_json_lines, write_json
from mhc_train.model import Transformer
from mhc_train.model.cost import parameters_by_part, training_flops_per_token
from mhc_train.model.generate import continuation
from mhc_train.model.initialise import backbone_fingerprint
from mhc_train.ranks import Ranks
from mhc_train.runs import Run
from mhc_train.schema import Config
from mhc_train.tracking import Tracker, open_tracker
from mhc_train.training.device import Device, check_float64
from mhc_train.training.distributed import Parallel, lay_out
from mhc_train.training.loop import train
from mhc_train.training.optimizer import build_optimizer, fresh_optimizer_tensors
from mhc_train.training.progression import Progression
from mhc_train.training.saving import Saver, restore_random_states
from mhc_train.training.session import Session
from mhc_train.training.stop import StopRequest, stop_on_signals

SCHEMA_VERSION = 1
SAMPLES, PROMPT_TOKENS = 3, 12


@dataclass(frozen=True)
class Opened:
    """What a training is made of before there is a model."""

    config: Config
    run: Run
    corpus: Corpus
    device: Device
    ranks: Ranks
    started: float
    """By the monotonic clock."""

    def record(self, status: str, **facts: Any) -> None:
        """Write the run's status, for all ranks."""
        if self.ranks.first:
            self.run.set_status(status, **facts)


def carry_out(opened: Opened, model: Transformer, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Train a new model, or go on from a checkpoint with its skeleton; returns the run's summary."""
    config, device = opened.config, opened.device
    model.adapt(config.train)
    facts = _facts(opened, model)
    if checkpoint is not None:
        del facts["backbone_fingerprint"]  # of the weights at the start, which the status has
    limit = 60 * config.train.time_limit - (time.monotonic() - opened.started) if config.train.time_limit else math.inf
    # From here on there is a run, which a signal must not leave as it is.
    with _ending_together(opened.ranks), stop_on_signals(limit) as stop:
        opened.record("running", **facts)
        say(f"Run {opened.run.path}")
        say(f"Device {device.reason}; {opened.ranks.world} process{'es' if opened.ranks.world > 1 else ''}")
        say(f"Kernels {facts['kernels']}")
        session = _session(opened, model, checkpoint, stop)
        try:
            _train(session, opened)
            _record_end(session, opened)
        except Interrupted:
            session.tracker.abandon()
            raise
        except BaseException:
            session.tracker.finish()
            raise
        session.tracker.finish()  # last: its wait is no part of the training
    return opened.ranks.by_first(lambda: summary(opened.run))


@contextlib.contextmanager
def _ending_together(ranks: Ranks) -> Iterator[None]:
    """Let a rank wait for the others where all have come to an end: launchers kill all when the first one is gone."""
    try:
        yield
    except (Stopped, DataError, NumericsError):  # what all ranks raise, if any does
        ranks.gather(None)
        raise


@contextlib.contextmanager
def _in_contact(ranks: Ranks) -> Iterator[None]:
    """Say plainly that another process has gone, which torch reports as an error of its own network code."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        raise LostRankError(
            "another process of this training has ended or cannot be reached; its own messages say why. Go on from the "
            f"last checkpoint with --resume. ({str(error).splitlines()[0]})"
        ) from error


def _record_end(session: Session, opened: Opened) -> None:
    memory, counted = opened.device.peak_memory()
    opened.record(
        "done",
        seconds=time.monotonic() - opened.started,
        peak_memory=max(opened.ranks.gather(memory)),
        peak_memory_counted=counted,
        step=session.progression.step,
        tokens=session.progression.tokens,
        **_data_facts(session),
    )


def _train(session: Session, opened: Opened) -> None:
    """Train and sample; however it ends, the run's status says it."""
    try:
        with _in_contact(opened.ranks):
            train(session)
            _sample(session)
    except BaseException as error:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong first
            status = "stopped" if isinstance(error, (Stopped, Interrupted)) else "failed"
            code = getattr(error, "exit_code", MhcTrainError.exit_code)
            step = session.progression.step
            opened.record(status, error=str(error), exit_code=code, step=step, **_data_facts(session))
        raise


def _facts(opened: Opened, model: Transformer) -> dict[str, Any]:
    """What a comparison needs to know of a run, whatever becomes of it."""
    config, corpus, device, path = opened.config, opened.corpus, opened.device, model.path
    return {
        "seed": config.seed,
        "connection": config.connection.title,
        "streams": config.connection.streams,
        "steps": config.train.steps,
        "kernels": kernels.describe(device.device, path.stream_dtype, path.streams, config.model.dim),
        "precision": str(device.dtype).removeprefix("torch."),
        "processes": opened.ranks.world,
        "parameters": parameters_by_part(model),
        "flops_per_token": training_flops_per_token(model, config.data.seq_len),
        "backbone_fingerprint": backbone_fingerprint(model),
        "tokenizer_sha256": corpus.tokenizer.sha256,
        "validation_sha256": corpus.validation.sha256,
        "validation_tokens": corpus.validation.blocks[:, 1:].numel(),
        "bytes_per_token": corpus.validation.bytes_per_token,
    }


def _data_facts(session: Session) -> dict[str, Any]:
    """What was read, as the last checkpoint knows it."""
    state = session.progression.data
    if state is None:
        return {}
    skipped = skipped_documents(state)
    if skipped:
        say(f"{skipped} documents could not be read and were passed over, as data.on_error=skip asks.")
    return {"order_fingerprint": order_fingerprint(state), "skipped_documents": skipped}


def _session(opened: Opened, model: Transformer, checkpoint: Checkpoint | None, stop: StopRequest) -> Session:
    config, device, ranks = opened.config, opened.device, opened.ranks
    check_float64(device, model.path.float64)
    parallel = lay_out(model, config, ranks, device.device)
    # A sharded model is not compiled in one piece: its shards are gathered between the pieces.
    if recomputation := model.recompute.described(config.train.compile and not parallel.sharded):
        say(recomputation)
    optimizer = build_optimizer(model, config.optim)
    # Nothing draws from torch's generator but a connection of one's own; then ranks must not draw the same.
    torch.manual_seed(config.seed + ranks.rank)
    progression = _restored(checkpoint, parallel, optimizer) if checkpoint is not None else Progression()
    keep = Keep(config.train.keep_checkpoints, config.train.keep_every)
    saver = Saver(
        opened.run.checkpoints,
        keep,
        parallel.saving_ranks(),
        config.train.async_save,
        forgiving=config.train.on_save_error == "continue",
    )
    tracker = open_tracker(config.tracker, opened.run) if ranks.first else Tracker()  # which speaks for all
    saved = progression.step if checkpoint is not None else -1
    return Session(
        config, opened.run, opened.corpus, parallel, optimizer, device, tracker, saver, stop, progression, saved
    )


def _restored(checkpoint: Checkpoint, parallel: Parallel, optimizer: torch.optim.Optimizer) -> Progression:
    """Put back all that a checkpoint holds, and say what that is."""
    model, ranks = parallel.model, parallel.ranks
    checkpoint.restore("model", model.state_dict(), ranks)
    steps = checkpoint.state["step"] > 0
    checkpoint.restore("optimizer", fresh_optimizer_tensors(optimizer, model, steps), ranks)
    random = restore_random_states(checkpoint.tensors("random"), ranks.rank)
    lacking = [rank for rank, known in enumerate(ranks.gather(random)) if not known]
    say(
        "Restored: weights, optimizer, schedule, data position, metrics"
        + ("" if lacking else ", random states of every rank")
        + f"; written by {checkpoint.ranks} process{'es' if checkpoint.ranks > 1 else ''}."
        + (f" Not in it: random states of rank {', '.join(map(str, lacking))}, drawn anew." if lacking else "")
    )
    # The first format wrote checkpoints after all else that was due.
    return Progression(**{"reported": checkpoint.state["step"]} | checkpoint.state)


def _sample(session: Session) -> None:
    """Continue the openings of a few held-out documents, so that a reader can see what the numbers mean."""
    count, tokenizer = session.config.train.sample_tokens, session.corpus.tokenizer
    if count == 0:
        return
    tokens = session.corpus.validation.blocks[:, :-1].flatten()
    starts = (tokens == tokenizer.end_of_text).nonzero().flatten()[:SAMPLES] + 1
    prompts = [tokens[start : start + PROMPT_TOKENS] for start in starts if start + PROMPT_TOKENS <= len(tokens)]
    samples = [
        {"prompt": tokenizer.decode(prompt.tolist()), "continuation": tokenizer.decode(ids)}
        for number, prompt in enumerate(prompts)
        for ids in [continuation(session.parallel.model, prompt, count, seed=number)]
    ]
    if session.first:
        write_json(session.run.samples, samples)


def summary(run: Run) -> dict[str, Any]:
    """The outcome of a run, every number taken from its files."""
    status, metrics = run.status(), read_json_lines(run.metrics)
    rates = sorted(line["tokens_per_second"] for line in metrics if "tokens_per_second" in line)
    last = metrics[-1] if metrics else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run.path),
        "status": status.get("status"),
        "steps": last.get("step"),
        "tokens": last.get("tokens"),
        "train_loss": last.get("train_loss"),
        "val_loss": last.get("val_loss"),
        "val_bpb": last.get("val_bpb"),
        "tokens_per_second": rates[len(rates) // 2] if rates else None,
        "peak_memory": status.get("peak_memory"),
        "seconds": status.get("seconds"),
    }
