"""Every family's maps against float64 NumPy written from what is declared of it, and the declarations themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import CHECKPOINTS, LAYERS, WIDTH, N, checkpoint, save, tensors_of
from oracle import Array, rms_norm, sigmoid
from torch import Tensor

from mhc_train.diagnostics import measure
from mhc_train.diagnostics.maps import column_error, row_error
from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.files import json_text
from mhc_train.foreign import FAMILIES, open_foreign
from mhc_train.foreign.assembly import assemble
from mhc_train.foreign.families import DEEPSEEK_V4
from mhc_train.foreign.stores import Folder
from mhc_train.foreign.tensors import TensorFiles
from mhc_train.mixers import Law

TOKENS, SEED = 5, 3
ROWS, COLUMNS = -1, -2
"""The axis that a row's, a column's sum runs over."""
Parts = dict[str, Array]
MapsOf = tuple[Array, Array, Array]


def rounds(matrix: Array, axes: tuple[int, int], count: int, eps: float) -> Array:
    for _ in range(count):
        for axis in axes:
            matrix = matrix / (matrix.sum(axis=axis, keepdims=True) + eps)
    return matrix


def exponential(logits: Array) -> Array:
    return np.exp(logits - logits.max(axis=(-2, -1), keepdims=True))


def split(logits: Array) -> MapsOf:
    pre, post, res = np.split(logits, [N, 2 * N], axis=-1)
    return pre, post, res.reshape(*res.shape[:-1], N, N)


def deepseek(x: Array, parts: Parts) -> MapsOf:
    """softmax over the last dimension plus eps, columns, 19 times rows and columns; stream k gets sum_j comb[j, k]."""
    a, b, c = np.split(rms_norm(x) @ parts["fn"].T, [N, 2 * N], axis=-1)
    scale, base = parts["scale"], parts["base"]
    comb = (scale[2] * c + base[2 * N :]).reshape(-1, N, N)
    comb = exponential(comb) / exponential(comb).sum(axis=ROWS, keepdims=True) + 1e-6
    comb = comb / (comb.sum(axis=COLUMNS, keepdims=True) + 1e-6)
    comb = rounds(comb, (ROWS, COLUMNS), 19, 1e-6)
    pre = sigmoid(scale[0] * a + base[:N]) + 1e-6
    return pre, 2 * sigmoid(scale[1] * b + base[N : 2 * N]), comb.swapaxes(-1, -2)


def hy4(x: Array, parts: Parts) -> MapsOf:
    a, b = np.split(rms_norm(x, 1e-5) @ parts["fn"].T, 2, axis=-1)
    scale, base = parts["scale"], parts["base"]
    pre = sigmoid(scale[0] * a + base[:N]) + 1e-6
    post = 1.5 * sigmoid(scale[1] * b + base[N:]) + 1e-6
    return pre, post, np.broadcast_to(np.eye(N), (len(x), N, N))


def openpangu(x: Array, parts: Parts) -> MapsOf:
    alpha = np.repeat(parts["branch_alpha"], [N, N, N * N])
    pre, post, res = split(rms_norm(x) * parts["norm_gamma"] @ parts["phi.weight"].T * alpha + parts["branch_beta"])
    return sigmoid(pre), 2 * sigmoid(post), rounds(exponential(res), (COLUMNS, ROWS), 7, 0)


def magi(x: Array, parts: Parts) -> MapsOf:
    pre, post, res = split(rms_norm(x) @ parts["phi_fused"] / np.sqrt(N * WIDTH))
    pre, post, res = (
        parts[f"alpha_{name}"].item() * values + parts[f"bias_{name}"]
        for name, values in (("pre", pre), ("post", post), ("res", res))
    )
    return sigmoid(pre), 2 * sigmoid(post), rounds(exponential(res), (COLUMNS, ROWS), 20, 1e-12)


def megatron(x: Array, parts: Parts) -> MapsOf:
    gates = np.repeat([parts[f"alpha_{name}"].item() for name in ("pre", "post", "res")], [N, N, N * N])
    pre, post, res = split(rms_norm(x) @ parts["mapping_proj.weight"].T * gates + parts["bias"])
    return sigmoid(pre), 2 * sigmoid(post), rounds(exponential(res), (ROWS, COLUMNS), 20, 0)


ORACLES: dict[str, Callable[[Array, Parts], MapsOf]] = {
    "deepseek_v4": deepseek,
    "deepseek_v4_1": deepseek,
    "glm5_next": deepseek,
    "hy_v4": hy4,
    "openpangu_v2": openpangu,
    "magi_2": magi,
    "megatron_core": megatron,
}
EVERY = pytest.mark.parametrize("family", FAMILIES)


def parts_of(family: str, tensors: dict[str, Tensor], layer: int, place: str) -> Parts:
    """A sublayer's tensors by what their names end with, found without the package's patterns."""
    marks = {"attention": ("attn", "self_attention"), "feedforward": ("ffn", "mlp")}[place]
    names = [name for name in tensors if f"layers.{layer}." in name and any(mark in name for mark in marks)]
    wanted = {
        "openpangu_v2": ("phi.weight", "branch_alpha", "branch_beta", "norm_gamma"),
        "magi_2": ("phi_fused", *(f"{kind}_{part}" for kind in ("alpha", "bias") for part in ("pre", "post", "res"))),
        "megatron_core": ("mapping_proj.weight", "alpha_pre", "alpha_post", "alpha_res", "connection.bias"),
    }.get(family, ("fn", "scale", "base"))
    found = {}
    for part in wanted:
        (name,) = (name for name in names if (part in name if family == "magi_2" else name.endswith(part)))
        found[part.removeprefix("connection.")] = tensors[name].double().numpy()
    return found


def expected(family: str, tensors: dict[str, Tensor], draws: list[Array]) -> list[MapsOf]:
    """Sublayer by sublayer; in a single pass each reads by what the one before projects, the first stream 0 alone."""
    places = [(layer, place) for layer in range(LAYERS) for place in ("attention", "feedforward")]
    made = [
        ORACLES[family](x.reshape(len(x), -1), parts_of(family, tensors, *place))
        for x, place in zip(draws, places, strict=True)
    ]
    if family != "deepseek_v4_1":
        return made
    reads = [np.broadcast_to(np.eye(N)[0], made[0][0].shape), *(maps[0] for maps in made)]
    return [(read, *maps[1:]) for read, maps in zip(reads, made, strict=False)]


@EVERY
def test_sampled_maps_are_those_of_the_family(tmp_path: Path, family: str) -> None:
    folder, tensors = checkpoint(tmp_path, family)
    model = open_foreign(str(folder))
    observation = model.observe(TOKENS, seed=SEED)
    assert model.family.name == family and (model.streams, model.width) == (N, WIDTH)
    generator = torch.Generator().manual_seed(SEED)
    draws = [torch.randn(TOKENS, N, WIDTH, generator=generator).double().numpy() for _ in observation.crossings]
    for crossing, wanted in zip(observation.crossings, expected(family, tensors, draws), strict=True):
        for ours, theirs in zip((crossing.pre, crossing.post, crossing.res), wanted, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-6, rtol=1e-5)
    spread = torch.stack([crossing.post.std(0) for crossing in observation.crossings])
    assert spread.min() > 0.01  # the maps do vary, so that agreement says something


@EVERY
def test_biases_alone_are_the_maps_of_a_zero_vector(tmp_path: Path, family: str) -> None:
    folder, tensors = checkpoint(tmp_path, family)
    observation = open_foreign(str(folder)).observe_biases()
    draws = [np.zeros((1, N, WIDTH)) for _ in observation.crossings]
    assert observation.basis == "the biases alone: no data"
    for crossing, wanted in zip(observation.crossings, expected(family, tensors, draws), strict=True):
        np.testing.assert_allclose(crossing.res.numpy(), wanted[2], atol=2e-6, rtol=1e-5)


@EVERY
def test_sampling_keeps_nothing_of_the_draws_and_repeats_itself(tmp_path: Path, family: str) -> None:
    model = open_foreign(str(checkpoint(tmp_path, family)[0]))
    first, again, other = model.observe(300, seed=1), model.observe(300, seed=1), model.observe(300, seed=2)
    assert first.basis == "sampled unit-RMS inputs: no data" and first.last is None
    assert all(crossing.streams is None and crossing.output is None for crossing in first.crossings)
    for a, b, c in zip(first.crossings, again.crossings, other.crossings, strict=True):
        assert a.post.shape == (300, N) and torch.equal(a.post, b.post) and not torch.equal(a.post, c.post)
        assert (a.logits is None) == (family == "hy_v4")


@EVERY
def test_global_random_state_is_left_alone(tmp_path: Path, family: str) -> None:
    folder, _ = checkpoint(tmp_path, family)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    open_foreign(str(folder)).observe(2)
    assert torch.equal(before, torch.get_rng_state())


@EVERY
def test_declared_exact_side_is_exact_at_large_logits(tmp_path: Path, family: str) -> None:
    folder, _ = checkpoint(tmp_path, family, size=12.0)
    observation = open_foreign(str(folder)).observe(64)
    res = torch.cat([crossing.res for crossing in observation.crossings]).double()
    errors = {Law.MASS: column_error(res).max().item(), Law.TIME_SYMMETRY: row_error(res).max().item()}
    exact = {law: g.tolerance for g in observation.guarantees if (law := g.law) in errors and g.logit_range > 1e9}
    assert all(errors[law] <= tolerance for law, tolerance in exact.items())
    count = {"hy_v4": 2, "openpangu_v2": 0}.get(family, 1)
    assert len(exact) == count
    if count == 1:  # the other side is far from exact, so that the two can be told apart
        assert max(errors.values()) > 1e-2


@pytest.mark.parametrize("wrong", [{"transposed": False}, {"order": "columns_first"}])
def test_wrong_declaration_contradicts_the_exact_side(tmp_path: Path, wrong: dict) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4", size=12.0)
    files = TensorFiles(Folder(folder))
    config = files.json("config.json")
    observation = assemble(files, config, replace(DEEPSEEK_V4, **wrong)).observe(64)
    (promise,) = (g for g in observation.guarantees if g.law is Law.TIME_SYMMETRY)
    measured = row_error(torch.cat([crossing.res for crossing in observation.crossings]).double()).max()
    assert promise.logit_range == float("inf") and measured > 1000 * promise.tolerance


def test_v4_says_how_it_is_turned() -> None:
    assert DEEPSEEK_V4.transposed and DEEPSEEK_V4.order == "rows_first" and DEEPSEEK_V4.exact is Law.TIME_SYMMETRY


@EVERY
def test_convention_is_said_in_words(tmp_path: Path, family: str) -> None:
    model = open_foreign(str(checkpoint(tmp_path, family)[0]))
    text = model.convention
    expected = "H_res = I" if family == "hy_v4" else "its transpose" if model.family.transposed else "H_res is it"
    assert model.family.title in text and expected in text
    assert ("Assumed" in text) == (family in ("openpangu_v2", "magi_2", "megatron_core"))


def test_further_tokens_predictors_are_left_out_and_named(tmp_path: Path) -> None:
    model = open_foreign(str(checkpoint(tmp_path, "deepseek_v4")[0]))
    assert model.names == [f"layers.{i}.{place}" for i in range(LAYERS) for place in ("attention", "feedforward")]
    assert {"mtp.0.hc_attn_fn", "hc_head_fn"} < set(model.left_out)
    tensors = tensors_of("glm5_next")
    counted = CHECKPOINTS["glm5_next"][2] | {"text_config": {"num_hidden_layers": 1, "hc_mult": N}}
    model = open_foreign(str(save(tmp_path / "glm", tensors, counted)))
    assert model.names == ["layers.0.attention", "layers.0.feedforward"] and "layers.1.hc_ffn_fn" in model.left_out


def test_read_out_weights_of_the_biases(tmp_path: Path) -> None:
    for family, base in (("deepseek_v4", "hc_head_base"), ("hy_v4", "model.hc_head.hc_head_base")):
        folder, tensors = checkpoint(tmp_path / family, family)
        facts = open_foreign(str(folder)).facts
        assert facts["read_out"] == "gated"
        np.testing.assert_allclose(
            facts["read_out_weights_of_biases"], sigmoid(tensors[base].numpy()) + 1e-6, rtol=1e-5
        )


def test_read_out_that_is_not_finite_is_null(tmp_path: Path) -> None:
    tensors = tensors_of("deepseek_v4")
    tensors["hc_head_base"][1] = torch.nan
    folder = save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2])
    weights = json.loads(json_text(open_foreign(str(folder)).facts))["read_out_weights_of_biases"]
    assert weights[1] is None and all(isinstance(weights[stream], float) for stream in (0, 2, 3))


def test_read_out_of_another_size_is_refused(tmp_path: Path) -> None:
    tensors = tensors_of("deepseek_v4") | {"hc_head_base": torch.zeros(N + 1)}
    with pytest.raises(CheckpointError, match=r"hc_head_base is \[5\], not one number a stream"):
        open_foreign(str(save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2])))


def test_native_saved_and_in_memory_names_are_the_same_model(tmp_path: Path) -> None:
    tensors, config = tensors_of("deepseek_v4"), CHECKPOINTS["deepseek_v4"][2]

    def renamed(name: str, saved: bool) -> str:
        head, _, part = name.rpartition("_")
        if name.startswith("hc_head"):
            return f"model.hc_head.hc_{part}"
        if saved or name.startswith("mtp"):
            return f"model.{name}"
        return f"model.{head.replace('hc_attn', 'attn_hc').replace('hc_ffn', 'ffn_hc')}.{part}"

    folders = [save(tmp_path / "native", tensors, config)]
    for saved in (True, False):
        names = {renamed(name, saved): tensor for name, tensor in tensors.items()}
        folders.append(save(tmp_path / str(saved), names, config))
    native, *others = (open_foreign(str(folder)).observe(4) for folder in folders)
    for other in others:
        for a, b in zip(native.crossings, other.crossings, strict=True):
            assert torch.equal(a.pre, b.pre) and torch.equal(a.post, b.post) and torch.equal(a.res, b.res)


def test_shared_biases_of_magi_serve_both_sublayers(tmp_path: Path) -> None:
    tensors = tensors_of("magi_2")
    shared = {
        name.removesuffix("_mlp").removesuffix("_attn") if "bias" in name else name: tensor
        for name, tensor in tensors.items()
    }
    first, second, *_ = open_foreign(str(save(tmp_path, shared, {}))).connections
    assert torch.equal(first.bias, second.bias) and not torch.equal(first.gate, second.gate)


# Whose it is


def test_without_a_config_the_names_decide_where_they_can(tmp_path: Path) -> None:
    assert open_foreign(str(save(tmp_path / "a", tensors_of("deepseek_v4"), None))).family.name == "deepseek_v4"
    with pytest.raises(ConfigError, match="--family deepseek_v4_1 or --family glm5_next") as caught:
        open_foreign(str(save(tmp_path / "b", tensors_of("glm5_next"), None)))
    assert "layers.0.hc_attn_base [24]" in str(caught.value) and "model_type not given" in str(caught.value)
    assert open_foreign(str(tmp_path / "b"), family="glm5_next").family.name == "glm5_next"


def test_version_4_without_a_read_out_has_to_be_said(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in tensors_of("deepseek_v4").items() if "head" not in name}
    folder = str(save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2]))
    with pytest.raises(ConfigError, match="--family"):
        open_foreign(folder)
    assert open_foreign(folder, family="deepseek_v4").head is None


def test_model_type_that_nobody_knows_is_not_taken_for_a_known_one(tmp_path: Path) -> None:
    folder = str(save(tmp_path, tensors_of("deepseek_v4"), {"model_type": "someone_else", "hc_mult": N}))
    with pytest.raises(ConfigError, match=r"model_type someone_else.*--family deepseek_v4\b"):
        open_foreign(folder)
    assert open_foreign(folder, family="deepseek_v4").family.name == "deepseek_v4"


def test_names_that_nobody_knows_are_listed(tmp_path: Path) -> None:
    tensors = {f"blocks.{i}.hyper_connection.alpha": torch.zeros(4, 5) for i in range(20)} | {"w": torch.zeros(2)}
    with pytest.raises(ConfigError, match=r"blocks.0.hyper_connection.alpha \[4, 5\].* and 8 more") as caught:
        open_foreign(str(save(tmp_path, tensors, {"model_type": "mystery"})))
    assert "mystery" in str(caught.value) and all(name in str(caught.value) for name in FAMILIES)


def test_no_hyper_connections_at_all(tmp_path: Path) -> None:
    folder = str(save(tmp_path, {"model.layers.0.mlp.weight": torch.zeros(2)}, {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"none of its 1 tensors.*model_type llama"):
        open_foreign(folder)
    with pytest.raises(CheckpointError, match="no hyper-connections of hy_v4"):
        open_foreign(folder, family="hy_v4")
    with pytest.raises(ConfigError, match="no family gpt; there are deepseek_v4"):
        open_foreign(folder, family="gpt")


# Sizes


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("layers.1.hc_ffn_fn", (24, 20), {}),
        ("layers.0.hc_attn_base", (8,), {}),
        ("layers.1.hc_attn_scale", (2,), {}),
        ("layers.0.hc_attn_fn", (24, 24), {"hc_mult": 3}),
        ("layers.0.hc_attn_fn", (24, 24), {"hidden_size": 12}),
        ("layers.0.hc_attn_fn", (24,), {}),
    ],
)
def test_inconsistent_sizes_are_refused_by_name(tmp_path: Path, name: str, shape: tuple, config: dict) -> None:
    tensors = tensors_of("deepseek_v4") | {name: torch.zeros(shape)}
    folder = save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2] | config)
    with pytest.raises(CheckpointError, match=f"{name} is .*DeepSeek-V4's for n = "):
        open_foreign(str(folder), family="deepseek_v4")


def test_streams_come_from_the_projection_and_not_from_the_bias(tmp_path: Path) -> None:
    """Eight logits are two mixed streams or four that are not."""
    tensors = {
        f"layers.0.hc_{place}_{part}": torch.zeros(shape)
        for place in ("attn", "ffn")
        for part, shape in {"fn": (8, 24), "base": (8,), "scale": (3,)}.items()
    }
    model = open_foreign(str(save(tmp_path, tensors, {"model_type": "glm5_next"})))
    assert (model.streams, model.width) == (2, 12)
    iHC = {
        f"model.layers.0.hc_{place}_layer.hc_{part}": torch.zeros(shape)
        for place in ("attn", "mlp")
        for part, shape in {"fn": (8, 24), "base": (8,), "scale": (2,)}.items()
    }
    model = open_foreign(str(save(tmp_path / "iHC", iHC, None)), family="hy_v4")
    assert (model.streams, model.width) == (4, 6)


def test_lacking_tensors_are_named(tmp_path: Path) -> None:
    tensors = tensors_of("deepseek_v4")
    del tensors["layers.1.hc_ffn_scale"], tensors["layers.0.hc_attn_fn"]
    folder = save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2])
    with pytest.raises(
        CheckpointError, match=r"layers.0.attention \(fn, scale, base\), layers.1.feedforward \(scale\)"
    ):
        open_foreign(str(folder))


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layers"])
def test_layers_that_have_not_been_fetched_are_missed(tmp_path: Path, key: str) -> None:
    config = {"model_type": "deepseek_v4", key: LAYERS + 1}
    with pytest.raises(CheckpointError, match=rf"tensors are missing: layers.{LAYERS}.attention \(fn, scale, base\)"):
        open_foreign(str(save(tmp_path, tensors_of("deepseek_v4"), config)))


def test_depth_that_is_inferred_is_said_to_be(tmp_path: Path) -> None:
    tensors = tensors_of("deepseek_v4")
    inferred = open_foreign(str(save(tmp_path / "a", tensors, {"model_type": "deepseek_v4"})))
    assert inferred.facts["depth"] == "inferred from the tensors"
    assert "Assumed: there are 2 layers, as many as have tensors" in inferred.facts["convention"]
    given = open_foreign(str(save(tmp_path / "b", tensors, {"model_type": "deepseek_v4", "n_layers": LAYERS})))
    assert given.facts["depth"] == "config.json" and "Assumed" not in given.convention


@pytest.mark.parametrize("layer", [10**12, "9" * 5000])
def test_layer_of_an_absurd_number_is_no_layer(tmp_path: Path, layer: object) -> None:
    tensors = tensors_of("deepseek_v4") | {f"layers.{layer}.hc_attn_fn": torch.zeros(24, 24)}
    assert len(open_foreign(str(save(tmp_path, tensors, {"model_type": "deepseek_v4"}))).names) == 2 * LAYERS


# Two tensors that are the same part


@pytest.mark.parametrize(
    ("family", "known", "copy"),
    [
        ("deepseek_v4", "layers.1.hc_ffn_fn", "model.layers.1.ffn_hc.fn"),
        ("deepseek_v4", "layers.0.hc_attn_base", "ema.layers.0.hc_attn_base"),
        ("deepseek_v4", "hc_head_base", "model.hc_head.hc_base"),
        ("magi_2", "model.layers.0.mhc_bias_pre_attn", "model.layers.0.mhc_bias_pre"),
    ],
)
def test_copy_of_a_tensor_is_refused_with_both_names(tmp_path: Path, family: str, known: str, copy: str) -> None:
    tensors = tensors_of(family)
    tensors[copy] = tensors[known] + 1
    for number, order in enumerate((list(tensors), list(reversed(tensors)))):
        shards = save(tmp_path / str(number), {name: tensors[name] for name in order}, CHECKPOINTS[family][2], shards=2)
        with pytest.raises(CheckpointError, match="more than one tensor is") as caught:
            open_foreign(str(shards))
        assert known in str(caught.value) and copy in str(caught.value)


def test_two_hyper_connections_of_one_place_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of("megatron_core")
    cross = {
        name.replace("self_attention", "cross_attention"): tensor.clone()
        for name, tensor in tensors.items()
        if "self_attention" in name
    }
    with pytest.raises(CheckpointError, match=r"of Megatron-Core's layers.0.attention: .*cross_att.*, .*self_att"):
        open_foreign(str(save(tmp_path / "a", tensors | cross, CHECKPOINTS["megatron_core"][2])))
    unrelated = {"decoder.layers.0.self_attention.bias": torch.zeros(3)}
    assert open_foreign(str(save(tmp_path / "b", tensors | unrelated, CHECKPOINTS["megatron_core"][2])))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hc_eps", '"small"', "hc_eps = 'small' is not a number"),
        ("hc_eps", "1e400", "hc_eps = inf is not a number from 0 to 1000"),
        ("hc_eps", "1" + 400 * "0", "hc_eps = 10+ is not a number"),
        ("rms_norm_eps", "NaN", "rms_norm_eps = nan is not a number"),
        ("rms_norm_eps", "-1e-6", "rms_norm_eps = -1e-06 is not a number"),
        ("hc_sinkhorn_iters", "1e400", "hc_sinkhorn_iters = inf is not a number from 1 to 10000"),
        ("hc_sinkhorn_iters", "20.7", "hc_sinkhorn_iters = 20.7 is not a whole number"),
        ("hc_sinkhorn_iters", "0", "hc_sinkhorn_iters = 0 is not a number from 1 to 10000"),
        ("hc_sinkhorn_iters", "[20]", r"hc_sinkhorn_iters = \[20\] is not a number"),
        ("hc_mult", "true", "hc_mult = True is not a number"),
        ("hc_mult", '"4"', "hc_mult = '4' is not a number"),
        ("hidden_size", "6.5", "hidden_size = 6.5 is not a whole number"),
        ("num_hidden_layers", "1000000000", "num_hidden_layers = 1000000000 is not a number from 1 to 10000"),
        ("num_hidden_layers", "0", "num_hidden_layers = 0 is not a number"),
        ("num_hidden_layers", '"2"', "num_hidden_layers = '2' is not a number"),
        ("model_type", '["deepseek_v4"]', r"model_type = \['deepseek_v4'\] is no name"),
        ("model_type", '{"a": 1}', "model_type = {'a': 1} is no name"),
    ],
)
def test_config_that_makes_no_sense_is_refused(tmp_path: Path, key: str, value: str, said: str) -> None:
    folder = save(tmp_path, tensors_of("deepseek_v4"), CHECKPOINTS["deepseek_v4"][2] | {key: "HERE"})
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"HERE"', value))
    with pytest.raises(CheckpointError, match=said):
        open_foreign(str(folder))


def test_whole_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    config = CHECKPOINTS["deepseek_v4"][2] | {"hc_sinkhorn_iters": 3.0, "hc_mult": 4.0}
    model = open_foreign(str(save(tmp_path, tensors_of("deepseek_v4"), config)))
    assert model.connections[0].config.iterations == 3 and model.streams == 4


def test_what_is_drawn_is_measured_and_judged(tmp_path: Path) -> None:
    document = measure(open_foreign(str(checkpoint(tmp_path, "deepseek_v4", size=12.0)[0])).observe(64))
    verdicts = {law["law"]: law["verdict"] for law in document["laws"]}
    assert verdicts["declared"] == verdicts["time_symmetry"] == "ok" and verdicts["convergence"] == "warn"
    assert verdicts["distinct_streams"] == verdicts["dead_mixer"] == "not applicable"
    assert "energy_out" not in document["sublayers"][0] and document["sublayers"][0]["logit_range"]["max"] > 12


def test_the_verdict_tells_the_wrong_orientation(tmp_path: Path) -> None:
    files = TensorFiles(Folder(checkpoint(tmp_path, "deepseek_v4", size=12.0)[0]))
    model = assemble(files, files.json("config.json"), replace(DEEPSEEK_V4, transposed=False))
    law = next(law for law in measure(model.observe(64))["laws"] if law["law"] == "declared")
    assert law["verdict"] == "fail" and law["evidence"]["measure"] == "error of time_symmetry"
    assert law["worst"] in model.names and "orientation" in law["advice"]
