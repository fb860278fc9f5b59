"""What training large models would take on many GPUs: memory, communication, overheads. Computed, not measured."""

import argparse
from typing import Any, NamedTuple

import torch
from record import significant, write_json, write_table
from rich.console import Console

from mhc_train.config.compose import compose
from mhc_train.kernels.traffic import stream_elements
from mhc_train.model import Transformer
from mhc_train.model.cost import recomputed_share, training_flops_per_token
from mhc_train.model.recompute import segments
from mhc_train.schema import Config
from mhc_train.training.device import Device
from mhc_train.training.memory import Memory, estimate_memory, shard

MODELS, DEVICES, NODE = ("1b", "3b", "27b"), (8, 64, 256), 8
CHOICES = {"residual": ("none", "auto"), "mhc": ("none", "streams", "auto", "1")}
VOCABULARY, SEQ = 32768, 4096
"""One sequence is a micro-batch; gradients of several are accumulated."""
GPU = Device(torch.device("cuda"), torch.bfloat16, "")

# Assumed of the hardware, from its data sheets; per GPU, bytes and operations a second
NVLINK, NETWORK = 450e9, 50e9
"""In one direction: NVLink 4 inside a node, 400 Gbit/s between nodes."""
MATRIX, SHARE = 989e12, 0.4
"""Dense bfloat16 products of an H100 or H200, and the share of them that a training may reach."""
MEMORY_SPEED = 3.35e12
"""Of an H100; an H200's is 4.8e12."""
SIZES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number, by what `train.stream_precision` calls it."""
GIB = 2**30
USABLE = {"80 GB": 72 * GIB, "141 GB": 126 * GIB}
"""What such a GPU has for tensors when a tenth is left to CUDA, NCCL and gaps between tensors."""


class Row(NamedTuple):
    """One model with one connection and one choice of recomputation."""

    model: str
    connection: str
    recompute: str
    skeleton: Transformer
    memory: Memory

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @property
    def more_forward(self) -> float:
        return recomputed_share(self.skeleton, self.skeleton.recompute, SEQ)

    def sharded(self, devices: int) -> int:
        """Bytes a GPU where so many share the states."""
        return shard(self.memory, self.skeleton, devices).peak


def config(model: str, connection: str, recompute: str) -> Config:
    return compose(
        [
            f"model={model}", f"connection={connection}", f"train.recompute={recompute}", "tracker=none",
            f"data.vocab_size={VOCABULARY}", f"data.seq_len={SEQ}", "train.micro_batch=1",
            f"train.batch_tokens={2 * SEQ}",
        ]
    )  # fmt: skip


def row(model: str, connection: str, recompute: str) -> Row:
    chosen = config(model, connection, recompute)
    with torch.device("meta"):
        skeleton = Transformer(chosen.model, chosen.connection, VOCABULARY)
    skeleton.recompute = segments(recompute, skeleton.path.streams, skeleton.sublayers)
    return Row(model, connection, recompute, skeleton, estimate_memory(chosen, GPU))


# Memory


def fits(rows: list[Row], devices: int, usable: int) -> str:
    """The simplest way that fits: whole models before shards, shards inside a node before shards over all of them."""
    ways = {"DDP": lambda row: row.memory.peak}
    ways["FSDP2" if devices == NODE else "HSDP"] = lambda row: row.sharded(NODE)
    ways |= {} if devices == NODE else {"FSDP2": lambda row: row.sharded(devices)}
    for way, peak in ways.items():
        for row in rows:
            if peak(row) <= usable:
                return f"{way}, {row.recompute}"
    return "does not fit"


# Communication and overheads


def communication(row: Row, devices: int) -> dict[str, float]:
    """Bytes that a GPU sends, and seconds that this takes where nothing hides it.

    A ring sends (W - 1) / W of the whole for a gathering or a scattering reduction, twice that for a full reduction.
    """
    whole, ring, nodes = 4 * row.parameters, (devices - 1) / devices, devices // NODE
    speed = NVLINK if nodes == 1 else NETWORK
    inside = 3 * whole * (NODE - 1) / NODE
    between = 2 * whole / NODE * (nodes - 1) / nodes
    return {
        "ddp_bytes": 2 * whole * ring,
        "ddp_seconds": 2 * whole * ring / speed,
        "fsdp_bytes": 3 * whole * ring,
        "fsdp_seconds": 3 * whole * ring / speed,
        "hsdp_bytes_inside": inside,
        "hsdp_bytes_between": between,
        "hsdp_seconds": inside / NVLINK + between / NETWORK,
    }


def micro_batch_seconds(row: Row) -> float:
    """Of matrix products alone, at the assumed share of the peak; running again is a third of forward and backward."""
    return training_flops_per_token(row.skeleton, SEQ) * (1 + row.more_forward / 3) * SEQ / (MATRIX * SHARE)


def stream_seconds(row: Row, size: int) -> float:
    """Of mHC's traffic of streams of `size` bytes a number in a micro-batch, beyond that of a plain residual.

    Every boundary as one fused kernel; the residual reads two vectors and writes one, both ways.
    """
    n, dim = row.skeleton.path.streams, row.skeleton.config.dim
    forward, backward = (stream_elements("cross", way, n) - 3 for way in ("forward", "backward"))
    numbers = (forward * (1 + row.more_forward) + backward) * dim * row.skeleton.sublayers
    return size * numbers * SEQ / MEMORY_SPEED


def overheads(plain: Row, mhc: Row) -> dict[str, float]:
    """Of mHC over the plain residual, as shares of the plain one's micro-batch."""
    base = micro_batch_seconds(plain)
    return {
        "seconds": base,
        "parameters": mhc.parameters / plain.parameters - 1,
        "operations": micro_batch_seconds(mhc) / base - 1,
        **{f"traffic_{name}": stream_seconds(mhc, size) / base for name, size in SIZES.items()},
    }


# What is told


def facts(row: Row) -> dict[str, Any]:
    memory = row.memory
    return {
        "model": row.model,
        "connection": row.connection,
        "recompute": row.recompute,
        "parameters": row.parameters,
        "flops_per_token": training_flops_per_token(row.skeleton, SEQ),
        "more_forward": significant(row.more_forward),
        "activations": memory.activations,
        "transient": memory.transient,
        "peak": memory.peak,
        "sharded": {str(devices): row.sharded(devices) for devices in DEVICES},
        "micro_batch_seconds": significant(micro_batch_seconds(row)),
    }


def memory_table(rows: list[Row]) -> None:
    intro = (
        "Made by `python benchmarks/scaling.py --record`. **Computed, not measured**: GiB on each GPU, one "
        f"sequence of {SEQ} tokens at once, gradients accumulated, vocabulary {VOCABULARY}; bfloat16 "
        "autocast; weights, gradients and moments float32. Kept, transient: of activations, after the forward "
        "pass and at most. DDP: a whole model on each GPU. FSDP2: weights, gradients and moments sharded over so many; "
        "HSDP is FSDP2 over 8."
    )
    cells = [
        (row.model, f"{row.parameters / 1e9:.2f}", row.connection, row.recompute, f"{row.more_forward:.0%}",
         *map(gib, (row.memory.activations, row.memory.transient, row.memory.peak)),
         *(gib(row.sharded(devices)) for devices in DEVICES))
        for row in rows
    ]  # fmt: skip
    header = ("model", "1e9 parameters", "connection", "recompute", "more forward", "kept", "transient", "DDP")
    write_table("scaling-memory", intro, (*header, *(f"FSDP2, {devices}" for devices in DEVICES)), cells)


def fit_table(rows: list[Row]) -> None:
    intro = (
        "**Computed, not measured**, from the table before: the simplest way to train mHC that fits, and its "
        "`train.recompute`, where a tenth of the memory is left free."
    )
    cells = [
        (model, memory, *(fits(select(rows, model, "mhc"), devices, usable) for devices in DEVICES))
        for model in MODELS
        for memory, usable in USABLE.items()
    ]
    write_table("scaling-fit", intro, ("model", "GPU", *(f"{devices} GPUs" for devices in DEVICES)), cells)


def communication_table(rows: list[Row]) -> None:
    intro = (
        "**Computed, not measured**: GB that a GPU sends and seconds that it takes at "
        f"{NVLINK / 1e9:.0f} GB/s inside a node of {NODE}, {NETWORK / 1e9:.0f} GB/s a GPU between nodes, with nothing "
        "hidden behind computing; DDP: once a step; FSDP2 and HSDP as if once a micro-batch. Computing: one "
        f"micro-batch (mHC, recompute auto) at {SHARE:.0%} of {MATRIX / 1e12:.0f} TFLOP/s."
    )
    cells = [
        (row.model, str(devices), f"{micro_batch_seconds(row):.2f}",
         *(f"{volume / 1e9:.1f} / {seconds:.2f}" for volume, seconds in (
             (sent["ddp_bytes"], sent["ddp_seconds"]), (sent["fsdp_bytes"], sent["fsdp_seconds"]),
             (sent["hsdp_bytes_inside"] + sent["hsdp_bytes_between"], sent["hsdp_seconds"]))))
        for row in rows if (row.connection, row.recompute) == ("mhc", "auto")
        for devices in DEVICES for sent in [communication(row, devices)]
    ]  # fmt: skip
    header = ("model", "GPUs", "computing, s", "DDP, GB / s", "FSDP2, GB / s", "HSDP, GB / s")
    write_table("scaling-communication", intro, header, cells)


def overhead_table(rows: list[Row]) -> None:
    intro = (
        "**Computed, not measured**: what mHC (n = 4) adds to the plain residual, and recomputation to either, as "
        f"shares of a micro-batch's products at {SHARE:.0%} of {MATRIX / 1e12:.0f} TFLOP/s. Stream traffic: "
        f"the least of one fused kernel a boundary, {MEMORY_SPEED / 1e12} TB/s, by the streams' precision."
    )
    cells = []
    for model in MODELS:
        plain, mhc = (select(rows, model, connection)[0] for connection in ("residual", "mhc"))
        shares = overheads(plain, mhc)
        again = next(row.more_forward / 3 for row in select(rows, model, "mhc") if row.recompute == "auto")
        cells.append(
            (model, f"{shares['seconds']:.3f}", *(f"{shares[key]:.1%}" for key in ("parameters", "operations")),
             *(f"{shares[f'traffic_{name}']:.1%}" for name in SIZES), f"{again:.0%}")
        )  # fmt: skip
    header = (
        "model",
        "residual, s",
        "mHC: parameters",
        "mHC: operations",
        *(f"mHC: traffic, {name}" for name in SIZES),
        "recompute: operations",
    )
    write_table("scaling-overhead", intro, header, cells)


def select(rows: list[Row], model: str, connection: str) -> list[Row]:
    return [row for row in rows if (row.model, row.connection) == (model, connection)]


def gib(size: int) -> str:
    return f"{size / GIB:,.1f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    return parser.parse_args()


def main() -> None:
    chosen, console, rows = arguments(), Console(width=160), []
    for model in MODELS:
        for connection, choices in CHOICES.items():
            for recompute in choices:
                rows.append(row(model, connection, recompute))
                console.print(facts(rows[-1]))
    if chosen.record:
        assumed = {"nvlink": NVLINK, "network": NETWORK, "products": MATRIX, "share": SHARE, "memory": MEMORY_SPEED}
        write_json("scaling", {"torch": torch.__version__, "assumed": assumed, "rows": [facts(row) for row in rows]})
        for table in (memory_table, fit_table, communication_table, overhead_table):
            table(rows)


if __name__ == "__main__":
    main()
