"""An audit: all that can be known of a checkpoint's residual path, as one document; ours or somebody else's."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhc_train.checkpoints import Checkpoint, load_checkpoint
from mhc_train.data import open_corpus
from mhc_train.diagnostics import Observation, measure, observe
from mhc_train.diagnostics.ablation import KINDS, ablate
from mhc_train.diagnostics.information import information
from mhc_train.diagnostics.measurement import halves, spans
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.foreign import is_foreign, observe_on_text, open_foreign
from mhc_train.model.initialise import initial_path
from mhc_train.schema import Config

OWN_TOKENS, TEXT_TOKENS, SAMPLED_TOKENS = 4096, 1024, 256
"""Tokens by default: of a checkpoint's own validation text, of a text for somebody else's model, and drawn."""
MEMORY, BYTES_A_NUMBER = 8 * 2**30, 32
"""Bytes that a measurement may take by default, and takes for every number of the streams: eight copies in float32."""
FOREIGN_SEQUENCE = 256
"""Tokens a sequence for somebody else's model."""
ABLATIONS = ("all", "each")


@dataclass(frozen=True)
class Inquiry:
    """What is asked of a checkpoint."""

    tokens: int | None = None
    """To measure on; None for a number that suits what is measured."""
    text: Path | None = None
    """A text for somebody else's checkpoint; ours have their own."""
    family: str | None = None
    """Whose checkpoint it is, where it does not say."""
    ablate: str | None = None
    """What to ablate: all mixers together, or each alone as well; None for nothing."""


def audit(target: str, inquiry: Inquiry) -> dict[str, Any]:
    """The document of one checkpoint, schema in docs/measurements.md.

    Args:
        target: a run directory or checkpoint of ours; a folder with somebody else's safetensors; a model on the Hub.
        inquiry: what to ask.

    Raises:
        CheckpointError: absent, corrupt, or of no known family.
        ConfigError: what is asked cannot be answered for this kind of checkpoint.
        DataError: the text is not available.
    """
    check(target, inquiry)
    return _audit_foreign(target, inquiry) if is_foreign(target) else _audit_own(Path(target), inquiry)


def check(target: str, inquiry: Inquiry) -> None:
    """Refuse what cannot be answered, before anything is measured.

    Raises:
        CheckpointError: there is nothing of that name.
        ConfigError: what is asked cannot be answered for this kind of checkpoint.
    """
    if inquiry.ablate not in (None, *ABLATIONS):
        raise ConfigError(f"--ablate {inquiry.ablate}: type --ablate {' or --ablate '.join(ABLATIONS)}.")
    if is_foreign(target):
        if inquiry.ablate is not None:
            raise ConfigError("--ablate changes a model while it runs, which works for checkpoints of mhc-train alone.")
        return
    if not Path(target).exists():
        raise CheckpointError(
            f"{target}: there is no such file or directory. Give a run directory, a checkpoint of one, a folder with "
            "safetensors files, or ORG/NAME of a model on the Hub; overrides go with --at-init."
        )
    if inquiry.text is not None or inquiry.family is not None:
        raise ConfigError(
            f"{target} is a checkpoint of mhc-train: it is measured on its own validation tokens, and says itself what "
            "it is. --data and --family are for those of others."
        )


def _audit_own(path: Path, inquiry: Inquiry) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    data = dataclasses.replace(config.data, tokenizer=str(checkpoint.tokenizer))
    rows = max(1, (inquiry.tokens or min(OWN_TOKENS, _affordable(config))) // data.seq_len)
    model, blocks = checkpoint.model(), open_corpus(data).validation.blocks[:rows]
    # Before the first step nothing can have moved.
    start = initial_path(config.model, config.connection, config.seed) if checkpoint.state["step"] else None
    observation = observe(model, blocks, start)
    document = _head(checkpoint) | _measured(observation, data.seq_len)
    if inquiry.ablate is not None:
        document["ablations"] = ablate(model, blocks, tuple(KINDS), per_sublayer=inquiry.ablate == "each")
    return document


def _affordable(config: Config) -> int:
    """Tokens whose streams and gradients, kept at every sublayer for the measurement, fit into the memory for them."""
    numbers = config.connection.streams * config.model.dim * 2 * config.model.layers
    return MEMORY // (BYTES_A_NUMBER * numbers)


def _head(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state["step"],
        "connection": checkpoint.config.connection.title,
    }


def _audit_foreign(target: str, inquiry: Inquiry) -> dict[str, Any]:
    foreign = open_foreign(target, inquiry.family)
    head = {
        "checkpoint": foreign.source,
        "connection": foreign.family.title,
        "source": foreign.facts,
    }
    if inquiry.text is not None:
        tokens = inquiry.tokens or TEXT_TOKENS
        seen = observe_on_text(target, tokens, inquiry.text, inquiry.family)
        return head | _measured(seen, FOREIGN_SEQUENCE)
    sampled = _measured(foreign.observe(inquiry.tokens or SAMPLED_TOKENS), None)
    return head | sampled | {"biases": _measured(foreign.observe_biases(), None)}


def _measured(observation: Observation, sequence_length: int | None) -> dict[str, Any]:
    """The measurement, with what takes too long or too much room for a training to note every time."""
    document = measure(observation)
    document["composite"] |= {"spans": spans(observation), "halves": halves(observation)}
    found = information(observation, sequence_length)
    return document | ({"information": found} if found else {})
