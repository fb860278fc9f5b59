"""What a residual path does to signal, gradients and stream differences before any training, as its depth grows."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mhc_train.connections import Connection, Path, build_path
from mhc_train.diagnostics.maps import measures
from mhc_train.diagnostics.measurement import CONVENTION, SCHEMA_VERSION, summarise
from mhc_train.errors import ConfigError
from mhc_train.model.initialise import seeded
from mhc_train.schema import Config

AMPLIFICATION = 1.1
"""What each sublayer of the linear amplifier multiplies its streams by: a tenth more, too little to be noticed."""
TOKENS = 256
"""How many are drawn where nothing else is asked for: enough for a 99th percentile."""
BASIS = "sampled inputs: normal streams of unit RMS, drawn anew for every sublayer and token (data-free)"


def at_init(config: Config, depths: list[int], jitter: float, tokens: int, seed: int) -> dict[str, Any]:
    """Measure the composites `H_L ... H_1` of an untrained path of every depth L; no model and no data are needed.

    Beside them stands the linear amplifier `H_res = 1.1 I`, every gain of whose composite is 1.1^L exactly.

    Args:
        config: a configuration; its connection and the model's width count, not its number of layers.
        depths: numbers of sublayers L. Of the paths of one seed a deeper one begins as a shallower one does, unless
            the mixer depends on the model's depth.
        jitter: standard deviation of normal noise on the logits of every mixer, drawn anew for every sublayer and
            token, as training might move them; 0 measures the start itself. It is in units of each mixer's own logits
            (for HC entries of H_res, for mHC-lite weights of permutations, for go-mHC a Cayley transform's
            parameters), so that the same number moves one mixer's H_res further than another's.
        tokens: how many to draw.
        seed: of the path's weights, the streams and the noise. A model of the same seed, width and depth starts with
            this path.

    Returns:
        A document: under `depths`, for each its number of `sublayers` and every measurement of the whole composite as
        `{mean, min, median, p99, max}` over tokens; under `amplifier`, for each the `gain` (null beyond what a float
        holds).

    Raises:
        ConfigError: an argument makes no sense, or the connection cannot be built that deep, or has no known logits to
            add noise to.
    """
    _check(depths, jitter, tokens)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "at init",
        "connection": config.connection.title,
        "streams": config.connection.streams,
        "tokens": tokens,
        "seed": seed,
        "jitter": jitter,
        "basis": BASIS,
        "convention": CONVENTION,
        "depths": [_entry(config, depth, jitter, tokens, seed) for depth in depths],
        "amplifier": [{"sublayers": depth, "gain": amplifier_gain(depth)} for depth in depths],
    }


def amplifier_gain(sublayers: int) -> float | None:
    """Every gain of a composite of that many maps `1.1 I`: 1.1^L; None beyond what a float holds."""
    try:
        return float(AMPLIFICATION**sublayers)
    except OverflowError:
        return None


def composite(path: Path, dim: int, jitter: float, tokens: int, seed: int) -> Float[Tensor, "tokens n n"]:
    """The product of a path's maps over all its sublayers, later ones on the left, in float64.

    Args:
        path: of connections of width `dim`.
        dim: width C.
        jitter: standard deviation of the noise on the mixers' logits, in their own units.
        tokens: how many to draw.
        seed: of streams and noise.

    Raises:
        ConfigError: there is noise, but a connection has no known logits to add it to.
    """
    # Two sources, so that all mixers see the same streams, however many logits they take.
    inputs, noise = (torch.Generator().manual_seed(2 * seed + part) for part in (0, 1))
    product = torch.eye(path.streams, dtype=torch.float64).repeat(tokens, 1, 1)
    for index in range(len(path)):
        streams = torch.randn(1, tokens, path.streams, dim, generator=inputs)
        product = _mixed(path[index], streams, jitter, noise).squeeze(0).double() @ product
    return product


def _mixed(
    connection: Connection, streams: Float[Tensor, "1 tokens n C"], jitter: float, noise: torch.Generator
) -> Float[Tensor, "1 tokens n n"]:
    """H_res of every token, made of its logits plus noise."""
    mixing = connection.mixing(streams)
    if mixing is None or jitter == 0:
        res = connection.maps(streams).res
        if jitter and not res.equal(torch.eye(connection.streams).expand_as(res)):
            raise ConfigError(
                f"connection {connection.config.title} does not say what logits it makes H_res of (its method "
                "`mixing`), so that there is nothing to add noise to; take jitter 0."
            )
        return res
    mixer, logits = mixing
    return mixer(logits + jitter * torch.randn(logits.shape, generator=noise))


def _entry(config: Config, sublayers: int, jitter: float, tokens: int, seed: int) -> dict[str, Any]:
    """The measurements of one depth."""
    try:
        with seeded(seed), torch.no_grad():
            path = build_path(config.connection, config.model.dim, sublayers)
            product = composite(path, config.model.dim, jitter, tokens, seed)
    except ValueError as error:
        raise ConfigError(f"connection {config.connection.title} over {sublayers} sublayers: {error}.") from error
    return {"sublayers": sublayers} | summarise(measures(product))


def _check(depths: list[int], jitter: float, tokens: int) -> None:
    problems = []
    if not depths or min(depths) < 1:
        problems.append(f"depths {depths}: must be numbers of sublayers, at least one and each at least 1.")
    if not 0 <= jitter < math.inf:
        problems.append(f"jitter {jitter}: must be 0 (as initialised) or a positive standard deviation, such as 0.1.")
    if tokens < 1:
        problems.append(f"tokens {tokens}: must be at least 1.")
    if problems:
        raise ConfigError(problems)
