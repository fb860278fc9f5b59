"""What is declared of every code base whose checkpoints are known: tensor names, orientation, order, constants.

Nothing here is inferred from values: a stochastic matrix and its transpose obey the same laws once converged, so that
an orientation can only be stated.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from mhc_train.errors import CheckpointError
from mhc_train.mixers import Law

LAYER = r"(?!.*\bmtp)(?:[\w.]+\.)?layers\.(?P<layer>[0-9]{1,4})\."
"""Layers of the main model; those that predict further tokens are no part of its path."""
HEAD = r"(?!.*\b(?:mtp|layers\.))(?:[\w.]+\.)?hc_head[._](?:hc_pre\.)?(?:hc_)?(?:head_)?(?P<part>fn|base|scale)"

SHARED = ""
"""Instead of a place: of both sublayers of a layer."""

Site = tuple[int, str]
"""A layer's number and the place in it, `attention` or `feedforward`."""
Found = dict[str, list[str]]
"""All tensors' names that are a part, by the part."""
Sites = dict[Site, dict[str, str]]
"""Every sublayer's tensors: the checkpoint's name by the part that it is."""


@dataclass(frozen=True)
class Family:
    """One code base's hyper-connections, in its own terms."""

    name: str
    """What `--family` takes."""
    title: str
    patterns: tuple[str, ...]
    """Of tensor names, with groups `layer`, `part` and, but for parts that both sublayers share, `place`."""
    projection: str
    """The part [k, nC] (see `input_major`) that makes the k logits of pre, post and res, in this order."""
    gates: tuple[str, ...]
    """The parts that, one after another, are the gates of pre, post and res."""
    biases: tuple[str, ...]
    """The parts that, one after another, are the k biases."""
    streams_key: str | None = None
    """The key of config.json that is n."""
    keys: dict[str, tuple[str, int | float]] = field(default_factory=dict)
    """By our key of a connection: theirs in config.json, and the value where it is absent."""
    constants: dict[str, int | float] = field(default_factory=dict)
    """By our key of a connection: a value that no config.json changes."""
    model_types: tuple[str, ...] = ()
    """What config.json calls models of this family; empty where the tensors' names alone tell it."""
    mixer: str = "sinkhorn"
    transposed: bool = False
    """Whether its matrix is indexed (sender, receiver), so that H_res is the transpose."""
    order: str = "columns_first"
    """Of the rounds' two normalisations, in its own matrix."""
    exact: Law | None = None
    """The law of H_res that its last normalisation makes exact: rows are time symmetry, columns are mass."""
    single_pass: bool = False
    input_major: bool = False
    """Whether the projection is [nC, k]."""
    shrunk: bool = False
    """Whether the projection's product is divided by sqrt(nC) besides."""
    gain: str | None = None
    """The part [nC] that multiplies the normalised streams."""
    read_out: str = "mean"
    """How the streams become one; `gated`: by the tensors `hc_head`, which other families do not have."""
    assumed: str = ""
    """What of this has not been seen stated anywhere, and is taken from the paper."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """All parts that a sublayer must have."""
        return (self.projection, *self.gates, *self.biases, *([self.gain] if self.gain else []))

    def sites(self, names: Iterable[str], source: str) -> Sites:
        """Which tensor is which part of which sublayer; what has no projection is no sublayer.

        Raises:
            CheckpointError: two tensors are the same part; `source` is where they lie.
        """
        found: dict[Site, Found] = {}
        for name in names:
            if "expert" in name:  # nearly all tensors of a large model; to match them all takes seconds
                continue
            match = next(filter(None, (re.fullmatch(LAYER + pattern, name) for pattern in self.patterns)), None)
            if match is not None:
                place = match.groupdict().get("place") or SHARED
                found.setdefault((int(match["layer"]), place), {}).setdefault(match["part"], []).append(name)
        sites: dict[Site, Found] = {}
        for (layer, place), parts in sorted(found.items()):
            if self.projection in parts:
                shared = {part: list(of_part) for part, of_part in found.get((layer, SHARED), {}).items()}
                site = sites.setdefault((layer, _place(place)), shared)
                for part, of_part in parts.items():
                    site.setdefault(part, []).extend(of_part)
        return {
            site: _only_one(parts, f"{self.title}'s layers.{site[0]}.{site[1]}", source)
            for site, parts in sites.items()
        }

    def logits(self, n: int) -> int:
        """How many a projection makes for n streams: 2n, and n^2 more where streams are mixed."""
        return 2 * n if self.mixer == "identity" else n * n + 2 * n

    def streams_of(self, logits: int) -> int | None:
        """The n, at least 2, that so many logits are for."""
        n = logits // 2 if self.mixer == "identity" else math.isqrt(logits + 1) - 1
        return n if n >= 2 and self.logits(n) == logits else None

    def size(self, part: str, n: int, width: int) -> int:
        """How many numbers a part is, for n streams of that width."""
        if part == self.projection:
            return self.logits(n) * n * width
        if part == self.gain:
            return n * width
        if part in self.gates:
            return (2 if self.mixer == "identity" else 3) // len(self.gates)
        return self.logits(n) if len(self.biases) == 1 else {"bias_res": n * n}.get(part, n)

    def logits_and_inputs(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """What a projection of that shape makes of what; zeros if it is no matrix."""
        if len(shape) != 2:
            return 0, 0
        return (shape[1], shape[0]) if self.input_major else (shape[0], shape[1])


def head_parts(names: Iterable[str], source: str) -> dict[str, str]:
    """The tensors that read the streams out, by part: fn, base and scale.

    Raises:
        CheckpointError: two tensors are the same part; `source` is where they lie.
    """
    found: Found = {}
    for name in names:
        if match := re.fullmatch(HEAD, name):
            found.setdefault(match["part"], []).append(name)
    return _only_one(found, "the read-out", source)


def _only_one(found: Found, owner: str, source: str) -> dict[str, str]:
    """The name of every part; which of several is meant, as of a copy besides, nobody says."""
    for part, names in found.items():
        if len(names) > 1:
            raise CheckpointError(
                f"{source}: more than one tensor is {part} of {owner}: {', '.join(names)}. Keep one of them."
            )
    return {part: name for part, (name,) in found.items()}


def _place(place: str) -> str:
    return "attention" if "att" in place else "feedforward"


DEEPSEEK_V4 = Family(
    name="deepseek_v4",
    title="DeepSeek-V4",
    patterns=(
        r"hc_(?P<place>attn|ffn)_(?P<part>fn|base|scale)",  # native, and as transformers saves it
        r"(?P<place>attn|ffn)_hc\.(?P<part>fn|base|scale)",  # in memory
    ),
    projection="fn",
    gates=("scale",),
    biases=("base",),
    streams_key="hc_mult",
    keys={
        "iterations": ("hc_sinkhorn_iters", 20),
        "eps": ("hc_eps", 1e-6),
        "read_eps": ("hc_eps", 1e-6),
        "norm_eps": ("rms_norm_eps", 1e-6),
    },
    model_types=("deepseek_v4",),
    transposed=True,
    order="rows_first",
    exact=Law.TIME_SYMMETRY,
    read_out="gated",
)
DEEPSEEK_V4_1 = replace(
    DEEPSEEK_V4,
    name="deepseek_v4_1",
    title="DeepSeek-V4.1",
    model_types=("deepseek_v4_1", "deepseek_v41"),
    single_pass=True,
    read_out="the read weights that the last sublayer projects",
)
GLM_5_3 = replace(
    DEEPSEEK_V4,
    name="glm5_next",
    title="GLM-5.3",
    model_types=("glm5_next", "glm5_next_text"),
    read_out="mean",
)
HY4 = Family(
    name="hy_v4",
    title="Hy4",
    patterns=(
        r"(?:hc_pre\.)?hc_(?P<place>attn|mlp)_layer\.(?:hc_pre\.)?hc_(?P<part>fn|base|scale)",
        r"(?P<place>attn|ffn)_hc\.(?P<part>fn|base|scale)",
    ),
    projection="fn",
    gates=("scale",),
    biases=("base",),
    streams_key="hc_mult",
    keys={
        "write_multiplier": ("hc_magnitude", 2.0),
        "read_eps": ("hc_eps", 1e-6),
        "write_eps": ("hc_eps", 1e-6),
        "norm_eps": ("rms_norm_eps", 1e-5),
    },
    model_types=("hy_v4",),
    mixer="identity",
    read_out="gated",
)
OPENPANGU = Family(
    name="openpangu_v2",
    title="openPangu 2.0",
    patterns=(r"(?:\w+\.)*(?P<place>attn|mlp)_mhc_module\.(?P<part>phi\.weight|branch_alpha|branch_beta|norm_gamma)",),
    projection="phi.weight",
    gates=("branch_alpha",),
    biases=("branch_beta",),
    gain="norm_gamma",
    streams_key="mhc_num_stream",
    keys={"iterations": ("mhc_recur_norm", 20), "norm_eps": ("rms_norm_eps", 1e-6)},
    read_out="learned (merge_mhc_module)",
    assumed="orientation, order and eps of its matrix are the paper's (receiver, sender; columns first; none)",
)
MAGI_2 = Family(
    name="magi_2",
    title="MAGI-2",
    patterns=(
        r"(?:\w+\.)*mhc_(?P<part>phi_fused|(?:alpha|bias)_(?:pre|post|res))_(?P<place>attn|mlp)",
        r"(?:\w+\.)*mhc_(?P<part>bias_(?:pre|post|res))",
    ),
    projection="phi_fused",
    gates=("alpha_pre", "alpha_post", "alpha_res"),
    biases=("bias_pre", "bias_post", "bias_res"),
    keys={"norm_eps": ("rms_norm_eps", 1e-6)},
    constants={"iterations": 20, "eps": 1e-12},
    input_major=True,
    shrunk=True,
    exact=Law.TIME_SYMMETRY,
    read_out="not known",
    assumed="H_pre is a sigmoid and H_post twice one",
)
MEGATRON = Family(
    name="megatron_core",
    title="Megatron-Core",
    patterns=(
        r"(?P<place>(?!\w*norm)\w*(?:att|mlp|ffn)\w*)\.(?P<part>mapping_proj\.weight|alpha_(?:pre|post|res)|bias)",
    ),
    projection="mapping_proj.weight",
    gates=("alpha_pre", "alpha_post", "alpha_res"),
    biases=("bias",),
    streams_key="num_residual_streams",
    keys={"iterations": ("mhc_sinkhorn_iterations", 20), "norm_eps": ("layernorm_epsilon", 1e-6)},
    order="rows_first",
    exact=Law.MASS,
    read_out="mean",
    assumed="H_pre is a sigmoid and H_post twice one, and no eps stands in the rounds",
)

FAMILIES = {family.name: family for family in (DEEPSEEK_V4, DEEPSEEK_V4_1, GLM_5_3, HY4, OPENPANGU, MAGI_2, MEGATRON)}
"""Every family that is known, by what `--family` takes."""
