"""The Triton kernels for `gpu.py`: how long they take, and how near that is to a copy of what they must move."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import crossings
import torch
from record import significant

from mhc_train.kernels import triton as kernels
from mhc_train.kernels.traffic import minimal_bytes

ROUNDS = 20
OPERATORS = {"cross": "crossing", "cross, read weights given": "single pass", "read": "read", "write": "write"}
"""What is timed, with the kind of case that it is."""
CYCLES = 2e9
"""Of the device's clock a second, at most."""


class Scale(NamedTuple):
    """How large everything is: as asked for, or tiny, to see that it runs."""

    device: str
    tokens: int
    dims: tuple[int, ...]
    repeats: int
    dtype: torch.dtype
    streams: int = 4
    copied: int = 2**30
    """Bytes of the copy whose bandwidth is the measure."""


FULL = Scale("cuda", 16384, (2048, 4096), 30, torch.bfloat16)
# Triton's interpreter cannot multiply matrices of bfloat16.
SMOKE = Scale("cpu", 8, (64,), 2, torch.float16, copied=2**16)


def times(acts: dict[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, taken in turn: the median, and half the distance between the quartiles as its spread."""
    leads = {name: lead(act, device) for name, act in acts.items()}
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(repeats):
        for name, act in acts.items():
            taken[name].append(milliseconds(act, device, leads[name]))
    return {name: summary(values) for name, values in taken.items()}


def lead(act: Callable[[], Any], device: str) -> int:
    """Cycles that the host needs, and more, to tell the device what to do; what must be compiled, has been after it."""
    act()
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    seconds = time.perf_counter() - started
    torch.cuda.synchronize()
    return int(CYCLES * (2 * seconds + 1e-3))


def milliseconds(act: Callable[[], Any], device: str, lead: int) -> float:
    """Of the device's own clock where it has one."""
    if device == "cpu":
        started = time.perf_counter()
        act()
        return (time.perf_counter() - started) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # The device is kept busy until the host has said all that follows: of the device's time alone is the measure.
    torch.cuda._sleep(lead)
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
    generator = torch.Generator(scale.device).manual_seed(0)
    forwards, backwards = [], []
    for _ in range(3):
        case = crossings.case(kind, scale.tokens, scale.streams, dim, True, scale.dtype, generator)
        # As they lie in a training, so that nothing is copied first.
        arguments = {
            name: value.contiguous() if isinstance(value, torch.Tensor) else value
            for name, value in case.arguments.items()
        }
        results = kernels.cross(**arguments)
        upstream = tuple(case.upstream[name] for name in ("written", "x", "features"))
        given = {**arguments, "features": results[2], "scale": results[3]}
        forwards.append(lambda given=arguments: kernels.cross(**given))
        backwards.append(lambda upstream=upstream, given=given: kernels.cross_backward(*upstream, **given))
    return {"forward": rotating(forwards), "backward": rotating(backwards)}


def bandwidths(scale: Scale) -> dict[str, Any]:
    """Of every operator: time, the algorithm's minimal bytes over it, and that as a share of a copy's."""
    copy, n, rows = copy_bandwidth(scale), scale.streams, []
    for dim, (name, kind) in itertools.product(scale.dims, OPERATORS.items()):
        for direction, taken in times(directions(kind, dim, scale), scale.device, scale.repeats).items():
            operator, given = name.split(",")[0], kind == "single pass"
            sizes = (scale.tokens, n, dim, scale.dtype.itemsize, n * n + 2 * n)
            least = minimal_bytes(operator, direction, *sizes, given)  # type: ignore[arg-type]
            rate = least / taken["ms"] * 1e3
            row = {"operator": name, "dim": dim, "direction": direction, **taken, "minimal_bytes": least}
            rows.append({**row, "bytes_per_second": significant(rate), "share_of_copy": significant(rate / copy)})
    sizes = {"tokens": scale.tokens, "streams": n, "copy_bytes_per_second": significant(copy)}
    return {**sizes, "rows": rows + sinkhorn_times(scale)}


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
