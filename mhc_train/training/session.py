"""Everything that a running training consists of, and what it writes: metrics, measurements, checkpoints."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhc_train.checkpoints import save_checkpoint
from mhc_train.data import Corpus, State
from mhc_train.diagnostics import measure, observe
from mhc_train.files import append_json_line
from mhc_train.model import Transformer
from mhc_train.runs import Run
from mhc_train.schema import Config
from mhc_train.tracking import Tracker
from mhc_train.training.device import Device
from mhc_train.training.optimizer import optimizer_tensors
from mhc_train.training.step import StepResult, validation_loss


@dataclass
class Progression:
    """How far a training has come: what a checkpoint restores besides weights and moments."""

    step: int = 0
    tokens: int = 0
    data: State | None = None
    """The data state after the last batch of the last checkpoint."""
    window: list[float] = field(default_factory=list)
    """Losses since the last logged step."""


@dataclass
class Session:
    """A training under way."""

    config: Config
    run: Run
    corpus: Corpus
    model: Transformer
    forward: Callable[[Tensor], Tensor]
    """The model, or its compiled form."""
    optimizer: torch.optim.Optimizer
    device: Device
    tracker: Tracker
    progression: Progression = field(default_factory=Progression)

    def validate(self) -> dict[str, float]:
        """Validation loss and bits per byte on the fixed set."""
        loss = validation_loss(self.forward, self.corpus.validation.blocks, self.config.train.micro_batch, self.device)
        return {"val_loss": loss, "val_bpb": self.corpus.validation.bits_per_byte(loss)}

    def log(self, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, which the tracker follows."""
        progression = self.progression
        append_json_line(self.run.metrics, {"step": progression.step, "tokens": progression.tokens} | values)

    def advance(self, result: StepResult, tokens: int) -> None:
        """Count a finished step."""
        progression = self.progression
        progression.step += 1
        progression.tokens += tokens
        progression.window.append(result.loss)

    def measure(self) -> None:
        """Measure the residual path on the first validation tokens and write it down."""
        rows = max(1, self.config.diagnostics.tokens // self.config.data.seq_len)
        guarantees = self.model.path.guarantees
        document = measure(observe(self.model, self.corpus.validation.blocks[:rows]), guarantees)
        append_json_line(self.run.measurements, {"step": self.progression.step} | document)

    def save(self, data: State) -> None:
        """Write a checkpoint; `data` is the state after the last batch."""
        self.progression.data = data
        save_checkpoint(
            self.run.checkpoints,
            self.config,
            self.model,
            optimizer_tensors(self.optimizer, self.model),
            dataclasses.asdict(self.progression),
            self.corpus.tokenizer.json,
            self.config.train.keep_checkpoints,
        )
