"""From an observation to a document of numbers: every measurement, per sublayer and per composite, over tokens."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc_train.diagnostics import signals
from mhc_train.diagnostics.laws import judge
from mhc_train.diagnostics.maps import backward_composites, forward_composites, gini, measures, measures_of_each
from mhc_train.diagnostics.observation import Crossing, Observation
from mhc_train.diagnostics.promises import kept
from mhc_train.files import finite
from mhc_train.mixers import Guarantee

SCHEMA_VERSION = 2
CONVENTION = "rows receive, columns send: X'[i] = sum_j H_res[i, j] X[j]"
QUANTILES = {"min": 0.0, "median": 0.5, "p99": 0.99, "max": 1.0}
SPAN_TOKENS = 64
"""Tokens that the table of all spans looks at: it has L^2 / 2 entries."""
SPANS = {"forward_gain": "max", "backward_gain": "max", "spectral_norm": "max", "difference_gain": "median"}
"""What the table of all spans shows, and which statistic over tokens."""

Numbers = dict[str, Tensor]


def measure(observation: Observation) -> dict[str, Any]:
    """Everything that is known of a residual path, as plain JSON data; numbers are `{mean, min, median, p99, max}`.

    What was not observed is absent. A token for which a number has no meaning (a share of no energy at all) is left out
    of its statistics; null is a number that is not finite, or has a meaning for no token.
    """
    maps = [crossing.res.double() for crossing in observation.crossings]
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "convention": CONVENTION,
        "streams": maps[0].shape[-1],
        "tokens": maps[0].shape[0],
        "basis": observation.basis,
        "loss": None if observation.loss is None else finite(observation.loss),
        "sublayers": _sublayers(observation, maps),
        "composite": {
            "forward": _curve(observation.names, maps, forward_composites),
            "backward": _curve(observation.names, maps, backward_composites),
        },
    }
    return document | {"laws": judge(document, observation.guarantees, observation.renounced)}


def halves(observation: Observation) -> dict[str, Any]:
    """Token means of the composites of the first half of the sublayers, the second, and all (the paper's Figure 8)."""
    maps = [crossing.res.double() for crossing in observation.crossings]
    middle = max(1, len(maps) // 2)
    parts = {"first": maps[:middle], "second": maps[middle:], "whole": maps}
    return {name: entries(forward_composites(part)[-1].mean(0)) for name, part in parts.items() if part}


def spans(observation: Observation) -> dict[str, list[list[float | None]]]:
    """Of every span of sublayers a to b, at [a][b]; null for b < a. Over up to `SPAN_TOKENS` tokens, evenly spaced."""
    maps = [_spaced(crossing.res.double()) for crossing in observation.crossings]
    tables: dict[str, list[list[float | None]]] = {name: [] for name in SPANS}
    for first in range(len(maps)):
        found = measures(torch.stack(forward_composites(maps[first:])), SPANS)
        for name, statistic in SPANS.items():
            row = found[name].quantile(QUANTILES[statistic], dim=1).tolist()
            tables[name].append([*[None] * first, *map(finite, row)])
    return tables


def _spaced(maps: Tensor) -> Tensor:
    return maps[:: max(1, math.ceil(len(maps) / SPAN_TOKENS))]


def _sublayers(observation: Observation, maps: list[Tensor]) -> list[dict[str, Any]]:
    after = [crossing.streams for crossing in observation.crossings[1:]] + [observation.last]
    rows = zip(
        observation.names,
        observation.crossings,
        maps,
        measures_of_each(maps),
        _of_means([H.mean(0) for H in maps]),
        after,
        strict=True,
    )
    return [
        {"index": index, "name": name}
        | _sublayer(observation.guarantees, crossing, H, _of_maps(crossing, H, of_res), streams)
        | {"of_token_means": of_mean}
        for index, (name, crossing, H, of_res, of_mean, streams) in enumerate(rows)
    ]


def _sublayer(
    guarantees: tuple[Guarantee, ...], crossing: Crossing, H: Tensor, numbers: Numbers, after: Tensor | None
) -> dict[str, Any]:
    seen = _of_signal(crossing, H, after) | _of_gradient(crossing, H) | _not_finite(crossing)
    return {
        **summarise(numbers | seen),
        "promises": kept(guarantees, numbers),
        "mean_maps": {key: entries(getattr(crossing, key).mean(0)) for key in ("pre", "post", "res")},
    }


def _of_maps(crossing: Crossing, H: Tensor, of_res: Numbers) -> Numbers:
    """All that the maps say by themselves, a number a token."""
    numbers = of_res | {
        "pre_gini": gini(crossing.pre.double().abs()),
        "post_gini": gini(crossing.post.double().abs()),
    }
    if crossing.logits is not None:
        numbers["logit_range"] = crossing.logits.amax(-1) - crossing.logits.amin(-1)
    if crossing.logits is not None and crossing.initial is not None:  # what has no logits cannot drift
        initial = crossing.initial.double()
        numbers["mixer_drift"] = (H - initial).norm(dim=(-2, -1)) / initial.norm(dim=(-2, -1))
    return numbers


def _of_signal(crossing: Crossing, H: Tensor, after: Tensor | None) -> Numbers:
    """What the sublayer does to the streams, and in which state it leaves them."""
    if crossing.streams is None or crossing.output is None:
        return {}
    streams, output = crossing.streams.double(), crossing.output.double()
    numbers = signals.energy_ledger(streams, H, crossing.post.double(), output) | {
        "mass_drift": signals.mass_drift(streams, H),
        "majorisation_excess": signals.majorisation_excess(streams, H),
        "outlier": signals.outlier(output),
        "difference_before": signals.stream_difference(streams),
    }
    return numbers if after is None else numbers | _of_state(after.double())


def _of_state(streams: Tensor) -> Numbers:
    return {
        "stream_difference": signals.stream_difference(streams),
        "effective_streams": signals.effective_streams(streams),
        "stream_cosine": signals.stream_cosine(streams),
        "least_energy_share": signals.least_energy_share(streams),
    }


def _of_gradient(crossing: Crossing, H: Tensor) -> Numbers:
    """How the loss's gradient passes the sublayer, and what of it reaches the mixer and the sublayer's output.

    The loss is a mean over tokens; numbers are of the sum, whose gradients do not depend on how many tokens there are.
    """
    found = crossing.backward
    if found is None:
        return {}
    after, read, coefficients, total = (
        len(part) * part.double() for part in (found.after, found.read, found.coefficients, found.total)
    )
    branch = crossing.pre.double().unsqueeze(-1) * read.unsqueeze(-2)
    numbers = signals.gradient_ledger(after, H, branch, coefficients, total)
    numbers["gradient_difference"] = signals.stream_difference(after)
    written = (crossing.post.double().unsqueeze(-1) * after).sum(-2)
    numbers["output_gradient"] = written.norm(dim=-1)
    if found.logits is not None:
        numbers["mixer_gradient"] = len(after) * found.logits.double().norm(dim=-1)
        numbers["mixer_gradient_ratio"] = numbers["mixer_gradient"] / numbers["output_gradient"]
    return numbers


def _not_finite(crossing: Crossing) -> Numbers:
    """1 for every token of which something that was observed is not finite, else 0; gradients by themselves."""
    forwards = [crossing.pre, crossing.post, crossing.res, crossing.streams, crossing.output]
    numbers = {"not_finite": _any_not_finite([part for part in forwards if part is not None])}
    if crossing.backward is not None:
        back = crossing.backward
        numbers["gradient_not_finite"] = _any_not_finite([back.after, back.read, back.coefficients, back.total])
    return numbers


def _any_not_finite(parts: list[Tensor]) -> Tensor:
    return torch.stack([~part.flatten(1).isfinite().all(1) for part in parts]).any(0).double()


def _curve(
    names: list[str], maps: list[Tensor], composites: Callable[[list[Tensor]], list[Tensor]]
) -> list[dict[str, Any]]:
    """One entry a composite: statistics over tokens, and the composite of token-mean maps, labelled as such."""
    products = composites(maps)
    means = _of_means(composites([H.mean(0) for H in maps]))
    rows = zip(names, products, measures_of_each(products), means, strict=True)
    return [
        {"index": index, "name": name}
        | summarise(numbers)
        | {"of_token_means": of_mean}
        | {"mean_map": entries(P.mean(0))}
        for index, (name, P, numbers, of_mean) in enumerate(rows)
    ]


def _of_means(means: list[Tensor]) -> list[dict[str, float | None]]:
    """The measurements of each token-mean map, which are not the means of the tokens' measurements."""
    return [{key: finite(number.item()) for key, number in found.items()} for found in measures_of_each(means)]


def summarise(numbers: Numbers) -> dict[str, dict[str, float | None]]:
    """`{mean, min, median, p99, max}` of every measurement over the tokens that have it; null where not finite."""
    table = torch.stack([values.double().flatten() for values in numbers.values()])
    quantiles = torch.nanquantile(table, table.new_tensor(list(QUANTILES.values())), dim=1)
    rows = torch.cat([table.nanmean(1).unsqueeze(0), quantiles]).T.tolist()
    return {
        name: {statistic: finite(number) for statistic, number in zip(("mean", *QUANTILES), row, strict=True)}
        for name, row in zip(numbers, rows, strict=True)
    }


def statistics(values: Tensor) -> dict[str, float | None]:
    """`{mean, min, median, p99, max}` over the tokens that have a value; null where a statistic is not finite."""
    return summarise({"values": values})["values"]


def rounded(value: Any) -> Any:
    """A document, or a part of one, with the six digits that are read: thousands of them are kept in files."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return finite(float(f"{value:.6g}")) if isinstance(value, float) else value


def entries(values: Tensor) -> list[Any]:
    """A tensor's entries as nested lists, each if JSON has it."""
    return [entries(row) if values.ndim > 1 else finite(row.item()) for row in values]
