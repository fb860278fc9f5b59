"""Reads checkpoints: verified file by file before anything of them is used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mhc_train.checkpoints import tensors
from mhc_train.checkpoints.directory import NAME, named_checkpoints
from mhc_train.config.compose import from_dict
from mhc_train.console import say
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.files import json_text, sha256_file
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config

READABLE = (1, 2)
"""Format versions; the first had no random states, no sizes and no hash of the manifest itself."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    config: Config
    state: dict[str, Any]
    """step, tokens, data position, losses."""
    vocab_size: int
    sharded: bool
    ranks: int
    """Processes of the training that wrote it."""

    @property
    def tokenizer(self) -> Path:
        """Its tokenizer.json."""
        return self.path / "tokenizer.json"

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model`, `optimizer` or `random`, whole, on the CPU; empty if the version had none.

        Raises:
            CheckpointError: they cannot be read.
        """
        if name == "random" and not (self.path / "random.safetensors").exists():
            return {}
        try:
            return tensors.read(self.path / name)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: its {name} cannot be read: {error}.") from error

    def restore(self, name: str, targets: Mapping[str, Tensor], ranks: Ranks) -> None:
        """Fill `targets`, on any device and sharded in any way, with the tensors of `model` or `optimizer`.

        Raises:
            CheckpointError: its tensors have other names or shapes.
        """
        try:
            tensors.restore(self.path / name, targets, ranks)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path}: its {name} does not fit this training: {error}.") from error

    def skeleton(self) -> Transformer:
        """The model with the weights of a start.

        Raises:
            CheckpointError: its mixer or connection is not among this installation's.
        """
        try:
            return Transformer(self.config.model, self.config.connection, self.vocab_size)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: this mhc-train cannot build its connection: {error}.") from error

    def model(self) -> Transformer:
        """The model with its weights.

        Raises:
            CheckpointError: as `skeleton` and `restore` have it.
        """
        model = self.skeleton()
        self.restore("model", model.state_dict(), Ranks())
        return model


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, or the newest good one of a run; a damaged one that is passed over is named.

    Raises:
        CheckpointError: there is none; or a file of the one that was asked for is absent or not what was written.
    """
    if NAME.match(path.name) or (path / "manifest.json").exists():
        return open_checkpoint(path)
    found = named_checkpoints(path / "checkpoints")
    for number, candidate in enumerate(reversed(found), 1):
        try:
            return open_checkpoint(candidate)
        except CheckpointError as error:
            if number == len(found):
                raise
            say(f"{error} The one before it is used.")
    raise CheckpointError(f"{path}: no checkpoint here. Give a run directory or one of its checkpoints/step-*.")


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint and open it.

    Raises:
        CheckpointError: a file is absent or is not what was written, named in the message.
    """
    problems = verify(path)
    if problems:
        raise CheckpointError(f"{path}: {'; '.join(problems)}.")
    manifest = json.loads((path / "manifest.json").read_bytes())
    try:
        config = from_dict(json.loads((path / "config.json").read_bytes()))
    except ConfigError as error:
        raise CheckpointError(f"{path}: config.json does not fit this mhc-train: {error}") from error
    state = json.loads((path / "state.json").read_bytes())
    sharded = manifest.get("tensors") == "sharded"
    return Checkpoint(path, config, state, manifest["vocab_size"], sharded, manifest.get("ranks", 1))


def verify(path: Path) -> list[str]:
    """All that is wrong with a checkpoint, each with the file's name; empty if it is what was written."""
    try:
        manifest = _manifest(path)
    except CheckpointError as error:
        return [str(error)]
    found = (_problem(path / name, facts) for name, facts in manifest["files"].items())
    return [problem for problem in found if problem]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / "manifest.json").read_bytes()
        document: dict[str, Any] = json.loads(text)
        version, own = document["format_version"], document.pop("sha256", None)
        whole = isinstance(document["files"], dict)
    except FileNotFoundError:
        raise CheckpointError("manifest.json is missing" if path.is_dir() else "there is no such directory") from None
    except OSError as error:
        raise CheckpointError(f"manifest.json cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError("manifest.json is corrupt") from None
    if version not in READABLE:
        raise CheckpointError(
            f"manifest.json has format version {version}, this mhc-train reads {' and '.join(map(str, READABLE))}"
        )
    # The first version had none; one that has it is no first version, whatever it says.
    hashed = version > 1 or own is not None
    if not whole or (hashed and text != manifest_text(document).encode()):
        raise CheckpointError("manifest.json is corrupt (its hash is not its text's)")
    return document


def manifest_text(document: dict[str, Any]) -> str:
    """A manifest with the hash of its own text, so that no byte of it can change unseen."""
    own = hashlib.sha256(json_text(document).encode()).hexdigest()
    return json_text(document | {"sha256": own})


def _problem(file: Path, facts: Any) -> str | None:
    facts = {"sha256": facts} if isinstance(facts, str) else facts
    name = file.name if file.parent.name.startswith("step-") else f"{file.parent.name}/{file.name}"
    try:
        size = file.stat().st_size
        if size != facts.get("bytes", size):
            return f"{name} has {size:,} bytes of {facts['bytes']:,}"
        return None if sha256_file(file) == facts["sha256"] else f"{name} is corrupt (its hash is not the manifest's)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
