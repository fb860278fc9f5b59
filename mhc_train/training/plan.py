"""What a training will cost, before it starts: parameters by part, tokens a step, memory; nothing is allocated."""

from dataclasses import asdict, replace
from typing import Any

from torch._subclasses import FakeTensorMode

from mhc_train.console import say
from mhc_train.model import Transformer
from mhc_train.model.cost import parameters_by_part, recomputed_share, training_flops_per_token
from mhc_train.model.recompute import segments
from mhc_train.schema import Config, ConnectionConfig
from mhc_train.training.device import Device, choose_device
from mhc_train.training.memory import Memory, estimate_memory, shard

SCHEMA_VERSION = 2
DEVICES = (8, 64, 256)
"""Numbers of devices for which the plan shows what each would hold."""


def plan(config: Config) -> dict[str, Any]:
    """The plan that `fit --dry-run` prints. The vocabulary's size is the configured one; no data is read."""
    device = choose_device(config.train, only_planned=True)
    train, seq_len = config.train, config.data.seq_len
    skeleton = skeleton_of(config)
    skeleton.recompute = segments(train.recompute, skeleton.path.streams, skeleton.sublayers)
    parameters = parameters_by_part(skeleton)
    say("Estimating memory, by a step on tensors without content for each of several ways to recompute.")
    memories = _memories(config, device)
    chosen = memories[train.recompute]
    residual = _residual_peak(config, device)
    shards = [shard(chosen, skeleton, devices) for devices in DEVICES]
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device.reason,
        "parameters": parameters | {"total": sum(parameters.values())},
        "tokens_per_step": train.batch_tokens,
        "accumulation": train.batch_tokens // (train.micro_batch * seq_len),
        "total_tokens": train.batch_tokens * train.steps,
        "flops_per_token": training_flops_per_token(skeleton, seq_len),
        "memory": asdict(chosen),
        "residual_peak": residual,
        "recompute": [_choice(choice, memories, skeleton, config) for choice in memories],
        "sharded": [asdict(each) | {"peak": each.peak} for each in shards],
        "remarks": _remarks(config, skeleton, chosen.peak, residual),
    }


def skeleton_of(config: Config) -> Transformer:
    """The model in sizes alone, with the configured vocabulary."""
    with FakeTensorMode():
        return Transformer(config.model, config.connection, config.data.vocab_size)


def _memories(config: Config, device: Device) -> dict[str, Memory]:
    """The memory of a step by choice of `train.recompute`: the configured one and those that it is compared with."""
    rebuilt = () if config.connection.streams == 1 else ("streams",)
    choices = dict.fromkeys(("none", *rebuilt, "auto", "1", config.train.recompute))
    return {
        choice: estimate_memory(replace(config, train=replace(config.train, recompute=choice)), device)
        for choice in choices
    }


def _residual_peak(config: Config, device: Device) -> int:
    """The peak of the same training with a plain residual, and nothing computed again."""
    train = replace(config.train, recompute="none")
    return estimate_memory(
        replace(config, train=train, connection=ConnectionConfig("residual", streams=1)), device
    ).peak


def _remarks(config: Config, skeleton: Transformer, peak: int, residual: int) -> list[str]:
    """How to read the figures, and what they do not know."""
    said = ["Activations are a part of what is transient. Running all of the forward pass again is a third of a step."]
    if config.connection.streams > 1:
        plain = f"{residual / 2**20:,.1f} MiB"
        said.append(
            f"Of a plain residual, nothing computed again, the peak is {plain}: this is {peak / residual:.2f} of it."
        )
    if config.train.compile:
        said.append("The memory is that of a model which is not compiled: what the compiler fuses keeps less.")
        said.append(skeleton.recompute.described(compiled=True))
    return list(filter(None, said))


def _choice(choice: str, memories: dict[str, Memory], skeleton: Transformer, config: Config) -> dict[str, Any]:
    """A way to recompute."""
    cut, memory = segments(choice, skeleton.path.streams, skeleton.sublayers), memories[choice]
    # A compiled model rebuilds its streams by running more again than has been counted.
    uncounted = cut.streams_only and config.train.compile
    return {
        "recompute": choice,
        "sublayers": cut.length,
        "streams_only": cut.streams_only,
        "activations": memory.activations,
        "transient": memory.transient,
        "peak": memory.peak,
        "saved": memories["none"].peak - memory.peak,
        "extra_forward": None if uncounted else recomputed_share(skeleton, cut, config.data.seq_len),
    }
