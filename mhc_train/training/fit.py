"""One training from configuration to finished run directory: open, build or restore, train, sample, sum up."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mhc_train.checkpoints import ASIDE, Checkpoint, Keep, load_checkpoint, set_aside
from mhc_train.config.compose import amend, carried_over, fingerprint, to_yaml
from mhc_train.console import say
from mhc_train.data import Corpus, open_corpus, order_fingerprint, skipped_documents
from mhc_train.errors import CheckpointError, ConfigError, Stopped, StorageError
from mhc_train.files import read_json_lines, write_json, write_text
from mhc_train.model import Transformer
from mhc_train.model.cost import parameters_by_part, training_flops_per_token
from mhc_train.model.generate import continuation
from mhc_train.model.initialise import backbone_fingerprint
from mhc_train.model.recompute import segment_length
from mhc_train.ranks import Ranks
from mhc_train.runs import Run, create_run, find_run, new_run_path
from mhc_train.schema import Config
from mhc_train.tracking import Tracker, open_tracker
from mhc_train.training.device import Device, check_float64, choose_device
from mhc_train.training.distributed import Parallel, check_parallel, joined, lay_out
from mhc_train.training.loop import train
from mhc_train.training.optimizer import build_optimizer, fresh_optimizer_tensors
from mhc_train.training.progression import Progression
from mhc_train.training.saving import Saver, restore_random_states
from mhc_train.training.session import Session
from mhc_train.training.stop import StopRequest, stop_on_signals
from mhc_train.training.unfinished import unfinished

SCHEMA_VERSION = 1
SAMPLES, PROMPT_TOKENS = 3, 12


def fit(config: Config, overrides: Sequence[str] = (), directory: Path | None = None) -> dict[str, Any]:
    """Train from the start in a new run directory; returns the summary that `fit --json` prints.

    Args:
        config: what to train.
        overrides: what was typed, for the record.
        directory: the run directory to make; without it, one of its own in `runs_dir`.
    """
    with joined() as ranks:
        return _fit(config, overrides, ranks, directory)


def resume(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Go on from a checkpoint, or a run's newest good one, in its own run directory, on the tokens that come next.

    Raises:
        ConfigError: an override changes what cannot change, or more steps have been taken already.
        CheckpointError: there is no good checkpoint; or another process is training in the directory.
    """
    with joined() as ranks:
        checkpoint = ranks.by_first(lambda: load_checkpoint(path))
        return _resume(amend(checkpoint.config, overrides), checkpoint, overrides, ranks)


def resume_or_fit(config: Config, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Go on with the newest run of this very configuration; begin if there is none; leave it if it is done."""
    with joined() as ranks:
        found = ranks.by_first(lambda: unfinished(config))
        if isinstance(found, Run):
            return summary(found)
        if found is None:
            return _fit(config, overrides, ranks)
        return _resume(carried_over(found.config, config), found, overrides, ranks)


def _fit(config: Config, overrides: Sequence[str], ranks: Ranks, directory: Path | None = None) -> dict[str, Any]:
    started = time.monotonic()
    check_parallel(config.train.parallel, ranks)
    device = choose_device(config.train)
    asked = fingerprint(config)
    corpus = open_corpus(config.data)
    config = dataclasses.replace(config, data=corpus.config)
    path = directory or new_run_path(Path(config.runs_dir), config.name)
    run = ranks.by_first(lambda: _begin_run(path, config, overrides, corpus, asked))
    tokenizer = corpus.tokenizer
    model = Transformer(config.model, config.connection, tokenizer.vocab_size, config.seed, tokenizer.end_of_text)
    with _held(run, ranks):
        return _run(Opened(config, run, corpus, device, ranks, started), model, None)


def _resume(config: Config, checkpoint: Checkpoint, overrides: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    started = time.monotonic()
    check_parallel(config.train.parallel, ranks)
    device = choose_device(config.train)
    run = find_run(checkpoint.path.parents[1])
    _check_steps(config.train.steps, checkpoint.state["step"])
    # The run's own tokenizer: whatever the cache holds by now, tokens mean what they meant.
    data = dataclasses.replace(config.data, tokenizer=str(checkpoint.tokenizer))
    corpus = open_corpus(data)
    corpus.check(checkpoint.state["data"])  # before anything of the run is changed
    with _held(run, ranks):
        ranks.by_first(lambda: _go_back(run, config, checkpoint, overrides))
        say(f"Resuming {run.path} at step {checkpoint.state['step']}.")
        return _run(Opened(config, run, corpus, device, ranks, started), checkpoint.skeleton(), checkpoint)


def _begin_run(path: Path, config: Config, overrides: Sequence[str], corpus: Corpus, asked: str) -> Run:
    run = create_run(path, to_yaml(config), overrides)
    write_text(run.tokenizer, corpus.tokenizer.json)
    run.set_status("running", configuration=asked)
    return run


@contextlib.contextmanager
def _held(run: Run, ranks: Ranks) -> Iterator[None]:
    """Let no other training into the run's directory; the operating system gives it back however this one ends."""
    lock = FileLock(run.path / ".lock")

    def take() -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"{run.path}: another process is training here. Wait for it, or end it.") from None

    ranks.by_first(take)
    try:
        yield
    finally:
        lock.release()


def _go_back(run: Run, config: Config, checkpoint: Checkpoint, overrides: Sequence[str]) -> None:
    """Make the run directory what it was at the checkpoint; later checkpoints are renamed, not removed."""
    for later in set_aside(run.checkpoints, after=checkpoint.state["step"]):
        say(f"{later.name}, which is later or damaged, is kept as {later.name}{ASIDE} until that step is saved again.")
    # A checkpoint of a training that was stopped amid a validation comes before its own step's line.
    run.truncate(checkpoint.state.get("reported", checkpoint.state["step"]))
    run.amend(to_yaml(config), overrides)


def _check_steps(wanted: int, taken: int) -> None:
    # As many are fine: a training that was killed after its last save has still to sample and to say that it is done.
    if wanted < taken:
        raise ConfigError(
            f"train.steps = {wanted}: the run has already taken {taken}. Type train.steps={taken} or more."
        )


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


def _run(opened: Opened, model: Transformer, checkpoint: Checkpoint | None) -> dict[str, Any]:
    config, device = opened.config, opened.device
    facts = _facts(opened, model)
    if checkpoint is not None:
        del facts["backbone_fingerprint"]  # of the weights at the start, which the status has
    limit = 60 * config.train.time_limit - (time.monotonic() - opened.started) if config.train.time_limit else math.inf
    # From here on there is a run, which a signal must not leave as it is.
    with _ending_together(opened.ranks), stop_on_signals(limit) as stop:
        opened.record("running", **facts)
        say(f"Run {opened.run.path}")
        say(f"Device {device.reason}; {opened.ranks.world} process{'es' if opened.ranks.world > 1 else ''}")
        session = _session(opened, model, checkpoint, stop)
        try:
            _train(session, opened)
            _record_end(session, opened)
        finally:
            session.tracker.finish()  # last: its wait is no part of the training
    return opened.ranks.by_first(lambda: summary(opened.run))


@contextlib.contextmanager
def _ending_together(ranks: Ranks) -> Iterator[None]:
    """Let a rank that was stopped wait for the others: some launchers kill all when the first one ends."""
    try:
        yield
    except Stopped:
        ranks.gather(None)
        raise


def _record_end(session: Session, opened: Opened) -> None:
    memory, counted = opened.device.peak_memory()
    opened.record(
        "done",
        seconds=time.monotonic() - opened.started,
        peak_memory=max(opened.ranks.gather(memory)),
        peak_memory_counted=counted,
        tokens=session.progression.tokens,
        **_data_facts(session),
    )


def _train(session: Session, opened: Opened) -> None:
    """Train and sample; however it ends, the run's status says it."""
    try:
        train(session)
        _sample(session)
    except BaseException as error:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong first
            status = "stopped" if isinstance(error, Stopped) else "failed"
            opened.record(status, error=str(error), **_data_facts(session))
        raise


def _facts(opened: Opened, model: Transformer) -> dict[str, Any]:
    """What a comparison needs to know of a run, whatever becomes of it."""
    config, corpus = opened.config, opened.corpus
    return {
        "seed": config.seed,
        "steps": config.train.steps,
        "precision": str(opened.device.dtype).removeprefix("torch."),
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
    model.to(device.device)
    model.recompute = segment_length(config.train.recompute, config.connection.streams, model.sublayers)
    parallel = lay_out(model, config, ranks)
    optimizer = build_optimizer(model, config.optim)
    # Nothing draws from torch's generator but a connection of one's own; then ranks must not draw the same.
    torch.manual_seed(config.seed + ranks.rank)
    progression = _restored(checkpoint, parallel, optimizer) if checkpoint is not None else Progression()
    keep = Keep(config.train.keep_checkpoints, config.train.keep_every)
    saver = Saver(opened.run.checkpoints, keep, parallel.saving, config.train.async_save)
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
