"""The Triton kernels against float64 for `gpu.py`: every case in a process of its own, as many at once as cores.

Each process compiles what its case needs, which takes most of the time, and leaves it in Triton's cache for all others.
"""

import contextlib
import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import crossings
import torch
from gpu_kernels import OPERATORS, ROUNDS, Scale
from gpu_run import Clock, apart, brief

TOLERANCES = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SINKHORN = "Sinkhorn"


class Case(NamedTuple):
    kind: str
    n: int
    dim: int
    joint: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        if self.kind == SINKHORN:
            return f"{self.kind}, n = {self.n}"
        return f"{self.kind}, n = {self.n}, C = {self.dim}, {'joint' if self.joint else 'each alone'}, {self.dtype}"


def cases(scale: Scale) -> list[Case]:
    """All that is timed, and every other kind, number of streams and dtype; what takes longest to compile first."""
    n, timed = scale.streams, scale.dtype
    squares = [Case(SINKHORN, size, 0, True, torch.float32) for size in (n, 2, 8)]
    if scale.device == "cpu":
        return [Case("crossing", n, 64, True, timed), squares[0]]
    found = [Case(kind, n, dim, True, timed) for kind in OPERATORS.values() for dim in reversed(scale.dims)]
    found += [Case("crossing", n, 64, False, torch.float16), Case("crossing", 8, 64, True, timed)]
    found += [Case(kind, n, 64, True, timed) for kind in crossings.KINDS]
    found += [Case("crossing", n, 64, False, timed), Case("crossing", n, 64, True, torch.float32)]
    return [*found, Case("crossing", 2, 64, True, timed), *squares]


def checked(scale: Scale, clock: Clock) -> dict[str, Any]:
    """How many cases there were, and those further from float64 than their dtype explains, with the reason."""

    def fault(case: Case) -> str | None:
        try:
            apart(check, case, scale.device, seconds=clock.left())
        except Exception as error:
            clock.say(f"WRONG {case}: {brief(error)}")
            return f"{case}: {brief(error)}"
        clock.say(f"right: {case}")
        return None

    every = cases(scale)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        faults = list(pool.map(fault, every))
    return {"cases": len(every), "wrong": [reason for reason in faults if reason]}


def check(case: Case, device: str) -> None:
    """Raises an AssertionError if it is wrong."""
    with contextlib.redirect_stdout(sys.stderr):
        generator = crossings.fresh_generator(device)
    if case.kind == SINKHORN:
        check_sinkhorn(case.n, generator)
        return
    from mhc_train.kernels import triton as kernels

    tokens = 5 if device == "cpu" else 333
    inputs = crossings.case(case.kind, tokens, case.n, case.dim, case.joint, case.dtype, generator)
    crossings.check(kernels.cross, kernels.cross_backward, inputs, TOLERANCES[case.dtype])


def check_sinkhorn(n: int, generator: torch.Generator) -> None:
    """At logits of standard deviation 1 and 50, both orders of a round, with and without eps."""
    from mhc_train.kernels import triton as kernels

    for deviation, columns_first, eps in itertools.product((1, 50), (True, False), (0.0, 1e-6)):
        how = (ROUNDS, columns_first, eps)
        logits, upstream = (torch.randn(999, n, n, generator=generator, device=generator.device) for _ in range(2))
        logits = (logits * deviation * 16).round() / 16
        exact = logits.double().requires_grad_()
        matrices = crossings.sinkhorn(exact, *how)
        (gradient,) = torch.autograd.grad(matrices, exact, upstream.double())
        found = kernels.sinkhorn(logits, *how), kernels.sinkhorn_backward(upstream, logits, *how)
        error = torch.stack([found[0] - matrices, found[1] - gradient]).abs().max()
        assert error < 1e-6 * (4 + deviation), f"standard deviation {deviation}, {how}: {float(error):.2e}"
