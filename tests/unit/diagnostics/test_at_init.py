"""Composites of untrained paths: against a product in NumPy, analytic gains, and what every connection must do."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.connections import CONNECTIONS, Connection, Maps, build_path
from mhc_train.diagnostics.at_init import amplifier_gain, at_init, composite
from mhc_train.diagnostics.maps import backward_gain, difference_gain, forward_composites, forward_gain
from mhc_train.errors import ConfigError
from mhc_train.mixers import Law
from mhc_train.model import Transformer
from mhc_train.model.initialise import seeded
from mhc_train.schema import Config, ConnectionConfig, ModelConfig

WIDTH = "model.dim=32"
ALL = groups()["connection"]


def small(connection: str, *overrides: str) -> Config:
    return compose([f"connection={connection}", WIDTH, *overrides])


def deepest(config: Config, jitter: float, depth: int = 128) -> dict:
    return at_init(config, [2, depth], jitter, tokens=16, seed=0)["depths"][-1]


def test_the_amplifier_grows_by_a_tenth_a_sublayer_in_every_gain() -> None:
    depths = [1, 8, 100, 128]
    amplifier = at_init(small("residual"), depths, 0.0, 1, 0)["amplifier"]
    assert amplifier == [{"sublayers": depth, "gain": 1.1**depth} for depth in depths]
    assert amplifier[2]["gain"] == pytest.approx(13780.6, abs=0.1)
    product = forward_composites([1.1 * torch.eye(4, dtype=torch.float64)] * 128)[-1]
    for gain in (forward_gain, backward_gain, difference_gain):
        assert gain(product).item() == pytest.approx(1.1**128, rel=1e-12)
    assert amplifier_gain(10_000) is None


def test_hc_starts_as_exactly_the_identity_at_any_depth() -> None:
    entry = deepest(small("hc"), 0.0)
    for name, exact in {
        "forward_gain": 1,
        "backward_gain": 1,
        "row_error": 0,
        "column_error": 0,
        "log_mass": 0,
    }.items():
        assert set(entry[name].values()) == {exact}, name
    assert entry["difference_gain"]["min"] == pytest.approx(1, abs=1e-12)


def test_hc_with_noise_grows_with_depth() -> None:
    document = at_init(small("hc"), [8, 32, 128], 0.2, tokens=64, seed=0)
    for gain in ("forward_gain", "backward_gain", "spectral_norm"):
        means = [entry[gain]["mean"] for entry in document["depths"]]
        assert 2 * means[0] < means[1] < means[2] / 10, gain
    # The mean square of a composite's entries grows by 1 + n sigma^2 a sublayer; 64 tokens estimate it roughly.
    noisy = composite(build_path(small("hc").connection, 32, 128), 32, 0.1, 64, 0)
    growth = noisy.square().sum((-2, -1)).mean().item() / 4
    assert 0.2 < growth / 1.04**128 < 5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_what_conserves_a_sum_conserves_it_at_any_depth(name: str, jitter: float) -> None:
    """Rows that sum to 1 within a tolerance compose to rows that do within the depth times as much."""
    config, depth = small(name), 128
    entry = deepest(config, jitter, depth)
    promised = {g.law: g.tolerance for g in build_path(config.connection, 32, 2).guarantees if g.tolerance <= 1e-5}
    for law, measure in ((Law.MASS, "column_error"), (Law.TIME_SYMMETRY, "row_error")):
        if law in promised:
            assert entry[measure]["max"] <= depth * max(promised[law], 1e-7), measure
            gain = {Law.MASS: "backward_gain", Law.TIME_SYMMETRY: "forward_gain"}[law]
            assert entry[gain]["max"] == pytest.approx(1, abs=2e-3)
    if Law.DISSIPATION in promised:
        assert entry["spectral_norm"]["max"] <= 1 + depth * 1e-5
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize("name", ["mhc", "mhc_lite", "shc", "mhc_newton"])
def test_doubly_stochastic_paths_lose_differences_with_depth(name: str) -> None:
    document = at_init(small(name), [2, 16, 128], 0.1, tokens=8, seed=0)
    kept = [entry["difference_gain"]["median"] for entry in document["depths"]]
    assert 1 > kept[0] > kept[1] > kept[2] > 0
    assert kept[2] < 0.3


@pytest.mark.parametrize(("name", "jitter"), [("hc", 0.2), ("mhc", 0.0), ("ohc", 0.5), ("c_mhc", 1.0)])
def test_the_composite_is_the_ordered_product_of_noisy_maps(name: str, jitter: float) -> None:
    """Streams and noise are drawn here again, the maps multiplied in NumPy one token at a time."""
    config, sublayers, tokens, seed = small(name, "connection.gate_init=1").connection, 5, 3, 7
    with seeded(seed):
        path = build_path(config, 32, sublayers)
    inputs, noise = (torch.Generator().manual_seed(2 * seed + part) for part in (0, 1))
    expected = [np.eye(4) for _ in range(tokens)]
    with torch.no_grad():
        for connection in path.connections:
            mixer, logits = connection.mixing(torch.randn(1, tokens, 4, 32, generator=inputs))
            maps = mixer(logits + jitter * torch.randn(logits.shape, generator=noise) if jitter else logits)[0]
            expected = [maps[token].double().numpy() @ expected[token] for token in range(tokens)]
        found = composite(path, 32, jitter, tokens, seed)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-12, atol=1e-14)


def test_a_document_says_what_it_was_made_of_and_comes_out_the_same_again() -> None:
    config = small("mhc")
    torch.manual_seed(0)
    first = at_init(config, [2, 4], 0.5, tokens=4, seed=3)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after  # the caller's random numbers are left alone
    assert at_init(config, [2, 4], 0.5, tokens=4, seed=3) == first
    assert at_init(config, [2, 4], 0.5, tokens=4, seed=4)["depths"] != first["depths"]
    assert first["kind"] == "at init" and first["connection"] == "mhc" and first["streams"] == 4
    assert first["jitter"] == 0.5 and "data-free" in first["basis"]
    assert [entry["sublayers"] for entry in first["depths"]] == [2, 4]
    assert at_init(config, [4], 0.5, tokens=4, seed=3)["depths"] == first["depths"][1:]
    assert {"forward_gain", "backward_gain", "spectral_norm", "difference_gain"} < set(first["depths"][0])


def test_it_is_the_path_that_a_model_of_this_seed_starts_with() -> None:
    config = small("mhc", "connection.gate_init=1")
    model = Transformer(ModelConfig(dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=24), config.connection, 32, seed=5)
    with torch.no_grad():
        product = composite(model.path, 32, 0.0, 6, 5)
    entry = at_init(config, [4], 0.0, tokens=6, seed=5)["depths"][0]
    norms = np.linalg.norm(product.numpy(), 2, axis=(1, 2))
    assert entry["spectral_norm"]["mean"] == pytest.approx(norms.mean(), rel=1e-12)
    assert entry["smallest_entry"]["min"] == product.min().item()


class Silent(Connection):
    """Mixes, but names no logits."""

    name = "silent"

    def maps(self, streams: Tensor) -> Maps:
        ones = streams.new_ones(streams.shape[:-1])
        return Maps(ones, ones, 2 * torch.eye(self.streams).expand(*ones.shape, self.streams))


def test_what_cannot_be_done_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        at_init(small("mhc"), [4, 0], -1.0, tokens=0, seed=0)
    assert [problem.split()[0] for problem in refused.value.problems] == ["depths", "jitter", "tokens"]
    with pytest.raises(ConfigError, match=r"c_mhc over 2 sublayers: .*connection.beta from 0 to 2"):
        at_init(small("c_mhc", "connection.beta=4"), [2], 0.0, tokens=1, seed=0)
    monkeypatch.setitem(CONNECTIONS, "silent", Silent)
    silent = dataclasses.replace(small("mhc"), connection=ConnectionConfig(kind="silent"))
    assert at_init(silent, [10], 0.0, tokens=1, seed=0)["depths"][0]["forward_gain"]["max"] == 2**10
    with pytest.raises(ConfigError, match="connection silent does not say what logits .*take jitter 0"):
        at_init(silent, [10], 0.1, tokens=1, seed=0)


def test_gains_beyond_a_float_are_null() -> None:
    entry = at_init(small("hc"), [300], 1e3, tokens=2, seed=0)["depths"][0]
    assert entry["forward_gain"]["max"] is None and entry["spectral_norm"]["max"] is None
    json.dumps(entry, allow_nan=False)
