"""Causal ablations: what a checkpoint loses when its mixers are replaced, everywhere or one at a time."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhc_train.connections import Connection, Maps, Path, State
from mhc_train.errors import ConfigError
from mhc_train.files import finite
from mhc_train.model import Transformer

ALL = "all"
TOKENS_AT_ONCE = 4096
ROUNDING = 1e-5
"""Nats a token: what float32 alone may change a loss by when the same mixing is computed in another way."""

Alteration = Callable[[Tensor], Tensor]
"""From the H_res of every token, (batch, seq, n, n), to those that take their place."""


class Kind(NamedTuple):
    """One way to replace H_res."""

    replace: Callable[[Tensor, Tensor], Tensor]
    """From the mean H_res over the tokens of the measurement, (n, n), and every token's, (batch, seq, n, n)."""
    subject: str
    """What is shown to matter where the loss changes."""
    doing: str


KINDS = {
    "identity": Kind(
        lambda mean, res: torch.eye(len(mean), dtype=res.dtype, device=res.device).expand_as(res),
        "mixing",
        "replacing H_res by I",
    ),
    "token_mean": Kind(
        lambda mean, res: mean.expand_as(res),
        "that mixing depends on the token",
        "replacing H_res by its mean over tokens",
    ),
    "uniform": Kind(
        lambda mean, res: torch.full_like(res, 1 / len(mean)),
        "that mixing keeps streams apart",
        "replacing H_res by J/n",
    ),
    "diagonal": Kind(
        lambda mean, res: torch.diag_embed(res.diagonal(dim1=-2, dim2=-1)),
        "what streams receive from one another",
        "setting H_res to 0 off its diagonal",
    ),
    # Entries, row and column sums and singular values stay: only the address is wrong. A shift by one leaves no stream
    # in its place and no group of streams among themselves. It acts on the receivers, so that what a sublayer writes
    # and what the next one reads, by weights that were learned for their streams, meet the wrong content.
    "permuted": Kind(
        lambda mean, res: res.roll(1, -2),
        "which stream receives what",
        "sending what stream i receives to stream i + 1",
    ),
}
"""Every ablation by its name."""


@torch.no_grad()
def ablate(
    model: Transformer,
    blocks: Int[Tensor, "blocks seq_plus_1"],
    kinds: Sequence[str] = tuple(KINDS),
    per_sublayer: bool = False,
) -> list[dict[str, Any]]:
    """Measure what replacing H_res does to the loss; weights and modules are afterwards what they were.

    It tells what this checkpoint has come to rely on, not what mixing was worth to its training: for that, compare
    with a model that was trained without. The mixers of all runs, intact ones too, go through the same arithmetic.
    Costs 2 + kinds forward passes over `blocks`, with `per_sublayer` kinds more for every sublayer.

    Args:
        model: on any device, in float32.
        blocks: sequences of tokens, each with the token that follows it.
        kinds: names of `KINDS`.
        per_sublayer: also replace the H_res of every sublayer alone.

    Returns:
        A row for each place ("all", or a sublayer's name) and kind: its loss and loss_difference, ablated minus
        intact, in nats a token; standard_error of that difference, paired over the sequences, null where there is
        only one; sequences; verdict ("matters" from two standard errors on, "no effect shown", "not decided" without
        a standard error, "not finite"); meaning, the same in a sentence. Empty for a single stream.

    Raises:
        ConfigError: there is no such kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(f"there is no ablation {', '.join(unknown)}; there are {', '.join(KINDS)}")
    if model.path.streams == 1:
        return []
    batches = blocks.to(model.rotation.device).split(max(1, TOKENS_AT_ONCE // (blocks.shape[1] - 1)))
    means = _token_means(model, batches)
    intact = _losses(model, batches, [_keep] * len(means))
    places: dict[str, Sequence[int]] = {ALL: range(len(means))}
    if per_sublayer:
        places |= {name: [index] for index, name in enumerate(model.sublayer_names())}
    return [
        _row(place, kind, intact, _losses(model, batches, _alterations(kind, means, where)))
        for place, where in places.items()
        for kind in kinds
    ]


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """What `ablate` found, a sentence each: of every kind everywhere, then of every kind at single sublayers."""
    everywhere = [row["meaning"] for row in rows if row["sublayer"] == ALL]
    alone = [row for row in rows if row["sublayer"] != ALL]
    kinds = dict.fromkeys(row["kind"] for row in alone)
    return everywhere + [_of_sublayers([row for row in alone if row["kind"] == kind]) for kind in kinds]


@contextmanager
def altered(path: Path, alterations: Sequence[Alteration]) -> Iterator[None]:
    """Within, every sublayer's H_res is altered by its own function, and really applied; afterwards nothing is.

    Args:
        path: a model's, of any kind.
        alterations: one a sublayer.
    """
    own = [path[index] for index in range(len(path))]
    try:
        for index, (connection, alter) in enumerate(zip(own, alterations, strict=True)):
            path.connections[index] = _Altered(connection, alter)
        yield
    finally:
        for index, connection in enumerate(own):
            path.connections[index] = connection


class _Altered(Connection):
    """A connection with an altered H_res. It writes as every connection does: its own may know a shortcut."""

    def __init__(self, own: Connection, alter: Alteration) -> None:
        super().__init__(own.config, own.dim, own.index, own.sublayers)
        self.own, self.alter = own, alter

    def maps(self, streams: Float[Tensor, "batch seq n C"]) -> Maps:
        maps = self.own.maps(streams)
        return maps._replace(res=self.alter(maps.res))

    def read(
        self, streams: Float[Tensor, "batch seq n C"], pre: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq C"]:
        return self.own.read(streams, pre)


def _keep(res: Tensor) -> Tensor:
    return res


def _alterations(kind: str, means: list[Tensor], where: Sequence[int]) -> list[Alteration]:
    """The kind's where it is wanted, none elsewhere."""
    replace = KINDS[kind].replace
    return [partial(replace, mean) if index in where else _keep for index, mean in enumerate(means)]


def _losses(model: Transformer, batches: Sequence[Tensor], alterations: list[Alteration]) -> Float[Tensor, " blocks"]:
    """Nats a token of every sequence, float64."""
    with altered(model.path, alterations):
        return torch.cat([_sequence_losses(model(batch[:, :-1]), batch[:, 1:]) for batch in batches])


def _sequence_losses(
    logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]
) -> Float[Tensor, " batch"]:
    # Not every device has float64.
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).cpu().double().mean(1)


def _token_means(model: Transformer, batches: Sequence[Tensor]) -> list[Float[Tensor, "n n"]]:
    """Every sublayer's H_res in the model as it is, averaged over all tokens."""
    seen = [model(batch[:, :-1], observe=_sequence_means)[1][:-1] for batch in batches]
    return [torch.cat(means).mean(0) for means in zip(*seen, strict=True)]


def _sequence_means(_index: int, state: State, _x: Tensor, _output: Tensor) -> Tensor | None:
    return None if state.maps is None else state.maps.res.mean(1)


def _row(place: str, kind: str, intact: Tensor, ablated: Tensor) -> dict[str, Any]:
    differences = ablated - intact
    difference = finite(differences.mean().item())
    sequences = len(differences)
    error = finite(differences.std().item() / math.sqrt(sequences)) if sequences > 1 else None
    verdict, change = _verdict(difference, error)
    subject, doing = KINDS[kind][1:]
    where = "everywhere" if place == ALL else f"at {place}"
    return {
        "sublayer": place,
        "kind": kind,
        "loss": finite(ablated.mean().item()),
        "loss_difference": difference,
        "standard_error": error,
        "sequences": sequences,
        "verdict": verdict,
        "meaning": f"{subject}: {verdict}; {doing} {where} {change}",
    }


def _verdict(difference: float | None, error: float | None) -> tuple[str, str]:
    """The verdict, and what happens to the loss, in words."""
    if difference is None:
        return "not finite", "gives a loss that is not finite"
    if error is None:
        return "not decided", f"changes the loss by {difference:+.3g} nats a token; one sequence has no standard error"
    if abs(difference) <= max(2 * error, ROUNDING):
        return "no effect shown", f"changes the loss by {difference:+.3g} +- {error:.2g} nats a token"
    return "matters", f"{'costs' if difference > 0 else 'saves'} {abs(difference):.3g} +- {error:.2g} nats a token"


def _of_sublayers(rows: list[dict[str, Any]]) -> str:
    """One kind at single sublayers: how many show an effect, and the one that changes the loss most."""
    shown = [row for row in rows if row["verdict"] in ("matters", "not finite")]
    most = max(rows, key=lambda row: math.inf if row["loss_difference"] is None else abs(row["loss_difference"]))
    count = f"an effect is shown at {len(shown)} of {len(rows)} sublayers alone"
    return f"{KINDS[most['kind']].doing}: {count}; where the loss changes most, {most['meaning']}"
