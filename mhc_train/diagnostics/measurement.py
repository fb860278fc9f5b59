"""From an observation to a document of numbers: every measurement, per sublayer and per composite, over tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from mhc_train.diagnostics import signals
from mhc_train.diagnostics.laws import judge
from mhc_train.diagnostics.maps import MEASURES, backward_composites, forward_composites
from mhc_train.diagnostics.observation import Crossing, Observation

SCHEMA_VERSION = 1
CONVENTION = "rows receive, columns send: X'[i] = sum_j H_res[i, j] X[j]"
QUANTILES = {"min": 0.0, "median": 0.5, "p99": 0.99, "max": 1.0}


def measure(observation: Observation) -> dict[str, Any]:
    """Everything that is known of a residual path, as plain JSON data; numbers are `{mean, min, median, p99, max}`."""
    maps = [crossing.res.double() for crossing in observation.crossings]
    document: dict[str, Any] = {
        "convention": CONVENTION,
        "streams": maps[0].shape[-1],
        "tokens": maps[0].shape[0],
        "basis": observation.basis,
        "loss": observation.loss,
        "sublayers": _sublayers(observation, maps),
        "composite": {
            "forward": _curve(observation.names, forward_composites(maps), _token_means(forward_composites, maps)),
            "backward": _curve(observation.names, backward_composites(maps), _token_means(backward_composites, maps)),
        },
    }
    return document | {"laws": judge(document, observation.guarantees)}


def _sublayers(observation: Observation, maps: list[Tensor]) -> list[dict[str, Any]]:
    rows = zip(observation.names, observation.crossings, maps, strict=True)
    return [
        {"index": index, "name": name}
        | {key: statistics(values) for key, values in _numbers(crossing, H).items()}
        | {"mean_maps": {key: getattr(crossing, key).mean(0).tolist() for key in ("pre", "post", "res")}}
        for index, (name, crossing, H) in enumerate(rows)
    ]


def _numbers(crossing: Crossing, H: Tensor) -> dict[str, Tensor]:
    """All measurements of one sublayer, a number a token."""
    numbers = {name: function(H) for name, function in MEASURES.items()}
    if crossing.streams is not None and crossing.output is not None:
        streams = crossing.streams.double()
        numbers |= signals.energy_ledger(streams, H, crossing.post.double(), crossing.output.double())
        numbers |= {
            "stream_difference": signals.stream_difference(streams),
            "effective_streams": signals.effective_streams(streams),
            "stream_cosine": signals.stream_cosine(streams),
        }
    if crossing.backward is not None:
        numbers["gradient_energy_gain"] = signals.gradient_energy_gain(crossing.backward.after.double(), H)
    return numbers


def _curve(names: list[str], composites: list[Tensor], of_means: list[Tensor]) -> list[dict[str, Any]]:
    """One entry a composite: statistics over tokens, and the composite of token-mean maps, labelled as such."""
    return [
        {"index": index, "name": name}
        | {key: statistics(function(P)) for key, function in MEASURES.items()}
        | {"of_token_means": {key: finite(function(mean).item()) for key, function in MEASURES.items()}}
        | {"mean_map": P.mean(0).tolist()}
        for index, (name, P, mean) in enumerate(zip(names, composites, of_means, strict=True))
    ]


def _token_means(composites: Any, maps: list[Tensor]) -> list[Tensor]:
    means: list[Tensor] = composites([H.mean(0) for H in maps])
    return means


def statistics(values: Tensor) -> dict[str, float | None]:
    """`{mean, min, median, p99, max}` over tokens; null where a statistic is not finite."""
    flat = values.double().flatten()
    quantiles = torch.quantile(flat, flat.new_tensor(list(QUANTILES.values())))
    numbers = {"mean": flat.mean().item()} | dict(zip(QUANTILES, quantiles.tolist(), strict=True))
    return {name: finite(number) for name, number in numbers.items()}


def finite(number: float) -> float | None:
    """The number, if JSON has it."""
    return number if math.isfinite(number) else None
