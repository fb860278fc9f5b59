"""Weights from a seed and each parameter's name, so that every arm of a comparison starts from the same backbone."""

import contextlib
import hashlib
import math
from collections.abc import Iterator

import torch
from torch import nn

from mhc_train.connections import Path, build_path
from mhc_train.schema import ConnectionConfig, ModelConfig

STD = 0.02
# Projections that write to the residual path; their scale falls with depth so that its variance does not grow.
WRITES = (".output.weight", ".down.weight")


def initialise_backbone(model: nn.Module, seed: int, sublayers: int) -> None:
    """Set every matrix of the backbone to N(0, 0.02^2), writes to the path scaled by 1/sqrt(sublayers).

    A parameter's values depend on (seed, name, shape) alone: not on the connection, nor on the order of
    construction. Norms stay at one and the path's parameters as the connections made them.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.startswith("path."):
            continue
        std = STD / math.sqrt(sublayers) if name.endswith(WRITES) else STD
        with torch.no_grad():
            parameter.normal_(0, std, generator=_generator(seed, name))


def initial_path(model: ModelConfig, connection: ConnectionConfig, seed: int) -> Path:
    """The residual path that a model of that seed begins with, on the CPU; the same every time.

    Raises:
        ValueError: the connection or its mixer is not defined for this configuration.
    """
    with seeded(seed):
        return build_path(connection, model.dim, 2 * model.layers)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside, and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def backbone_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the backbone's parameters, names and values: equal for arms that started alike."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("path."):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
