"""Opens a training: a new run, a continuation of one, or whichever of the two is due."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mhc_train.checkpoints import ASIDE, Checkpoint, load_checkpoint, set_aside
from mhc_train.config.compose import amend, carried_over, fingerprint, to_yaml
from mhc_train.console import say
from mhc_train.data import Corpus, open_corpus
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.files import write_text
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.runs import Run, create_run, find_run, new_run_path
from mhc_train.schema import Config
from mhc_train.training.device import Device, choose_device, loader_workers
from mhc_train.training.distributed import check_parallel, joined
from mhc_train.training.running import Opened, carry_out, summary
from mhc_train.training.unfinished import unfinished

LOOK_SECONDS = 0.5
"""How long the lock of a run is tried for: longer than anyone needs to see whether it is held."""


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
        if path.name.endswith(ASIDE):
            raise CheckpointError(
                f"{path}: was set aside when its run went on from an earlier step; the lines of metrics up to it are "
                "gone. It can be diagnosed and converted, not resumed."
            )
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
    device = choose_device(config.train)
    check_parallel(config.train, ranks, device.device)
    asked = fingerprint(config)
    corpus = open_corpus(config.data)
    _check_text(config, corpus, device, ranks, None)
    config = dataclasses.replace(config, data=corpus.config)
    path = directory or new_run_path(Path(config.runs_dir), config.name)
    run = ranks.by_first(lambda: create_run(path, to_yaml(config), overrides))
    with _held(run, ranks):
        ranks.by_first(lambda: _begin(run, corpus, asked))
        tokenizer = corpus.tokenizer
        model = Transformer(config.model, config.connection, tokenizer.vocab_size, config.seed, tokenizer.end_of_text)
        return carry_out(Opened(config, run, corpus, device, ranks, started), model, None)


def _resume(config: Config, checkpoint: Checkpoint, overrides: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    started = time.monotonic()
    device = choose_device(config.train)
    check_parallel(config.train, ranks, device.device)
    run = find_run(checkpoint.path.parents[1])
    before = checkpoint.config.train.steps
    if before != config.train.steps and config.optim.schedule != "constant":
        say(f"train.steps {before} -> {config.train.steps}: the learning rate's course is stretched over them.")
    _check_steps(config.train.steps, checkpoint.state["step"])
    # The run's own tokenizer: whatever the cache holds by now, tokens mean what they meant.
    data = dataclasses.replace(config.data, tokenizer=str(checkpoint.tokenizer))
    corpus = open_corpus(data)
    _check_text(config, corpus, device, ranks, checkpoint)
    model = checkpoint.skeleton()  # the last that may be refused before anything of the run is changed
    with _held(run, ranks):
        ranks.by_first(lambda: _go_back(run, config, checkpoint, overrides))
        say(f"Resuming {run.path} at step {checkpoint.state['step']}.")
        return carry_out(Opened(config, run, corpus, device, ranks, started), model, checkpoint)


def _check_text(config: Config, corpus: Corpus, device: Device, ranks: Ranks, checkpoint: Checkpoint | None) -> None:
    """Refuse a text position or a number of processes that the batches cannot be made for.

    Raises:
        ConfigError: the numbers do not divide one another.
        DataError: the text is not what the checkpoint was reading.
    """
    state = checkpoint.state["data"] if checkpoint is not None else None
    size = config.train.batch_tokens // config.data.seq_len
    corpus.check(state, size, ranks.world, loader_workers(device, config.data))


def _begin(run: Run, corpus: Corpus, asked: str) -> None:
    write_text(run.tokenizer, corpus.tokenizer.json)
    run.set_status("running", configuration=asked)


@contextlib.contextmanager
def _held(run: Run, ranks: Ranks) -> Iterator[None]:
    """Let no other training into the run's directory; the operating system gives it back however this one ends."""
    lock = FileLock(run.path / ".lock")

    def take() -> None:
        try:
            lock.acquire(timeout=LOOK_SECONDS)
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
        say(f"{later.name} is kept as {later.name}{ASIDE} until that step is saved again, or `checkpoint prune`.")
    # A checkpoint of a training that was stopped amid a validation comes before its own step's line.
    taken = checkpoint.state["step"]
    run.truncate(checkpoint.state.get("reported", taken), taken)
    run.amend(to_yaml(config), overrides)


def _check_steps(wanted: int, taken: int) -> None:
    # As many are fine: a training that was killed after its last save has still to sample and to say that it is done.
    if wanted < taken:
        raise ConfigError(
            f"train.steps = {wanted}: the run has already taken {taken}. Type train.steps={taken} or more."
        )
