"""What one site of every connection (maps, read, write; forward and backward) costs on one CPU thread, beside peers."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import significant, write_json, write_table
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mhc_train.config.compose import compose, config_directory
from mhc_train.connections import CONNECTIONS

BATCH, SEQ, STREAMS, DIM, SUBLAYERS = 8, 256, 4, 256, 8
UNIT = BATCH * SEQ * DIM * 4
"""Bytes of one (batch, seq, C) float32 tensor, in which memory is counted."""
WARM_UP = 2

RESIDUAL, OURS, DEEPSEEK, HYPER_CONNECTIONS = "residual", "mhc", "DeepSeek-V4", "PyPI hyper-connections"
COMPILED = ", compiled"
TARGETS = {"eager": (OURS, DEEPSEEK, 0.5), "compiled": (OURS + COMPILED, DEEPSEEK + COMPILED, 0.7)}
"""The largest share of the peer's time that ours may take."""
KEPT_TARGET = 6.0

Site = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""From streams and the sublayer's output to the written streams and, but for the residual, what the sublayer reads."""


class Contestant(NamedTuple):
    site: Site
    streams: Tensor
    parameters: tuple[nn.Parameter, ...] = ()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def leaf_streams() -> Tensor:
    return normal(0, BATCH, SEQ, STREAMS, DIM).requires_grad_()


@cache
def upstream(shape: torch.Size) -> Tensor:
    """The gradient that arrives at a result of that shape, the same in every round."""
    return normal(2, *shape)


# Contestants


def residual() -> Contestant:
    """The sum alone: reading a residual stream costs nothing."""
    return Contestant(lambda streams, output: (streams + output.unsqueeze(-2),), leaf_streams())


def ours(group: str) -> Contestant:
    """A connection as its configuration group defines it."""
    config = compose([f"connection={group}"]).connection
    connection = CONNECTIONS[config.kind](config, DIM, 0, SUBLAYERS)

    def site(streams: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        maps, x = connection.enter(streams)
        return connection.write(streams, output, maps), x

    return Contestant(site, leaf_streams(), tuple(connection.parameters()))


def deepseek() -> Contestant:
    """The module of `transformers`, with the write of its decoder layer; its parameters come uninitialised."""
    from transformers import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    connection = DeepseekV4HyperConnection(DeepseekV4Config(hidden_size=DIM, hc_mult=STREAMS))
    nn.init.normal_(connection.fn, std=0.02)
    nn.init.normal_(connection.base)
    nn.init.constant_(connection.scale, 0.01)

    def site(streams: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        post, comb, x = connection(streams)
        return post.unsqueeze(-1) * output.unsqueeze(-2) + comb.transpose(-1, -2) @ streams, x

    return Contestant(site, leaf_streams(), tuple(connection.parameters()))


def hyper_connections() -> Contestant:
    """The mHC of `hyper-connections`, which carries the streams in the batch dimension and is given them so."""
    from hyper_connections import mHC

    connection = mHC(STREAMS, dim=DIM, layer_index=0)

    def site(streams: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        x, add_output = connection(streams)
        return add_output(output), x

    in_the_batch = leaf_streams().detach().transpose(1, 2).flatten(0, 1).requires_grad_()
    return Contestant(site, in_the_batch, tuple(connection.parameters()))


def builders() -> dict[str, Callable[[], Contestant]]:
    """What may compete, by name: the peers and every configuration group of ours."""
    groups = sorted(path.stem for path in (config_directory() / "connection").glob("*.yaml"))
    family = {group: partial(ours, group) for group in groups if group != RESIDUAL}
    return {RESIDUAL: residual, DEEPSEEK: deepseek, HYPER_CONNECTIONS: hyper_connections, **family}


def contestants(compiled: bool, console: Console) -> dict[str, Contestant]:
    """All that are installed, by name; with those that are also compiled."""
    entered = {}
    for name, build in builders().items():
        try:
            entered[name] = build()
        except ImportError as error:
            console.print(f"{name} is left out: {error}.")
    twice = [name for name in (OURS, DEEPSEEK) if compiled and name in entered]
    return entered | {name + COMPILED: entered[name]._replace(site=torch.compile(entered[name].site)) for name in twice}


# Measurements


def crossing(contestant: Contestant, output: Tensor) -> tuple[float, float]:
    """Milliseconds of CPU time that one forward and one backward pass take."""
    start = time.process_time()
    results = contestant.site(contestant.streams, output)
    middle = time.process_time()
    wanted = (contestant.streams, output, *contestant.parameters)
    torch.autograd.grad(results, wanted, [upstream(result.shape) for result in results], allow_unused=True)
    return 1e3 * (middle - start), 1e3 * (time.process_time() - middle)


def kept_memory(contestant: Contestant, output: Tensor) -> float:
    """Bytes kept for the backward pass, in units of one (batch, seq, C) tensor: distinct storages, no parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in contestant.parameters}
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Holding on to the storage keeps its address from being given to another one.
        storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        contestant.site(contestant.streams, output)
    return sum(storage.nbytes() for address, storage in storages.items() if address not in parameters) / UNIT


def compete(entered: dict[str, Contestant], rounds: int, output: Tensor) -> dict[str, dict[str, Any]]:
    """Costs by name. All take turns, so that whatever else the machine does befalls them alike."""
    for _ in range(WARM_UP):
        for contestant in entered.values():
            crossing(contestant, output)
    times = [{name: crossing(contestant, output) for name, contestant in entered.items()} for _ in range(rounds)]
    costs: dict[str, dict[str, Any]] = {name: summary([turn[name] for turn in times]) for name in entered}
    for name, cost in costs.items():
        cost["ratio_to"] = {rival: ratio(cost, costs[rival]) for rival in (RESIDUAL, DEEPSEEK) if rival in costs}
        # A compiled site keeps what its compiler chose, which the hooks do not see.
        cost["kept"] = None if name.endswith(COMPILED) else significant(kept_memory(entered[name], output))
    return costs


def summary(turns: list[tuple[float, float]]) -> dict[str, Any]:
    forward, backward = zip(*turns, strict=True)
    totals = [sum(turn) for turn in turns]
    cost = {"minimum_ms": min(totals), "median_ms": statistics.median(totals)}
    cost |= {"forward_ms": min(forward), "backward_ms": min(backward)}
    return {key: significant(value) for key, value in cost.items()}


def ratio(cost: dict[str, Any], rival: dict[str, Any]) -> dict[str, float]:
    return {kind: significant(cost[f"{kind}_ms"] / rival[f"{kind}_ms"]) for kind in ("minimum", "median")}


# What is told


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "shape": {"batch": BATCH, "seq": SEQ, "streams": STREAMS, "dim": DIM, "dtype": "float32"},
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def targets(costs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was aimed at beside what was reached, as far as it was measured."""
    reached: dict[str, dict[str, Any]] = {
        f"ours / {DEEPSEEK}, {mode}": {**ratio(costs[own], costs[rival]), "target": target}
        for mode, (own, rival, target) in TARGETS.items()
        if own in costs and rival in costs
    }
    return reached | {"kept by ours": {"units": costs[OURS]["kept"], "target": KEPT_TARGET}}


def table(costs: dict[str, dict[str, Any]]) -> Table:
    """One row a contestant, the cheapest first."""
    heads = ["milliseconds", "minimum", "median", "forward", "backward", f"/ {RESIDUAL}", f"/ {DEEPSEEK}", "kept"]
    drawn = Table(*heads, caption="/: ratios of minimum and of median; kept: in (batch, seq, C) float32 tensors")
    for name, cost in sorted(costs.items(), key=lambda item: item[1]["minimum_ms"]):
        times = [f"{cost[key]:.1f}" for key in ("minimum_ms", "median_ms", "forward_ms", "backward_ms")]
        ratios = [shown(cost["ratio_to"].get(rival, {})) for rival in (RESIDUAL, DEEPSEEK)]
        drawn.add_row(name, *times, *ratios, "" if cost["kept"] is None else f"{cost['kept']:.2f}")
    return drawn


def document_table(costs: dict[str, dict[str, Any]], rounds: int) -> None:
    """The same for the documentation, with minima alone."""
    intro = (
        f"Made by `python benchmarks/connection_cost.py --record`: maps, read and write of one sublayer, forward and "
        f"backward, of {BATCH} x {SEQ} tokens, dim {DIM}, n = {STREAMS}, float32; process CPU time on one thread "
        f"({cpu_model()}, "
        f"torch {torch.__version__}), least of {rounds} interleaved rounds. Kept for the backward pass: in tensors of "
        "(batch, seq, C)."
    )
    rows = [
        (
            name, f"{cost['minimum_ms']:.1f}", f"{cost['ratio_to'].get(DEEPSEEK, {}).get('minimum', float('nan')):.2f}",
            "" if cost["kept"] is None else f"{cost['kept']:.1f}",
        )
        for name, cost in sorted(costs.items(), key=lambda item: item[1]["minimum_ms"])
    ]  # fmt: skip
    write_table("connection-cost", intro, ("connection", "ms", f"/ {DEEPSEEK} eager", "kept"), rows)


def shown(ratios: dict[str, float]) -> str:
    return "  ".join(f"{value:5.2f}" for value in ratios.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="turns that every contestant takes (default: 20)")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="measure eager sites alone")
    return parser.parse_args()


def main() -> None:
    chosen, console = arguments(), Console(width=120)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    entered = contestants(chosen.compile, console)
    costs = compete(entered, chosen.rounds, normal(1, BATCH, SEQ, DIM).requires_grad_())
    console.print(table(costs))
    for name, reached in targets(costs).items():
        console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in reached.items())}")
    if chosen.record:
        figures = {"rounds": chosen.rounds, "targets": targets(costs), "contestants": costs}
        write_json("connection_cost", {"environment": environment(), **figures})
        document_table(costs, chosen.rounds)


if __name__ == "__main__":
    main()
