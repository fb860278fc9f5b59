"""How much of the embedding is left at every depth: linear ESTIMATES, each with its sampling error."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhc_train.diagnostics.observation import Observation
from mhc_train.files import finite

MOST_TOKENS = 2048
LEAST_TOKENS = 64
MOST_DIMENSIONS = 512
"""Numbers a token that are looked at; of more, a random projection."""
SEED = 0
"""Of the projection: the same for every place and every model of one shape."""
FOLDS = 5
RUNS = 32
"""Units of consecutive tokens, where there are no sequences to be kept together."""
PENALTIES = tuple(10.0**power for power in range(-8, 5, 2))
"""Of the ridge, times the variance of X in a dimension, on average over those that tokens can span; the last leaves
hardly more than the mean."""
READ_OUT = "read-out"


def information(
    observation: Observation, sequence_length: int | None = None, most_tokens: int = MOST_TOKENS
) -> list[dict[str, Any]]:
    """Estimate what is linearly left of the embedding in the streams X_l, before every sublayer and after the last.

    - `r2`: the share of the embedding's variance that a ridge regression on X_l, n C numbers a token, predicts on
      tokens that it was not fitted on, in 5 folds; its penalty is chosen within the others. What can be learned from so
      many tokens: biased downwards, the more the fewer they are for n C. Below 0 it is worse than the mean.
    - `r2_new`: the same, of the tokens whose embedding does not occur among those that were fitted. A text's tokens
      repeat, and where one is recognised its embedding is known; here that does not help.
    - `cka`: linear centred kernel alignment of the embedding and X_l, of the unbiased estimates of HSIC (Song et al.,
      2012, Eq. 5): near 0 for independent streams, where the usual one is near 1 if tokens are few for n C.

    All of a sequence is in one fold. Standard errors are a jackknife over sequences, of r2 also one over folds: see
    `_explained`. Without at least 5 sequences, runs of consecutive tokens take their place, and standard errors are too
    small by what neighbouring runs have in common.

    Where n C is above 512, channels are projected onto 512 / n directions first, by one Gaussian random matrix for the
    embedding, all streams and all places, so that n C below is 512: mixing streams still loses nothing, and a copy of
    the embedding is still found whole. All three then are estimates of what is so of the projection. What is apart from
    the embedding in all channels may share directions with it there, which lowers r2 and cka; but so many tokens are
    more for fewer numbers, which raises r2.

    Args:
        observation: with streams.
        sequence_length: tokens of a sequence, if the observation's tokens are sequences one after the other.
        most_tokens: use so many at most, evenly spaced. A place takes about a second for n C = 512, and hardly longer
            for more.

    Returns:
        One entry a place: index, name (of the sublayer that comes next, "read-out" at last), tokens, units and
        dimensions (n C, or at most 512) used, unit ("sequence" or "run of tokens"), and r2, r2_new and cka, each
        `{estimate, standard_error}`; null where undefined or not finite. Empty where streams were not observed, or
        fewer than 64 tokens are used.
    """
    places = [crossing.streams for crossing in observation.crossings] + [observation.last]
    streams = [place for place in places if place is not None]
    if len(streams) < len(places):
        return []
    kept, units, unit = _sample(len(streams[0]), sequence_length, most_tokens)
    if len(units) < LEAST_TOKENS:
        return []
    n, channels = streams[0].shape[1:]
    projection = _projection(n, channels, streams[0].device) if n * channels > MOST_DIMENSIONS else None
    dimensions = n * (channels if projection is None else projection.shape[1])
    embedding = _Embedding.of(streams[0][kept].mean(1, dtype=torch.float64), units.to(streams[0].device), projection)
    about = {"tokens": len(units), "units": embedding.keep.shape[1] - 1, "unit": unit, "dimensions": dimensions}
    return [
        {"index": index, "name": name} | about | _estimates(_projected(X[kept], projection).flatten(1), embedding)
        for index, (name, X) in enumerate(zip([*observation.names, READ_OUT], streams, strict=True))
    ]


class _Kernel(NamedTuple):
    """Inner products of different tokens, 0 on the diagonal, and what every alignment with another kernel needs."""

    gram: Float[Tensor, "tokens tokens"]
    rows: Float[Tensor, "tokens subsets"]
    """Row sums over every subset of the tokens."""

    @classmethod
    def of(cls, X: Float[Tensor, "tokens p"], keep: Float[Tensor, "tokens subsets"]) -> "_Kernel":
        # What is estimated does not depend on the mean; its rounding does.
        X = X - X.mean(0)
        gram = (X @ X.mT).fill_diagonal_(0)
        return cls(gram, gram @ keep)


class _Embedding(NamedTuple):
    """What is to be found again, and how tokens are held out."""

    values: Float[Tensor, "tokens m"]
    """Projected, as the streams are."""
    kernel: _Kernel
    variance: Float[Tensor, " subsets"]
    """Its HSIC with itself."""
    keep: Float[Tensor, "tokens subsets"]
    """Indicators of all tokens, and of all but one unit's, for each unit."""
    folds: Int[Tensor, " tokens"]
    new: Bool[Tensor, " tokens"]
    """Whether a token's embedding is that of no token in another fold."""

    @classmethod
    def of(
        cls, values: Float[Tensor, "tokens C"], units: Int[Tensor, " tokens"], projection: Float[Tensor, "C m"] | None
    ) -> "_Embedding":
        own = F.one_hot(units).double()
        keep = torch.cat([torch.ones_like(own[:, :1]), 1 - own], 1)
        folds = units * FOLDS // own.shape[1]
        types = values.unique(dim=0, return_inverse=True)[1]
        new = torch.zeros_like(types, dtype=torch.bool)
        for fold in range(FOLDS):
            new |= (folds == fold) & ~torch.isin(types, types[folds != fold])
        values = _projected(values, projection)  # after equal ones were found: a product may round them differently
        kernel = _Kernel.of(values, keep)
        return cls(values, kernel, _hsic(kernel, kernel, keep), keep, folds, new)


def _projection(n: int, channels: int, device: torch.device) -> Float[Tensor, "C m"]:
    """Of every stream's channels, Gaussian; the same on every device."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(channels, max(1, MOST_DIMENSIONS // n), generator=generator).to(device)


def _projected(
    values: Float[Tensor, "*tokens C"], projection: Float[Tensor, "C m"] | None
) -> Float[Tensor, "*tokens m"]:
    """In float64; the product itself in float32, as exact as the streams are."""
    return (values if projection is None else values.float() @ projection).double()


def _sample(tokens: int, length: int | None, most: int) -> tuple[slice, Int[Tensor, " kept"], str]:
    """Which tokens to use, the unit that each of them belongs to (0, 1, ...), and what a unit is."""
    kept = slice(None, None, math.ceil(tokens / most))
    numbers = torch.arange(tokens)[kept]
    if length is not None and tokens // length >= FOLDS:
        return kept, (numbers // length).unique(return_inverse=True)[1], "sequence"
    return kept, torch.arange(len(numbers)) * RUNS // len(numbers), "run of tokens"


def _estimates(X: Float[Tensor, "tokens p"], embedding: _Embedding) -> dict[str, Any]:
    if not (X.isfinite().all() and embedding.values.isfinite().all()):
        return dict.fromkeys(("r2", "r2_new", "cka"), {"estimate": None, "standard_error": None})
    if X.shape[1] > len(X):
        # As many numbers a token as there are tokens, with the same inner products: a ridge regression in dual form.
        X = torch.linalg.qr(X.mT, mode="r").R.mT
    errors, deviations = _held_out(X, embedding.values, embedding.folds)
    new = embedding.new.unsqueeze(1)
    return {
        "r2": _explained(errors, deviations, embedding.keep),
        "r2_new": _explained(errors * new, deviations * new, embedding.keep),
        "cka": _estimate(_alignment(X, embedding)),
    }


def _explained(
    errors: Float[Tensor, "tokens drops"],
    deviations: Float[Tensor, "tokens drops"],
    keep: Float[Tensor, "tokens subsets"],
) -> dict[str, float | None]:
    """R^2 and the larger of two standard errors, each blind to something.

    Over units, regressions stay as they are: too small where tokens are few. Over folds, they are made again without
    the fold, but five are few to tell a spread by.
    """
    over_units = 1 - errors[:, 0] @ keep / (deviations[:, 0] @ keep)
    return _estimate(over_units, 1 - errors.sum(0) / deviations.sum(0))


def _estimate(*subsets: Float[Tensor, " _"]) -> dict[str, float | None]:
    """The first value, of everything, and the largest of the standard errors."""
    error = torch.stack([_jackknife(values[1:]) for values in subsets]).amax()
    return {"estimate": finite(subsets[0][0].item()), "standard_error": finite(error.item())}


def _jackknife(values: Float[Tensor, " groups"]) -> Float[Tensor, ""]:
    """The standard error of an estimate by its values without each of the groups."""
    return ((values - values.mean()).square().sum() * (len(values) - 1) / len(values)).sqrt()


def _held_out(
    X: Float[Tensor, "tokens p"], Y: Float[Tensor, "tokens C"], folds: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, "tokens drops"], Float[Tensor, "tokens drops"]]:
    """Squared distance of every token's Y from its prediction by the other folds, and from the other folds' mean.

    The first column is of all folds; each of the others is of all but one, and 0 at that one's tokens. Folds ascend
    from token to token.
    """
    # A fit does not depend on where zero is; its rounding does.
    X, Y = torch.cat([X - X.mean(0), torch.ones_like(X[:, :1])], 1), Y - Y.mean(0)
    parts = [(X[folds == fold], Y[folds == fold]) for fold in range(FOLDS)]
    moments = torch.stack([x.mT @ torch.cat([x, y], 1) for x, y in parts])
    drops = torch.cat([torch.zeros_like(moments[:1]), moments])
    errors, deviations = torch.zeros(2, len(X), len(drops), dtype=X.dtype, device=X.device)
    for fold, part in enumerate(parts):
        others, chooser = moments.sum(0) - moments[fold], (fold + 1) % FOLDS
        fits = _ridge(others - moments[chooser], PENALTIES)
        losses = [_distances(*parts[chooser], fit).sum().item() for fit in fits]
        best = PENALTIES[losses.index(min(losses))]
        for column, drop in enumerate(drops):
            if column != fold + 1:
                errors[folds == fold, column] = _distances(*part, _ridge(others - drop, (best,))[0])
                deviations[folds == fold, column] = _distances(*part, _mean(others - drop))
    return errors, deviations


def _distances(
    x: Float[Tensor, "tokens p1"], y: Float[Tensor, "tokens C"], fit: Float[Tensor, "p1 C"]
) -> Float[Tensor, " tokens"]:
    """Squared errors of a fit, a number a token."""
    return (y - x @ fit).square().sum(1)


def _ridge(moments: Float[Tensor, "p1 p1C"], penalties: tuple[float, ...]) -> list[Float[Tensor, "p1 C"]]:
    """A regression with each penalty, the intercept last, from the moments `[X 1]^T [X 1 Y]` of its tokens."""
    p = len(moments) - 1
    total, tokens = moments[p], moments[p, p]
    centred = moments[:p] - torch.outer(total[:p], total) / tokens
    scale = centred[:, :p].diagonal().mean()
    unit = torch.eye(p, dtype=moments.dtype, device=moments.device) * torch.where(scale > 0, scale, 1.0)
    factors = [torch.linalg.cholesky(centred[:, :p] + penalty * unit) for penalty in penalties]
    slopes = [torch.cholesky_solve(centred[:, p + 1 :], factor) for factor in factors]
    return [torch.cat([slope, ((total[p + 1 :] - total[:p] @ slope) / tokens).unsqueeze(0)]) for slope in slopes]


def _mean(moments: Float[Tensor, "p1 p1C"]) -> Float[Tensor, "p1 C"]:
    """As a fit: intercepts without slopes."""
    p = len(moments) - 1
    return F.pad(moments[p:, p + 1 :] / moments[p, p], (0, 0, p, 0))


def _alignment(X: Float[Tensor, "tokens p"], embedding: _Embedding) -> Float[Tensor, " subsets"]:
    """Centred kernel alignment with the embedding over every subset."""
    kernel, keep = _Kernel.of(X, embedding.keep), embedding.keep
    return _hsic(kernel, embedding.kernel, keep) / (_hsic(kernel, kernel, keep) * embedding.variance).sqrt()


def _hsic(K: _Kernel, L: _Kernel, keep: Float[Tensor, "tokens subsets"]) -> Float[Tensor, " subsets"]:
    """The unbiased estimate of every subset (Song et al., 2012, Eq. 5), but for a factor that alignments do not see."""
    m = keep.sum(0)
    trace = ((K.gram * L.gram @ keep) * keep).sum(0)
    totals = (K.rows * keep).sum(0) * (L.rows * keep).sum(0)
    rows = (K.rows * L.rows * keep).sum(0)
    return trace + totals / ((m - 1) * (m - 2)) - 2 / (m - 2) * rows
