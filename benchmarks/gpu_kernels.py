"""The Triton kernels for `gpu.py`: right or not, how near to a copy, and how they do beside what else there is."""

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from record import BENCHMARKS, significant

from mhc_train.kernels import triton as kernels
from mhc_train.kernels.traffic import minimal_bytes

sys.path.insert(0, str(BENCHMARKS.parent / "tests"))
import crossings  # noqa: E402  (the oracle of the tests)

ROUNDS = 20
TOLERANCES = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
OPERATORS = {"read": "read", "write": "write", "cross": "crossing", "cross, read weights given": "single pass"}
"""What is timed, with the kind of case that it is."""


class Scale(NamedTuple):
    """How large everything is: as asked for, or tiny, to see that it runs."""

    device: str
    tokens: int
    dims: tuple[int, ...]
    repeats: int
    dtypes: tuple[torch.dtype, ...] = tuple(TOLERANCES)
    streams: int = 4
    copied: int = 2**30
    """Bytes of the copy whose bandwidth is the measure."""


FULL = Scale("cuda", 16384, (2048, 4096), 30)
SMOKE = Scale("cpu", 8, (64,), 2, (torch.float32, torch.float16), copied=2**16)


def cases(scale: Scale) -> list[tuple[str, int, int, bool, torch.dtype]]:
    """What is checked: all that is timed, and every other number of streams, norm and dtype once."""
    *others, timed = scale.dtypes
    dims = sorted({64, *scale.dims})
    every = [(kind, scale.streams, dim, True, timed) for kind in crossings.KINDS for dim in dims]
    every += [("crossing", n, 64, joint, timed) for n in (2, 8) for joint in (True, False)]
    return every + [("crossing", scale.streams, 64, joint, dtype) for dtype in others for joint in (True, False)]


def wrong(scale: Scale) -> list[str]:
    """The cases whose values or gradients are further from float64 than their dtype explains."""
    generator, failures = crossings.fresh_generator(), []
    tokens = 5 if scale.device == "cpu" else 333
    for kind, n, dim, joint, dtype in cases(scale):
        case = crossings.to(crossings.case(kind, tokens, n, dim, joint, dtype, generator), scale.device)
        try:
            crossings.check(kernels.cross, kernels.cross_backward, case, TOLERANCES[dtype])
        except AssertionError as error:
            failures.append(f"{kind}, n = {n}, C = {dim}, joint = {joint}, {dtype}: {error}")
    return failures + wrong_projections(scale)


def wrong_projections(scale: Scale) -> list[str]:
    """The same of Sinkhorn, at logits of standard deviation 1 and 50."""
    failures = []
    for n, deviation in itertools.product((2, 4, 8), (1, 50)):
        logits = (torch.randn(999, n, n) * deviation * 16).round().div(16).to(scale.device)
        upstream = torch.randn(999, n, n).to(scale.device)
        exact = logits.double().requires_grad_()
        matrices = crossings.sinkhorn(exact, ROUNDS, True, 0.0)
        (gradient,) = torch.autograd.grad(matrices, exact, upstream.double())
        found = kernels.sinkhorn(logits, ROUNDS, True, 0.0)
        back = kernels.sinkhorn_backward(upstream, logits, ROUNDS, True, 0.0)
        if not max((found - matrices).abs().max(), (back - gradient).abs().max()) < 1e-6 * (4 + deviation):
            failures.append(f"Sinkhorn, n = {n}, standard deviation {deviation}")
    return failures


def times(acts: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, taken in turn: the median, and half the distance between the quartiles as its spread."""
    for act in acts.values():
        for _ in range(2):
            act()
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(repeats):
        for name, act in acts.items():
            taken[name].append(milliseconds(act, device))
    return {name: summary(values) for name, values in taken.items()}


def milliseconds(act: Callable[[], Any], device: str) -> float:
    """Of the device's own clock where it has one."""
    if device == "cpu":
        started = time.perf_counter()
        act()
        return (time.perf_counter() - started) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The host may be late with short kernels: what is under way before the first event gives it a lead.
    torch.cuda._sleep(200_000)
    start.record()
    act()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def summary(values: list[float]) -> dict[str, float]:
    first, _, third = statistics.quantiles(values, n=4)
    return {"ms": significant(statistics.median(values)), "spread": significant((third - first) / 2)}


def copy_bandwidth(scale: Scale) -> float:
    """Bytes a second, read and written, of a copy on the device."""
    source = torch.randint(255, (scale.copied,), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    taken = times({"copy": lambda: target.copy_(source)}, scale.device, scale.repeats)["copy"]["ms"]
    return 2 * scale.copied / taken * 1e3


def rotating(acts: list[Callable[[], Any]]) -> Callable[[], Any]:
    """One after the other: none finds its own data in the cache."""
    turn = iter(range(10**9))
    return lambda: acts[next(turn) % len(acts)]()


def directions(kind: str, dim: int, scale: Scale) -> dict[str, Callable[[], Any]]:
    """A forward and a backward call of a crossing, on three sets of inputs in turn."""
    dtype, generator = scale.dtypes[-1], torch.Generator().manual_seed(0)
    forwards, backwards = [], []
    for _ in range(3):
        case = crossings.to(
            crossings.case(kind, scale.tokens, scale.streams, dim, True, dtype, generator), scale.device
        )
        results = kernels.cross(**case.arguments)
        upstream = tuple(case.upstream[name] for name in ("written", "x", "features"))
        given = {**case.arguments, "features": results[2], "scale": results[3]}
        forwards.append(lambda given=case.arguments: kernels.cross(**given))
        backwards.append(lambda upstream=upstream, given=given: kernels.cross_backward(*upstream, **given))
    return {"forward": rotating(forwards), "backward": rotating(backwards)}


def bandwidths(scale: Scale, copy: float) -> list[dict[str, Any]]:
    """Of every operator: time, the algorithm's minimal bytes over it, and that as a share of a copy's."""
    n, rows = scale.streams, []
    size = torch.empty(0, dtype=scale.dtypes[-1]).element_size()
    for dim, (name, kind) in itertools.product(scale.dims, OPERATORS.items()):
        for direction, taken in times(directions(kind, dim, scale), scale.device, scale.repeats).items():
            operator, given = name.split(",")[0], kind == "single pass"
            least = minimal_bytes(operator, direction, scale.tokens, n, dim, size, n * n + 2 * n, given)  # type: ignore[arg-type]
            rate = least / taken["ms"] * 1e3
            row = {"operator": name, "dim": dim, "direction": direction, **taken, "minimal_bytes": least}
            rows.append({**row, "bytes_per_second": significant(rate), "share_of_copy": significant(rate / copy)})
    return rows + sinkhorn_times(scale)


def sinkhorn_times(scale: Scale) -> list[dict[str, Any]]:
    """Which moves next to nothing, and is bound by arithmetic."""
    logits = torch.randn(scale.tokens, scale.streams, scale.streams, device=scale.device)
    how = (ROUNDS, True, 0.0)
    acts = {
        "forward": lambda: kernels.sinkhorn(logits, *how),
        "backward": lambda: kernels.sinkhorn_backward(logits, logits, *how),
    }
    taken = times(acts, scale.device, scale.repeats)
    return [{"operator": "Sinkhorn", "direction": direction, **row} for direction, row in taken.items()]
