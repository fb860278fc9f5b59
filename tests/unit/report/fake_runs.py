"""Run directories in the real file formats, small and quick, with measurements of maps that are chosen by the test."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from mhc_train.diagnostics import measure
from mhc_train.diagnostics.observation import Backward, Crossing, Observation
from mhc_train.schema import Config

STREAMS = {"residual": 1, "hc": 4, "mhc": 4}
SAMPLES = [{"prompt": "Once upon", "continuation": " a time there was"}]


def write_run(
    root: Path,
    kind: str = "mhc",
    seed: int = 0,
    losses: tuple[float, ...] = (8.3, 7.1, 6.5),
    *,
    gain: float = 1.0,
    contraction: float = 0.1,
    sublayers: int = 4,
    measurements: int = 2,
    config: dict[str, Any] | None = None,
    status: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    overrides: tuple[str, ...] | None = None,
    samples: list[dict[str, str]] | None = None,
) -> Path:
    """A finished run; `gain` is that of each sublayer, and `contraction` the share of it that averages the streams."""
    path = root / f"20260101-000000-{kind}-{len(list(root.glob('*'))):06x}"
    (path / "diagnostics").mkdir(parents=True)
    settings = dataclasses.asdict(Config(name=kind, seed=seed))
    settings["connection"] |= {"kind": kind, "streams": STREAMS.get(kind, 4)}
    resolved = OmegaConf.merge(OmegaConf.create(settings), OmegaConf.create(config or {}))
    OmegaConf.save(resolved, path / "config.yaml")
    typed = (f"connection={kind}", f"seed={seed}") if overrides is None else overrides
    (path / "overrides.txt").write_text("".join(f"{override}\n" for override in typed))
    write(path / "environment.json", ENVIRONMENT | (environment or {}))
    write(path / "status.json", _status(kind, seed, len(losses)) | (status or {}))
    write(path / "samples.json", SAMPLES if samples is None else samples)
    write_lines(path / "metrics.jsonl", _metrics(losses))
    maps = [mixer(STREAMS.get(kind, 4), gain, contraction) for _ in range(sublayers)]
    lines = [{"step": 10 * number} | measure(observation(maps, seed)) for number in range(measurements)]
    write_lines(path / "diagnostics" / "measurements.jsonl", lines)
    return path


def mixer(streams: int, gain: float, contraction: float) -> Tensor:
    """`gain * ((1 - contraction) I + contraction J / n)`, whose gains are all `gain`."""
    return gain * ((1 - contraction) * torch.eye(streams) + contraction / streams)


def observation(maps: list[Tensor], seed: int, tokens: int = 6, width: int = 5) -> Observation:
    """What a model with these maps, the same for every token, might have done."""
    n, generator = maps[0].shape[-1], torch.Generator().manual_seed(seed)
    names = [f"layers.{index // 2}.{('attention', 'feedforward')[index % 2]}" for index in range(len(maps))]

    def normal(*shape: int) -> Tensor:
        return torch.randn(tokens, *shape, generator=generator)

    def crossing(H: Tensor) -> Crossing:
        streams, after, coefficients = (normal(n, width) for _ in range(3))
        pre, read, output = normal(n), normal(width), normal(width)
        total = H.mT @ after + pre.unsqueeze(-1) * read.unsqueeze(-2) + coefficients
        res = H.expand(tokens, n, n)
        back = Backward(after, read, coefficients, total)
        return Crossing(pre, normal(n), res, streams=streams, output=output, backward=back)

    crossings = [crossing(H) for H in maps]
    return Observation(names, crossings, "random tokens", last=normal(n, width), loss=6.5)


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))


def write_lines(path: Path, documents: list[Any]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes the key."""
    document = json.loads(path.read_text()) | changes
    write(path, {key: value for key, value in document.items() if value is not None})


ENVIRONMENT = {
    "mhc_train": "0.1.0",
    "python": "3.11.7",
    "torch": "2.13.0",
    "platform": "Linux",
    "processor": "a processor",
    "threads": 1,
    "accelerator": None,
    "command": "mhc-train fit",
    "git": {"commit": "0" * 40, "clean": True},
}


def _status(kind: str, seed: int, points: int) -> dict[str, Any]:
    return {
        "status": "done",
        "precision": "float32",
        "seed": seed,
        "steps": 10 * (points - 1),
        "parameters": {"embedding": 1_000_000, "path": 350_000 if kind != "residual" else 0},
        "flops_per_token": 7_891_968,
        "backbone_fingerprint": f"backbone {seed}",
        "tokenizer_sha256": "tokenizer",
        "validation_sha256": "validation",
        "validation_tokens": 4096,
        "bytes_per_token": 3.5,
        "peak_memory": 800 * 2**20,
        "peak_memory_counted": "resident, whole process",
        "tokens": 20_480 * (points - 1),
        "order_fingerprint": "order",
    }


def _metrics(losses: tuple[float, ...]) -> list[dict[str, Any]]:
    """A validation at every multiple of ten steps, a training line at every multiple but the first."""
    lines: list[dict[str, Any]] = []
    for number, loss in enumerate(losses):
        line = {"step": 10 * number, "tokens": 20_480 * number, "val_loss": loss, "val_bpb": loss / 2.4}
        logged = {"train_loss": loss - 0.05, "grad_norm": 1.0 / (number or 1), "tokens_per_second": 4000.0 + number}
        lines.append(line | (logged if number else {}))
    return lines
