"""One training from configuration to finished run directory: open, build or restore, train, sample, sum up."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mhc_train.checkpoints import Checkpoint
from mhc_train.config.compose import to_yaml
from mhc_train.console import say
from mhc_train.data import Corpus, open_corpus, order_fingerprint, skipped_documents
from mhc_train.errors import ConfigError, Stopped, StorageError
from mhc_train.files import read_json_lines, write_json, write_text
from mhc_train.model import Transformer
from mhc_train.model.cost import parameters_by_part, training_flops_per_token
from mhc_train.model.generate import continuation
from mhc_train.model.initialise import backbone_fingerprint
from mhc_train.runs import Run, create_run, find_run, new_run_path
from mhc_train.schema import Config
from mhc_train.tracking import open_tracker
from mhc_train.training.device import Device, check_float64, choose_device
from mhc_train.training.loop import train
from mhc_train.training.optimizer import build_optimizer, load_optimizer_tensors
from mhc_train.training.session import Progression, Session
from mhc_train.training.stop import StopRequest, stop_on_signals

SCHEMA_VERSION = 1
SAMPLES, PROMPT_TOKENS = 3, 12


def fit(config: Config, overrides: Sequence[str] = (), directory: Path | None = None) -> dict[str, Any]:
    """Train from the start in a new run directory; returns the summary that `fit --json` prints.

    Args:
        config: what to train.
        overrides: what was typed, for the record.
        directory: the run directory to make; without it, one of its own in `runs_dir`.
    """
    device = choose_device(config.train)
    corpus = open_corpus(config.data)
    config = dataclasses.replace(config, data=corpus.config)
    path = directory or new_run_path(Path(config.runs_dir), config.name)
    run = create_run(path, to_yaml(config), overrides)
    write_text(run.tokenizer, corpus.tokenizer.json)
    tokenizer = corpus.tokenizer
    model = Transformer(config.model, config.connection, tokenizer.vocab_size, config.seed, tokenizer.end_of_text)
    return _run(config, run, corpus, model, device, None)


def resume(path: Path, config: Config, checkpoint: Checkpoint, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Go on from a checkpoint in its own run directory, on the tokens that come next.

    Raises:
        ConfigError: it has already taken that many steps.
    """
    device = choose_device(config.train)
    run = find_run(checkpoint.path.parents[1])
    taken = checkpoint.state["step"]
    _check_steps(config.train.steps, taken, last=taken == checkpoint.config.train.steps)
    # The run's own tokenizer: whatever the cache holds by now, tokens mean what they meant.
    data = dataclasses.replace(config.data, tokenizer=str(checkpoint.tokenizer))
    corpus = open_corpus(data)
    corpus.check(checkpoint.state["data"])  # before anything of the run is changed
    run.truncate(checkpoint.state["step"])
    run.amend(to_yaml(config), overrides)
    say(f"Resuming {path} at step {checkpoint.state['step']}: weights, optimizer, data position and metrics restored.")
    return _run(config, run, corpus, checkpoint.model(), device, checkpoint)


def _check_steps(wanted: int, taken: int, last: bool) -> None:
    # After its last step a run has been validated, and lacks at most what follows the training.
    least = taken if last else taken + 1
    if wanted < least:
        raise ConfigError(
            f"train.steps = {wanted}: the run has already taken {taken}. Type train.steps={least} or more."
        )


def _run(
    config: Config, run: Run, corpus: Corpus, model: Transformer, device: Device, checkpoint: Checkpoint | None
) -> dict[str, Any]:
    started = time.monotonic()
    facts = _facts(config, corpus, model, device)
    if checkpoint is not None:
        del facts["backbone_fingerprint"]  # of the weights at the start, which the status has
    with stop_on_signals() as stop:  # from here on there is a run, which a signal must not leave as it is
        run.set_status("running", **facts)
        say(f"Run {run.path}")
        say(f"Device {device.reason}")
        session = _session(config, run, corpus, model, device, checkpoint)
        _train(session, stop)
    memory, counted = device.peak_memory()
    run.set_status(
        "done",
        seconds=time.monotonic() - started,
        peak_memory=memory,
        peak_memory_counted=counted,
        tokens=session.progression.tokens,
        **_data_facts(session),
    )
    return summary(run)


def _train(session: Session, stop: StopRequest) -> None:
    """Train and sample; however it ends, the run's status says it."""
    try:
        train(session, stop)
        _sample(session)
    except BaseException as error:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong first
            status = "stopped" if isinstance(error, Stopped) else "failed"
            session.run.set_status(status, error=str(error), **_data_facts(session))
        raise
    finally:
        session.tracker.finish()


def _facts(config: Config, corpus: Corpus, model: Transformer, device: Device) -> dict[str, Any]:
    """What a comparison needs to know of a run, whatever becomes of it."""
    return {
        "seed": config.seed,
        "steps": config.train.steps,
        "precision": str(device.dtype).removeprefix("torch."),
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


def _session(
    config: Config, run: Run, corpus: Corpus, model: Transformer, device: Device, checkpoint: Checkpoint | None
) -> Session:
    check_float64(device, model.path.float64)
    model.to(device.device)
    optimizer = build_optimizer(model, config.optim)
    progression = Progression()
    if checkpoint is not None:
        load_optimizer_tensors(optimizer, model, checkpoint.tensors("optimizer"))
        progression = Progression(**checkpoint.state)
    forward = torch.compile(model) if config.train.compile else model
    tracker = open_tracker(config.tracker, run.path.name, run.path, dataclasses.asdict(config))
    return Session(config, run, corpus, model, forward, optimizer, device, tracker, progression)


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
        for ids in [continuation(session.model, prompt, count, seed=number)]
    ]
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
