"""From the tensors of a family to connections of ours: sizes checked, transposed where need be, nothing guessed."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.connections.manifold import ManifoldConnection
from mhc_train.diagnostics.measurement import entries
from mhc_train.errors import CheckpointError
from mhc_train.foreign.families import Family, Site, Sites, head_parts
from mhc_train.foreign.model import ForeignModel
from mhc_train.foreign.recognition import count, lookalikes, number, recognise, settings, streams_and_width
from mhc_train.foreign.stores import open_store
from mhc_train.foreign.tensors import Entry, TensorFiles
from mhc_train.schema import ConnectionConfig

DEPTH = ("num_hidden_layers", "n_layers")
"""What a config.json calls the number of layers."""
LARGEST_CONSTANT = 1000
OTHER_ORDER = {"rows_first": "columns_first", "columns_first": "rows_first"}


def open_foreign(target: str, family: str | None = None) -> ForeignModel:
    """Read the hyper-connections, and nothing else, of a folder or of a model on the Hub.

    Args:
        target: a folder with safetensors files, or `org/name`, `hf://org/name@revision`.
        family: a name of `FAMILIES`, where the checkpoint does not say itself whose it is.

    Raises:
        CheckpointError: absent, unreachable, incomplete, or without hyper-connections that are known.
        ConfigError: the family is not one that is known, or has to be said.
    """
    files = TensorFiles(open_store(target))
    config = files.json("config.json")
    return assemble(files, config, recognise(files, config, family))


def assemble(files: TensorFiles, config: Mapping[str, Any], family: Family) -> ForeignModel:
    """The model that the files hold, if it is one of that family."""
    source = files.store.name
    depth = _depth(config, source)
    sites = _main_path(family.sites(files.places, source), family, depth, source)
    used = sorted({name for parts in sites.values() for name in parts.values()})
    n, width = _size(family, sites, files, config)
    connection_config = _connection_config(family, n, config, source)
    head_name = head_parts(files.places, source).get("base") if family.read_out == "gated" else None
    tensors = files.read([*used, *([head_name] if head_name else [])])
    if head_name and tensors[head_name].numel() != n:
        raise CheckpointError(f"{source}: {head_name} is {list(tensors[head_name].shape)}, not one number a stream.")
    connections = [
        _connection(
            family, connection_config, width, index, len(sites), {part: tensors[name] for part, name in p.items()}
        )
        for index, p in enumerate(sites.values())
    ]
    return ForeignModel(
        source=source,
        family=family,
        names=[f"layers.{layer}.{place}" for layer, place in sites],
        connections=connections,
        tensors=sorted(tensors),
        left_out=sorted(set(lookalikes(files.places)) - set(tensors)),
        bytes_read=files.bytes_read,
        depth_given=depth is not None,
        head=entries(tensors[head_name].flatten().sigmoid() + connection_config.read_eps) if head_name else None,
    )


def _depth(config: Mapping[str, Any], source: str) -> int | None:
    """How many layers config.json says there are, if it does."""
    known = settings(config)
    return next((count(source, key, known[key]) for key in DEPTH if known.get(key) is not None), None)


def _main_path(sites: Sites, family: Family, depth: int | None, source: str) -> Sites:
    """The sublayers of the layers that config.json counts, or up to the last there is; further ones are not on it."""
    layers = 1 + max(layer for layer, _ in sites) if depth is None else depth
    path: list[Site] = [(layer, place) for layer in range(layers) for place in ("attention", "feedforward")]
    lacks = [
        f"layers.{layer}.{place} ({', '.join(missing)})"
        for layer, place in path
        if (missing := [part for part in family.parts if part not in sites.get((layer, place), {})])
    ]
    if lacks:
        shown = ", ".join(lacks[:4]) + (f" and {len(lacks) - 4} more" if len(lacks) > 4 else "")
        raise CheckpointError(f"{source}: of {family.title}'s hyper-connections, tensors are missing: {shown}.")
    return {site: sites[site] for site in path}


def _size(family: Family, sites: Sites, files: TensorFiles, config: Mapping[str, Any]) -> tuple[int, int]:
    """n and C, which config.json, the family's rule and every tensor's shape agree about."""
    places = files.entries(name for parts in sites.values() for name in parts.values())
    first = places[next(iter(sites.values()))[family.projection]]
    logits, inputs = family.logits_and_inputs(first.shape)
    n, width = streams_and_width(family, logits, inputs, config, files.store.name)
    if family.streams_of(logits) != n or n * width != inputs:
        raise CheckpointError(
            f"{files.store.name}: {first.name} is {list(first.shape)}, which is not {family.title}'s for n = {n} "
            f"streams ({family.streams_key or 'no key'} in config.json) of width {width} (hidden_size)."
        )
    for parts in sites.values():
        for part, name in parts.items():
            _check(family, part, places[name], n, width, files.store.name)
    return n, width


def _check(family: Family, part: str, entry: Entry, n: int, width: int, source: str) -> None:
    wanted = family.size(part, n, width)
    transposed = part == family.projection and family.logits_and_inputs(entry.shape) != (family.logits(n), n * width)
    if math.prod(entry.shape) != wanted or transposed:
        raise CheckpointError(
            f"{source}: {entry.name} is {list(entry.shape)}, which is not {family.title}'s for n = {n} streams of "
            f"width {width}: {wanted} numbers."
        )


def _connection_config(family: Family, n: int, config: Mapping[str, Any], source: str) -> ConnectionConfig:
    known = settings(config)
    values: dict[str, Any] = {}
    for key, (theirs, default) in family.keys.items():
        value = known.get(theirs, default)
        if key == "iterations":
            values[key] = count(source, theirs, value)
        else:
            values[key] = number(source, theirs, value, 0, LARGEST_CONSTANT)
    order = OTHER_ORDER[family.order] if family.transposed else family.order
    values |= family.constants
    return ConnectionConfig(mixer=family.mixer, streams=n, order=order, single_pass=family.single_pass, **values)


def _connection(
    family: Family, config: ConnectionConfig, width: int, index: int, sublayers: int, parts: Mapping[str, Tensor]
) -> ManifoldConnection:
    """Our connection with the family's parameters, in our convention."""
    projection = parts[family.projection]
    if family.input_major:
        projection = projection.T
    if family.shrunk:
        projection = projection / projection.shape[1] ** 0.5
    if family.gain is not None:
        projection = projection * parts[family.gain].flatten()
    bias = torch.cat([parts[part].flatten() for part in family.biases])
    if family.transposed:
        projection, bias = (_receivers_first(rows, config.streams) for rows in (projection, bias))
    with torch.random.fork_rng(devices=[]):  # its start is drawn, and replaced
        connection = ManifoldConnection(config, width, index, sublayers)
    gate = torch.cat([parts[part].flatten() for part in family.gates])
    connection.load_state_dict({"projection": projection.contiguous(), "gate": gate, "bias": bias}, assign=True)
    return connection.requires_grad_(False)


def _receivers_first(rows: Float[Tensor, "logits ..."], n: int) -> Float[Tensor, "logits ..."]:
    """Logits of pre, post and res, with those of res turned from (sender, receiver) to (receiver, sender)."""
    pre_and_post, res = rows.split([2 * n, n * n])
    return torch.cat([pre_and_post, res.unflatten(0, (n, n)).transpose(0, 1).flatten(0, 1)])
