"""What one read, write and crossing of a model's own path take, forward and backward, beside a copy on the device."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mhc_train.connections import Connection, Residual, State
from mhc_train.kernels.traffic import Direction, Operator, minimal_bytes
from mhc_train.training.rehearsal import Rehearsal

COPIED = 1 << 28
"""Bytes of the tensor that is copied: more than caches hold."""
LEAST = 3
"""Rounds that are timed at least."""
AT_ONCE = 4
"""Calls that an accelerator is given before it is waited for, of a copy too: it does not wait for the host between."""

FORWARD: Direction = "forward"
BACKWARD: Direction = "backward"
Times = dict[tuple[Operator, Direction], list[float]]
"""Seconds of every round, by operator and direction."""


@dataclass(frozen=True)
class Case:
    """An operator on one boundary between sublayers."""

    operator: Operator
    call: Callable[[], list[Tensor]]
    wanted: Sequence[Tensor]
    """What gradients are computed of."""


class Boundary:
    """Where a sublayer's output is written to a path's streams and its successor's input read, on random streams.

    Args:
        rehearsal: of the model whose path it is; a micro-batch passes.
        index: of the sublayer.
    """

    def __init__(self, rehearsal: Rehearsal, index: int) -> None:
        self.rehearsal, self.path, self.index = rehearsal, rehearsal.parallel.model.path, index
        self.connection = self.path[index]
        data, train, device = rehearsal.config.data, rehearsal.config.train, rehearsal.device
        x = torch.randn(train.micro_batch, data.seq_len, self.connection.dim, device=device.device)
        with torch.no_grad(), device.autocast():
            # As the path makes them, but no two streams alike.
            streams = torch.randn_like(self.path.expand(x).streams)
            single_pass = rehearsal.config.connection.single_pass
            projected = torch.rand_like(streams[..., 0], dtype=torch.float32) if single_pass else None
            state, _ = self.path.read(index, State(streams, None, projected))
        assert state.maps is not None
        self.output = x.to(device.dtype).requires_grad_()
        self.streams = streams.requires_grad_()
        self.projected = None if projected is None else projected.requires_grad_()
        self.maps = type(state.maps)(*(part.detach().requires_grad_() for part in state.maps))

    def cases(self) -> list[Case]:
        """The three operators."""
        before, state = State(self.streams, None, self.projected), State(self.streams, self.maps, self.projected)
        index, path = self.index, self.path
        carried = [tensor for tensor in (self.streams, self.projected) if tensor is not None]
        written = [self.output, self.maps.post, self.maps.res]
        found: list[Case] = [
            Case("read", lambda: _results(*path.read(index, before)), [*carried, *path[index].parameters()]),
            Case("write", lambda: [path.write(index, state, self.output).streams], [self.streams, *written]),
            Case(
                "cross",
                lambda: _results(*path.cross(index, state, self.output), crossed=True),
                [*carried, *written, *path[index + 1].parameters()],
            ),
        ]
        if not self.rehearsal.config.train.compile:
            return found
        return [Case(case.operator, torch.compile(case.call), case.wanted) for case in found]

    def minimal_bytes(self, operator: Operator, direction: Direction) -> int:
        """The least that the algorithm of one call moves (`kernels.traffic`)."""
        batch, seq, n, dim = self.streams.shape
        features, groups = projection(self.connection)
        given_pre, mixes, size = self.connection.given_pre, self.connection.mixes, self.streams.element_size()
        return minimal_bytes(operator, direction, batch * seq, n, dim, size, features, given_pre, groups, mixes)

    def added_bytes(self) -> int | None:
        """What all sublayers' reads and writes of a micro-batch, both ways, move at least beyond a residual's sums.

        A residual reads its stream and the sublayer's output and writes their sum; backwards it sums two gradients.
        None where the sublayers are not of one kind.
        """
        if len(set(map(type, self.path))) > 1:
            return None
        sublayers, sums = len(self.path), 2 * 3 * self.output.numel() * self.streams.element_size()
        crossings = (sublayers - 1) * self._both_ways("cross")
        return self._both_ways("read") + crossings + self._both_ways("write") - sublayers * sums

    def _both_ways(self, operator: Operator) -> int:
        return self.minimal_bytes(operator, FORWARD) + self.minimal_bytes(operator, BACKWARD)


def measure_operators(rehearsal: Rehearsal, seconds: float) -> dict[str, Any]:
    """Time the operators of the model's path and a copy in turns, for so many seconds, at least three rounds.

    Returns:
        `copy_bytes_per_second` (read and written); `operators`: of each and both directions the median `seconds` of a
        call, its `minimal_bytes`, the `bytes_per_second` that they make and its `copy_share`, median of what it is in
        each round; and `added_bytes` (see `Boundary`). Without a boundary there are no operators; a residual connection
        of one stream adds nothing, and what any other adds is not known: None.
    """
    boundary = next(boundaries(rehearsal), None)
    if boundary is None:
        path = rehearsal.parallel.model.path
        baseline = path.streams == 1 and all(isinstance(connection, Residual) for connection in path)
        return {"copy_bytes_per_second": None, "operators": [], "added_bytes": 0 if baseline else None}
    copied, times = _rounds(boundary, seconds)
    return {
        "copy_bytes_per_second": 2 * COPIED / statistics.median(copied),
        "operators": [_measured(boundary, *key, times[key], copied) for key in times],
        "added_bytes": boundary.added_bytes(),
    }


def boundaries(rehearsal: Rehearsal) -> Iterator[Boundary]:
    """Those between two sublayers of several streams; the first of the model last, since it may be a special case."""
    path = rehearsal.parallel.model.path
    for index in [*range(1, len(path) - 1), 0]:
        if path.streams > 1 and not any(isinstance(path[place], Residual) for place in (index, index + 1)):
            yield Boundary(rehearsal, index)


def projection(connection: Connection) -> tuple[int, int]:
    """Features that a connection projects, and of how many groups of streams: 1 of all jointly, n of each alone."""
    widths = {connection.streams * connection.dim: 1, connection.dim: connection.streams}
    for parameter in connection.parameters():
        if parameter.ndim == 2 and parameter.shape[1] in widths:
            return parameter.shape[0], widths[parameter.shape[1]]
    return 0, 1


def _results(state: State, x: Tensor, crossed: bool = False) -> list[Tensor]:
    """What a read or a crossing gives that the backward pass comes from."""
    assert state.maps is not None
    made = [x, state.maps.post, state.maps.res, *([state.streams] if crossed else [])]
    made += [state.projected] if state.projected is not None else []
    return [tensor for tensor in made if tensor.requires_grad]


def _rounds(boundary: Boundary, seconds: float) -> tuple[list[float], Times]:
    """Seconds of a copy, and of every case both ways, round by round after one that does not count."""
    device = boundary.rehearsal.device.device
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target, cases = torch.zeros_like(source), boundary.cases()
    copied: list[float] = []
    times: Times = {(case.operator, direction): [] for case in cases for direction in (FORWARD, BACKWARD)}
    deadline = time.monotonic() + seconds
    while len(copied) <= LEAST or time.monotonic() < deadline:
        copied.append(_time(boundary.rehearsal, lambda: target.copy_(source)))
        for case in cases:
            _call(boundary.rehearsal, case)  # so that all find in the caches what they themselves leave there
            forward, backward = _call(boundary.rehearsal, case)
            times[case.operator, FORWARD].append(forward)
            times[case.operator, BACKWARD].append(backward)
    return copied[1:], {key: found[1:] for key, found in times.items()}


def _call(rehearsal: Rehearsal, case: Case) -> tuple[float, float]:
    """Seconds of a forward call and of its backward."""
    results: list[list[Tensor]] = []
    forward = _time(rehearsal, lambda: results.append(case.call()))
    upstream = [torch.ones_like(result) for result in results[0]]
    given = iter(results)
    backward = _time(rehearsal, lambda: torch.autograd.grad(next(given), case.wanted, upstream, allow_unused=True))
    return forward, backward


def _time(rehearsal: Rehearsal, act: Callable[[], object]) -> float:
    """Seconds of one time, of as many as the device is given at once."""
    count = 1 if rehearsal.device.device.type == "cpu" else AT_ONCE

    def acts() -> None:
        for _ in range(count):
            act()

    return rehearsal.seconds(acts) / count


def _measured(
    boundary: Boundary, operator: Operator, direction: Direction, times: list[float], copied: list[float]
) -> dict[str, Any]:
    least = boundary.minimal_bytes(operator, direction)
    shares = [least / time_ * copy / (2 * COPIED) for time_, copy in zip(times, copied, strict=True)]
    return {
        "operator": operator,
        "direction": direction,
        "seconds": statistics.median(times),
        "minimal_bytes": least,
        "bytes_per_second": least / statistics.median(times),
        "copy_share": statistics.median(shares),
    }
