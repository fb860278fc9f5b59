"""Diagnoses as documents of numbers that are known in closed form: complete ones, and such as know the maps alone."""

import itertools
import math
from typing import Any

Document = dict[str, Any]
SHIFT = {"mean": 1.05, "min": 0.9, "median": 1.0, "p99": 1.1, "max": 1.2}
"""How statistics over tokens lie about the median."""


def diagnosis(
    checkpoint: str = "runs/20260101-000000-mhc-0a1b2c/checkpoints/step-00000100",
    *,
    streams: int = 4,
    sublayers: int = 6,
    gain: float = 1.0,
    contraction: float = 0.25,
    signals: bool = True,
    estimates: bool = True,
    biases: bool = False,
    verdicts: dict[str, str] | None = None,
) -> Document:
    """Every map is `gain * ((1 - contraction) I + contraction J / n)`, whose gains and products are plain powers.

    Args:
        checkpoint: what the document is named after.
        streams: n.
        sublayers: L.
        gain: of each sublayer.
        contraction: the share of each map that averages the streams.
        signals: whether streams, gradients and the mixer's logits were seen too.
        estimates: whether information and ablations were measured.
        biases: whether the document was made without data, and has the biases alone beside it.
        verdicts: of laws, where they are not ok.
    """
    names = [f"layers.{index // 2}.{('attention', 'feedforward')[index % 2]}" for index in range(sublayers)]
    document = {
        "schema_version": 2,
        "checkpoint": checkpoint,
        "step": 100,
        "connection": "mHC",
        "convention": "rows receive, columns send: X'[i] = sum_j H_res[i, j] X[j]",
        "streams": streams,
        "tokens": 4096,
        "basis": "its own validation tokens" if signals else "sampled inputs of unit size",
        "loss": 6.5 if signals else None,
        "sublayers": [
            {"index": index, "name": name}
            | measures(streams, gain, contraction, 1)
            | (_signals(streams, index) if signals else {})
            | {
                "mean_maps": {
                    "pre": [1 / streams] * streams,
                    "post": [1.0] * streams,
                    "res": matrix(streams, gain, contraction, 1),
                }
            }
            for index, name in enumerate(names)
        ],
        "composite": _composites(names, streams, gain, contraction),
        "laws": _laws(names, gain, verdicts or {}),
    }
    if estimates:
        document |= {"information": _information(names), "ablations": _ablations(names)}
    if biases:
        alone = {"streams": streams, "sublayers": sublayers, "gain": gain, "contraction": contraction / 2}
        document["biases"] = diagnosis(checkpoint, **alone, signals=False, estimates=False) | {"tokens": 1}  # type: ignore[arg-type]
    return document


def over_tokens(median: float | None) -> dict[str, float | None]:
    """Statistics about a median."""
    return {name: None if median is None else median * factor for name, factor in SHIFT.items()}


def exactly(value: float | None) -> dict[str, float | None]:
    """Statistics of a number that is the same for every token."""
    return dict.fromkeys(SHIFT, value)


def matrix(streams: int, gain: float, contraction: float, power: int) -> list[list[float]]:
    """The product of so many maps."""
    kept = (1 - contraction) ** power
    return [[gain**power * (kept * (i == j) + (1 - kept) / streams) for j in range(streams)] for i in range(streams)]


def measures(streams: int, gain: float, contraction: float, power: int) -> dict[str, Any]:
    """What is known of the product of so many maps."""
    total, kept = gain**power, (1 - contraction) ** power
    values = {
        "forward_gain": total,
        "backward_gain": total,
        "row_error": abs(total - 1),
        "column_error": abs(total - 1),
        "log_mass": abs(math.log(total)),
        "smallest_entry": total * (1 - kept) / streams,
        "least_sent": total,
        "most_received": total,
        "spectral_norm": total,
        "smallest_singular_value": total * kept,
        "log_determinant": streams * math.log(total) + (streams - 1) * math.log(kept),
        "effective_rank": 1 + (streams - 1) * kept,
        "stable_rank": 1 + (streams - 1) * kept**2,
        "entropy": 1 - kept,
        "permutation_distance": (1 - kept) * (1 - 1 / streams),
        "dobrushin": total * kept,
        "difference_gain": total * kept if streams > 1 else None,
        "received_gini": 0.0,
    }
    return {name: exactly(value) for name, value in values.items()}


def _signals(streams: int, index: int) -> dict[str, Any]:
    """Ledgers add up; everything grows with depth."""
    depth, several = index + 1.0, streams > 1
    forward = {"energy_residual": depth, "energy_injected": 1.5, "energy_cross": -0.5}
    backward = {
        "gradient_mixer": depth,
        "gradient_branch": 0.5,
        "gradient_coefficients": 0.1,
        "gradient_mixer_branch": -0.2,
        "gradient_mixer_coefficients": 0.05,
        "gradient_branch_coefficients": 0.05,
    }
    others = {
        "logit_range": 6 + index,
        "mixer_drift": 0.01 * depth,
        "pre_gini": 0.2,
        "post_gini": 0.1,
        "energy_gain": 0.95,
        "mass_drift": 1e-6,
        "majorisation_excess": 0.0,
        "stream_difference": (0.0 if index == 0 else 0.1 * depth) if several else None,
        "effective_streams": streams - 0.5 if several else 1.0,
        "stream_cosine": 0.5 if several else None,
        "least_energy_share": 0.8 / streams,
        "outlier": 4 + index,
        "gradient_energy_gain": 0.97,
        "mixer_gradient": 10.0**-index,
    }
    ledger = forward | backward
    ledger |= {"energy_in": depth, "energy_out": sum(forward.values())}
    ledger |= {"gradient_in": 1.0, "gradient_out": sum(backward.values())}
    return {name: over_tokens(value) for name, value in (ledger | others).items()}


def _composites(names: list[str], streams: int, gain: float, contraction: float) -> Document:
    depth = len(names)

    def entry(index: int, power: int) -> Document:
        found = measures(streams, gain, contraction, power)
        means = {name: value["median"] for name, value in found.items()}
        mean_map = matrix(streams, gain, contraction, power)
        return {"index": index, "name": names[index]} | found | {"of_token_means": means, "mean_map": mean_map}

    def triangle(measure: str) -> list[list[float | None]]:
        values = [None, *(measures(streams, gain, contraction, power)[measure]["max"] for power in range(1, depth + 1))]
        return [[values[max(0, b - a + 1)] for b in range(depth)] for a in range(depth)]

    half = depth // 2
    parts = {"first": half, "second": depth - half, "whole": depth}
    return {
        "forward": [entry(index, index + 1) for index in range(depth)],
        "backward": [entry(index, depth - index) for index in range(depth)],
        "spans": {
            name: triangle(name) for name in ("forward_gain", "backward_gain", "spectral_norm", "difference_gain")
        },
        "halves": {name: matrix(streams, gain, contraction, power) for name, power in parts.items()},
    }


LAWS = {
    "mass": ("column_error", 1e-3, 1e-2),
    "energy": ("smallest_singular_value", 0.999, 0.98),
    "time_symmetry": ("row_error", 1e-3, 1e-2),
    "dissipation": ("spectral_norm", 1.001, 1.02),
    "closure_forward": ("forward_gain", 2.0, 10.0),
    "no_collapse": ("difference_gain", 1e-2, 0.0),
}


def _laws(names: list[str], gain: float, verdicts: dict[str, str]) -> list[Document]:
    """Every law is ok, except as `verdicts` says."""
    return [_law(law, verdicts.get(law, "ok"), names, gain) for law in LAWS]


def _law(law: str, verdict: str, names: list[str], gain: float) -> Document:
    measure, ok, warn = LAWS[law]
    judged = verdict in ("ok", "warn", "fail")
    evidence = {"measure": measure, "statistic": "max", "value": gain, "ok": ok, "warn": warn}
    return {
        "law": law,
        "verdict": verdict,
        "worst": names[-1] if judged else None,
        "evidence": evidence if judged else None,
        "declared": {"tolerance": 1e-3, "logit_range": 4.0} if law == "mass" else None,
        "meaning": f"what {law} means",
        "advice": f"what to try about {law}",
    }


def _information(names: list[str]) -> list[Document]:
    def estimate(value: float) -> Document:
        return {"estimate": value, "standard_error": 0.02}

    return [
        {"index": index, "name": name, "r2": estimate(0.95**index), "cka": estimate(0.9**index)}
        for index, name in enumerate(names)
    ]


def _ablations(names: list[str]) -> list[Document]:
    kinds = {"identity": 0.01, "uniform": 0.2}
    return [
        {"sublayer": name, "kind": kind, "loss_difference": cost * (1 + len(name) % 3), "standard_error": 0.004}
        for (kind, cost), name in itertools.product(kinds.items(), [*names, "all"])
    ]


def untrained(connection: str, gains: dict[int, float | None], kept: float | None = 0.5, streams: int = 4) -> Document:
    """What `diagnose --at-init` says of a path whose composites have these gains, by their sublayers."""
    return {
        "schema_version": 2,
        "connection": connection,
        "convention": "rows receive, columns send: X'[i] = sum_j H_res[i, j] X[j]",
        "streams": streams,
        "jitter": 0.1,
        "tokens": 256,
        "seed": 0,
        "basis": "sampled inputs",
        "depths": [
            {
                "sublayers": depth,
                "forward_gain": exactly(gain),
                "backward_gain": exactly(gain),
                "difference_gain": exactly(kept),
                "log_determinant": exactly(0.0),
            }
            for depth, gain in gains.items()
        ],
        "amplifier": [{"sublayers": depth, "gain": 1.1**depth} for depth in gains],
    }
