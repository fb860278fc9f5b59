"""Everything that a running training consists of, and what it writes: metrics, measurements, checkpoints."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.checkpoints import Snapshot
from mhc_train.connections import Path
from mhc_train.console import say
from mhc_train.data import Corpus, State, merged
from mhc_train.diagnostics import measure, observe
from mhc_train.diagnostics.measurement import rounded
from mhc_train.diagnostics.watch import Watch, line
from mhc_train.errors import NumericsError, StorageError
from mhc_train.files import append_json_line, sync, write_json
from mhc_train.model.initialise import initial_path
from mhc_train.runs import Run
from mhc_train.schema import Config
from mhc_train.tracking import Tracker
from mhc_train.training.device import Device
from mhc_train.training.distributed import Parallel
from mhc_train.training.optimizer import learning_rate, optimizer_tensors
from mhc_train.training.postmortem import postmortem
from mhc_train.training.progression import Progression
from mhc_train.training.results import Outcome, Results
from mhc_train.training.saving import Saver, copied, random_states
from mhc_train.training.step import Guard, StepResult, take_step, validation_loss
from mhc_train.training.stop import Reason, StopRequest


@dataclass
class Session:
    """A training under way, as this rank sees it. What it writes, rank 0 alone does."""

    config: Config
    run: Run
    corpus: Corpus
    parallel: Parallel
    optimizer: torch.optim.AdamW
    device: Device
    tracker: Tracker
    saver: Saver
    stop: StopRequest
    progression: Progression
    saved: int = -1
    """The last step that a checkpoint was begun of, or that was resumed from."""
    begun: int = field(init=False)
    """The step that this process began at."""
    guard: Guard = field(init=False)
    results: Results = field(init=False)
    polled: float = field(default_factory=time.monotonic)
    """When a reason to stop was last asked for."""
    slowest: float = 0.0
    """The longest time between two times of that, seconds."""

    def __post_init__(self) -> None:
        self.begun = self.progression.step
        self.guard = Guard(hold=self.config.train.on_nonfinite == "stop")
        self.results = Results(late=1 if self.device.device.type == "cuda" else 0)

    @cached_property
    def initial(self) -> Path:
        """The residual path as it was before training, also where that began long ago."""
        path = initial_path(self.config.model, self.config.connection, self.config.seed)
        return path.requires_grad_(False).to(self.device.device)

    @cached_property
    def watch(self) -> Watch:
        """What looks through the forward pass of a step."""
        tokens, seq_len = self.config.diagnostics.watch_tokens, self.config.data.seq_len
        return Watch(self.parallel.model, tokens, seq_len, self.initial)

    @property
    def first(self) -> bool:
        """Whether this rank writes and talks."""
        return self.parallel.ranks.first

    def step(self, batch: Int[Tensor, "batch seq_plus_1"]) -> None:
        """Take one step on this rank's share of a global batch.

        Raises:
            NumericsError: as `settle` has it, of a step before.
        """
        config, progression = self.config, self.progression
        steps = config.train.steps
        self._anneal(progression.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, progression.step, steps)
        watch = self.watch if self._is_watched(progression.step + 1) else None
        result: StepResult = take_step(
            self.parallel,
            self.optimizer,
            self.guard,
            batch,
            config.train.micro_batch,
            self.device,
            config.optim.grad_clip,
            watch,
        )
        progression.step += 1
        progression.tokens += config.train.batch_tokens
        if watch is not None and self.first:
            document = measure(watch.observation(moved=progression.step > 1))
            append_json_line(self.run.watch, {"step": progression.step} | line(document))
        elif watch is not None:
            watch.forget()
        self.results.add(progression.step, result, batch)
        self.settle(self.results.late)

    def _is_watched(self, step: int) -> bool:
        """Whether a step is looked through: by all ranks, so that all compile the same graph at the same time."""
        every = self.config.diagnostics.watch_every
        return every > 0 and step % every == 0

    def _anneal(self, step: int) -> None:
        self.parallel.model.path.anneal(step / max(1, self.config.train.steps - 1))

    def settle(self, late: int = 0) -> None:
        """Take in what the last steps but `late` came to.

        Raises:
            NumericsError: one was not finite, or too many, or the loss has diverged.
        """
        for outcome in self.results.arrived(late):
            if outcome.refused:
                self._refused(outcome)
            else:
                self.progression.note(outcome.loss, outcome.grad_norm)
                self._check_divergence(outcome.step)

    def _refused(self, outcome: Outcome) -> None:
        config, progression = self.config.train, self.progression
        # Steps that are on their way are refused too, or have changed the weights by now.
        weights = outcome.step - 1 if self.guard.hold else progression.step
        self._anneal(outcome.step - 1)
        document = postmortem(self.parallel, outcome, weights, config.micro_batch, self.corpus.tokenizer, self.device)
        file = self.run.path / "diagnostics" / f"not-finite-step-{outcome.step:08d}.json"
        if self.first:
            write_json(file, document)
        found = f"Step {outcome.step}: loss {outcome.loss}, gradient norm {outcome.grad_norm}: not finite."
        if config.on_nonfinite == "skip":
            progression.skip(outcome.step)
            if progression.skipped_in_a_row <= config.skip_limit:
                say(f"{found} Skipped; the batch is described in {file}.")
                return
            found += f" That is {progression.skipped_in_a_row} in a row, and train.skip_limit={config.skip_limit}."
        clip = "" if self.config.optim.grad_clip else " or optim.grad_clip=1"
        raise NumericsError(
            f"{found} No weight was changed by it. The batch and every sublayer's ledger are in {file}. Begin anew "
            f"with a lower optim.lr, more optim.warmup_steps{clip}{self._way_on()}."
        )

    def _way_on(self) -> str:
        """Advice for a batch that can be passed over, where there is a checkpoint to go on from."""
        if self.config.train.on_nonfinite == "skip" or self.saved < 0:
            return ""
        command = f"mhc-train fit --resume {self.run.path} train.on_nonfinite=skip"
        return f"; or pass over such batches from the last checkpoint on: `{command}`"

    def _check_divergence(self, step: int) -> None:
        limit, rise = self.config.train.divergence, self.progression.rise
        if limit and rise > limit:
            raise NumericsError(
                f"Step {step}: diverged: the mean loss of the last steps is {rise:.2f} nats above its lowest. Try a "
                f"lower optim.lr or more optim.warmup_steps; train.divergence={limit:g} is the limit, 0 takes it away."
            )

    def validate(self, between: Callable[[], None]) -> dict[str, float]:
        """Validation loss and bits per byte on the fixed set; `between` as `validation_loss` has it."""
        size, blocks = self.config.train.micro_batch, self.corpus.validation.blocks
        loss = validation_loss(self.parallel, blocks, size, self.device, between)
        return {"val_loss": loss, "val_bpb": self.corpus.validation.bits_per_byte(loss)}

    def log(self, values: dict[str, Any]) -> None:
        """Write one line of metrics.jsonl, which the tracker follows."""
        progression = self.progression
        if self.first:
            append_json_line(self.run.metrics, {"step": progression.step, "tokens": progression.tokens} | values)

    def measure(self) -> None:
        """Measure the residual path on the first validation tokens and write it down."""
        rows = max(1, self.config.diagnostics.tokens // self.config.data.seq_len)
        step = self.progression.step
        start = self.initial if step else None  # before the first step nothing can have moved
        observation = observe(self.parallel.model, self.corpus.validation.blocks[:rows], start)
        if self.first:
            append_json_line(self.run.measurements, {"step": step} | rounded(measure(observation)))

    def asked_to_stop(self, own: Reason = Reason.NONE) -> Reason:
        """Why all ranks are to stop now, agreed by them; `own` is what this one has besides signals and time."""
        if self.saver.failure is not None:
            own = max(own, Reason.SAVE_FAILED)
        now = time.monotonic()
        self.slowest, self.polled = max(self.slowest, now - self.polled), now
        self.stop.margin = max(60 * self.config.train.time_margin, 2 * self.saver.slowest + self.slowest)
        return Reason(self.parallel.ranks.highest(max(own, self.stop.reason)))

    def save(self, data: State, last: bool = False) -> None:
        """Begin to write a checkpoint, if there is none of this step.

        Args:
            data: this rank's state after the last batch.
            last: whether the training ends with it, whatever `train.on_save_error` says.

        Raises:
            StorageError: the one before could not be written.
        """
        self.finish_saving()
        lost = self.parallel.ranks.highest(self.saver.lost)
        if self.saved == self.progression.step and not lost:
            return
        self.settle()
        self.saved = self.progression.step
        self._flush()
        self.progression.data = merged(self.parallel.ranks.gather(data))
        random = random_states(self.parallel.ranks)
        if not (self.first or self.parallel.sharded):
            return
        own = copied if self.saver.background else dict[str, Tensor]
        self.saver.start(
            Snapshot(
                self.config,
                self.parallel.model.vocab_size,
                dataclasses.asdict(self.progression),
                self.corpus.tokenizer.json,
                own(self.parallel.model.state_dict()),
                own(optimizer_tensors(self.optimizer, self.parallel.model)),
                random,
                self.parallel.sharded,
            ),
            last,
        )

    def _flush(self) -> None:
        """What a checkpoint counts as written must survive a power cut as it does."""
        for path in (self.run.metrics, self.run.measurements, self.run.watch):
            if self.first and path.exists():
                sync(path)

    def finish_saving(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            StorageError: it could not be, on whichever rank.
        """
        failure = self.saver.wait()
        if failure is not None and not isinstance(failure, StorageError):
            raise failure
        failures = [text for text in self.parallel.ranks.gather(str(failure) if failure else None) if text]
        if failures:
            raise StorageError(failures[0])
