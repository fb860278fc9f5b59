"""Whole training steps for `gpu.py`: what mHC adds to a residual model's, in time and in memory, side by side.

Every arm is a process of its own: they compile at the same time, each knows its own peak memory, and one that fails
leaves the others alone. Timed, they take turns.
"""

import contextlib
import statistics
from typing import Any

import torch
from gpu_kernels import Scale, summary
from gpu_run import Apart, Clock, brief
from record import significant

from mhc_train.config.compose import compose
from mhc_train.kernels import describe
from mhc_train.schema import Config
from mhc_train.training.rehearsal import Rehearsal

COMMON = ("data=fineweb_edu", "tracker=none", "data.seq_len=4096", "train=gpu", "train.micro_batch=2")
FULL = {
    "1b": (*COMMON, "model=1b", "train.batch_tokens=16384"),
    "wide": (
        *COMMON, "model=1b", "model.dim=4096", "model.layers=4", "model.ffn_dim=11264", "train.batch_tokens=16384",
    ),
}  # fmt: skip
"""Models: of C = 2048, and 4 layers of C = 4096."""
_TINY = (
    "model=tiny", "tracker=none", "model.layers=2", "data.seq_len=32", "train.micro_batch=2", "train.batch_tokens=128",
    "train.device=cpu",
)  # fmt: skip
SMOKE = {"1b": _TINY, "wide": (*_TINY, "model.dim=256")}
BASELINE = "residual"
ROUNDS, FEWEST = 10, 3
STEPS = 2
"""That are timed in one turn, after one that is not."""


def arms(typed: tuple[str, ...], recompute: list[str]) -> dict[str, list[str]]:
    """What is typed for the baseline, and for mHC with each way of recomputation; all with streams in bfloat16."""
    half = [*typed, "train.stream_precision=bfloat16"]
    mhc = {f"mhc, recompute {how}": [*half, "connection=mhc", f"train.recompute={how}"] for how in recompute}
    return {BASELINE: [*half, "connection=residual"], **mhc}


def arm(pipe: Any, words: list[str]) -> None:
    """A training in this process: says what it is as soon as it is compiled, and takes a turn for every message."""
    rehearsal = Rehearsal(compose(words))
    step = rehearsal.step(rehearsal.micro_batches)
    # The others warm up beside it: for want of memory it may have to do so again, alone, in its first turn.
    with contextlib.suppress(torch.OutOfMemoryError):
        for _ in range(2):
            rehearsal.seconds(step)
    leave_memory(rehearsal)
    pipe.send(described(rehearsal))
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(turn(rehearsal, step))


def described(rehearsal: Rehearsal) -> dict[str, Any]:
    """What the model has taken on: how its streams are rebuilt, their precision and their kernels."""
    model, dim = rehearsal.parallel.model, rehearsal.config.model.dim
    path, dtype = model.path, model.path.stream_dtype
    return {
        "segments": list(model.recompute),
        "streams": str(dtype).removeprefix("torch."),
        "kernels": describe(rehearsal.device.device, dtype, path.streams, dim),
    }


def turn(rehearsal: Rehearsal, step: Any) -> dict[str, float]:
    """Milliseconds of a step, and the most memory it takes; nothing else is at work on the device."""
    rehearsal.seconds(step)
    if rehearsal.device.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = rehearsal.seconds(lambda: [step() for _ in range(STEPS)]) / STEPS
    peak, _ = rehearsal.device.peak_memory()
    leave_memory(rehearsal)
    return {"ms": seconds * 1e3, "peak_bytes": peak}


def leave_memory(rehearsal: Rehearsal) -> None:
    """To the others, all that only a step in progress needs."""
    if rehearsal.device.device.type == "cuda":
        torch.cuda.empty_cache()


def head_share(config: Config) -> float:
    """The head's part of the operations of all products with weights; connections not counted."""
    model = config.model
    head = config.data.vocab_size * model.dim
    heads = model.dim + model.dim * model.kv_heads // model.heads
    layer = 2 * model.dim * heads + 3 * model.dim * model.ffn_dim
    return head / (head + model.layers * layer)


def steps(typed: tuple[str, ...], recompute: list[str], scale: Scale, clock: Clock) -> dict[str, Any]:
    """Every arm's time and peak memory, and their ratios to the baseline's within the same rounds."""
    config, usual = compose(list(typed)), compose(list(FULL["1b"]))
    running = {name: Apart(arm, words) for name, words in arms(typed, recompute).items()}
    refused: dict[str, str] = {}
    try:
        adapted = answers(running, refused, clock, ask=False)
        clock.say(f"compiled: {'; '.join(running)}")
        rounds: list[dict[str, Any]] = []
        while running and len(rounds) < min(ROUNDS, scale.repeats) and (len(rounds) < FEWEST or clock.in_time()):
            rounds.append(answers(running, refused, clock, ask=True))
        found = {name: {**adapted[name], **row(name, rounds)} for name in running}
    finally:
        for one in running.values():
            one.end()
    sizes = {"layers": config.model.layers, "dim": config.model.dim}
    shares = {"head_share": significant(head_share(config)), "head_share_1b": significant(head_share(usual))}
    return {**sizes, **shares, "rounds": len(rounds), "arms": found, "refused": refused}


def answers(running: dict[str, Apart], refused: dict[str, str], clock: Clock, ask: bool) -> dict[str, Any]:
    """The next of every arm, one after the other; an arm that has none is no longer running."""
    found = {}
    for name, one in list(running.items()):
        try:
            if ask:
                one.send(None)
            found[name] = one.receive(clock.left())
        except (RuntimeError, OSError) as error:
            refused[name] = brief(error)
            running.pop(name).end()
    return found


def row(name: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one arm."""
    peak = max(turns[name]["peak_bytes"] for turns in rounds)
    found = {**summary([turns[name]["ms"] for turns in rounds]), "peak_bytes": peak}
    if all(BASELINE in turns for turns in rounds):
        ratio = statistics.median(turns[name]["ms"] / turns[BASELINE]["ms"] for turns in rounds)
        base = max(turns[BASELINE]["peak_bytes"] for turns in rounds)
        found |= {"time_ratio": significant(ratio), "memory_ratio": significant(peak / base)}
    return found
