"""How a residual path's cost grows with streams, sublayers and tokens, beside what traffic and arithmetic predict."""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from connection_cost import cpu_model
from record import significant, write_json, write_table

from mhc_train import kernels
from mhc_train.config.compose import compose
from mhc_train.connections import Path
from mhc_train.kernels.traffic import FLOAT32, minimal_bytes
from mhc_train.model.initialise import initial_path
from mhc_train.schema import TrainConfig
from mhc_train.training.device import choose_device

DIM = 256
COPIED, SIDE = 2**26, 1024
"""Floats of the tensor that is copied, far more than any cache holds; rows of the matrix that is squared."""
HEADER = ("what grows", "to", "ms", "traffic, ms", "arithmetic, ms", "times the base", "by traffic", "with arithmetic")


@dataclass(frozen=True)
class Point:
    """A path of mHC, or of the residual connection where there is one stream."""

    streams: int = 4
    sublayers: int = 16
    tokens: int = 1024

    @property
    def bytes(self) -> int:
        """What a pass there and back moves at the least; a plain residual reads two vectors, writes one, both ways."""
        n = self.streams
        if n == 1:
            return self.sublayers * self.tokens * DIM * FLOAT32 * (3 + 3)
        shape = (self.tokens, n, DIM, FLOAT32, n * n + 2 * n)
        return self.sublayers * (minimal_bytes("cross", "forward", *shape) + minimal_bytes("cross", "backward", *shape))

    @property
    def operations(self) -> int:
        """Floating-point operations of projection, write and read; the backward pass has twice those of the forward."""
        n = self.streams
        forward = 1 if n == 1 else 2 * n * (n * n + 2 * n) + 2 * (n * n + n) + 2 * n
        return 3 * forward * self.sublayers * self.tokens * DIM


@dataclass(frozen=True)
class Machine:
    """What one thread of it can do, measured."""

    bandwidth: float
    """Bytes that a copy reads and writes a second."""
    rate: float
    """Floating-point operations that a matrix product does a second."""

    def traffic(self, point: Point) -> float:
        """Milliseconds that the traffic alone would take."""
        return 1e3 * point.bytes / self.bandwidth

    def arithmetic(self, point: Point) -> float:
        """Milliseconds that the operations alone would take."""
        return 1e3 * point.operations / self.rate


BASE = Point()
SWEEPS = {
    "streams": [replace(BASE, streams=n) for n in range(1, 9)],
    "sublayers": [replace(BASE, sublayers=number) for number in (4, 8, 16, 32, 64)],
    "tokens": [replace(BASE, tokens=number) for number in (256, 512, 1024, 2048, 4096, 8192)],
}
"""One thing at a time, away from the base."""


def path_of(point: Point) -> Path:
    kind = ["connection=mhc", f"connection.streams={point.streams}"] if point.streams > 1 else ["connection=residual"]
    config = compose([*kind, f"model.dim={DIM}", f"model.layers={point.sublayers // 2}", "model.heads=4"])
    return initial_path(config.model, config.connection, seed=0)


def passing(point: Point) -> Callable[[], None]:
    """A forward and a backward pass through the path alone: outputs are given, and gradients at all that is read."""
    path = path_of(point)
    embedding, output = (torch.randn(1, point.tokens, DIM, requires_grad=True) for _ in range(2))
    upstream = torch.randn(1, point.tokens, DIM)
    wanted = [embedding, output, *path.parameters()]

    def act() -> None:
        state, x = path.enter(embedding)
        reads = [x]
        for index in range(point.sublayers):
            state, x = path.cross(index, state, output)
            reads.append(x)
        torch.autograd.grad(reads, wanted, [upstream] * len(reads), allow_unused=True)

    return act


def cpu_seconds(act: Callable[[], Any]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def measured_machine(rounds: int) -> Machine:
    source, target, square = torch.randn(COPIED), torch.empty(COPIED), torch.randn(SIDE, SIDE)
    copying = min(cpu_seconds(lambda: target.copy_(source)) for _ in range(rounds))
    multiplying = min(cpu_seconds(lambda: square @ square) for _ in range(rounds))
    return Machine(2 * COPIED * FLOAT32 / copying, 2 * SIDE**3 / multiplying)


def swept(points: list[Point], machine: Machine, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds, measured and predicted, of points that take turns."""
    acts = [passing(point) for point in points]
    turns = [[cpu_seconds(act) for act in acts] for _ in range(rounds + 1)][1:]
    rows = []
    for number, point in enumerate(points):
        measured = 1e3 * statistics.median(turn[number] for turn in turns)
        figures = {"measured": measured, "traffic": machine.traffic(point), "arithmetic": machine.arithmetic(point)}
        rows.append(vars(point) | {name: significant(value) for name, value in figures.items()})
    return rows


def grown(rows: list[dict[str, Any]], kind: str) -> list[tuple[str, ...]]:
    """Each point's time, and how many times the base's that is, beside what is predicted."""
    base = next(row for row in rows if row[kind] == getattr(BASE, kind))

    def times(row: dict[str, Any], *names: str) -> str:
        return f"{sum(row[name] for name in names) / sum(base[name] for name in names):.2f}"

    return [
        (
            kind, str(row[kind]), *(f"{row[name]:.1f}" for name in ("measured", "traffic", "arithmetic")),
            times(row, "measured"), times(row, "traffic"), times(row, "traffic", "arithmetic"),
        )
        for row in rows
    ]  # fmt: skip


def record(sweeps: dict[str, list[dict[str, Any]]], machine: Machine, rounds: int) -> None:
    """Leave the figures as JSON and as a table for the documentation."""
    path = kernels.describe(torch.device("cpu"), torch.float32)
    environment = {"torch": torch.__version__, "cpu": cpu_model(), "threads": 1, "kernels": path}
    figures = {"environment": environment, "dim": DIM, "rounds": rounds, "machine": vars(machine), "sweeps": sweeps}
    write_json("growth", figures)
    intro = (
        f"Made by `python benchmarks/growth.py --record`: the path alone, forward and backward, C = {DIM}, float32, "
        f"around {BASE.streams} streams, {BASE.sublayers} sublayers and {BASE.tokens} tokens; median of {rounds} "
        f"interleaved rounds, process CPU time on one thread ({cpu_model()}, torch {torch.__version__}, {path}). "
        f"Traffic: the least there is, at the {machine.bandwidth / 1e9:.1f} GB/s of a copy; arithmetic: at the "
        f"{machine.rate / 1e9:.0f} GFLOP/s of a matrix product."
    )
    write_table("growth", intro, HEADER, [row for kind, rows in sweeps.items() for row in grown(rows, kind)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="turns that every point takes (default: 7)")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    chosen = parser.parse_args()
    choose_device(TrainConfig(device="cpu", threads=1))  # which sets up the CPU as a training does
    torch.manual_seed(0)
    machine = measured_machine(5)
    sweeps = {kind: swept(points, machine, chosen.rounds) for kind, points in SWEEPS.items()}
    lines = [HEADER, *(row for kind, rows in sweeps.items() for row in grown(rows, kind))]
    print("\n".join("".join(f"{cell:>20}" for cell in line) for line in lines))
    if chosen.record:
        record(sweeps, machine, chosen.rounds)


if __name__ == "__main__":
    main()
