"""Every number of the instrument against NumPy in float64, analytic cases, and its own balance."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from oracle import sinkhorn_limit
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.connections import Maps, State
from mhc_train.diagnostics import measure, observe, signals
from mhc_train.diagnostics.condition import parse_condition
from mhc_train.diagnostics.maps import NAMES, backward_composites, forward_composites, measures
from mhc_train.diagnostics.measurement import halves, spans, statistics
from mhc_train.errors import ConfigError
from mhc_train.model import Transformer
from mhc_train.schema import ConnectionConfig, ModelConfig

MODEL = ModelConfig(dim=16, layers=3, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)


def gini(shares: np.ndarray) -> float:
    """From the area under the Lorenz curve, over its largest value."""
    n, ordered = len(shares), np.sort(np.abs(shares))
    lorenz = np.concatenate([[0], np.cumsum(ordered)]) / ordered.sum()
    return (1 - 2 * np.trapezoid(lorenz, dx=1 / n)) * n / (n - 1)


def oracle(H: np.ndarray) -> dict[str, float]:
    n = len(H)
    s = np.linalg.svd(H, compute_uv=False)
    P = np.eye(n) - np.ones((n, n)) / n
    shares, rows = s / s.sum(), np.abs(H) / np.abs(H).sum(1, keepdims=True)
    assigned = scipy.optimize.linear_sum_assignment(H, maximize=True)
    return {
        "forward_gain": max(abs(sum(row)) for row in H),
        "backward_gain": max(abs(sum(column)) for column in H.T),
        "row_error": max(abs(sum(row) - 1) for row in H),
        "column_error": max(abs(sum(column) - 1) for column in H.T),
        "log_mass": max(abs(math.log(abs(sum(column)))) for column in H.T),
        "smallest_entry": H.min(),
        "least_sent": min(sum(column) for column in H.T),
        "most_received": max(sum(row) for row in H),
        "received_gini": gini(np.abs(H).sum(1)),
        "spectral_norm": np.linalg.norm(H, 2),
        "smallest_singular_value": s.min(),
        "log_determinant": np.linalg.slogdet(H)[1],
        "effective_rank": math.exp(-sum(p * math.log(p) for p in shares if p > 0)),
        "stable_rank": np.linalg.norm(H) ** 2 / np.linalg.norm(H, 2) ** 2,
        "entropy": np.mean([-sum(p * math.log(p) for p in row if p > 0) for row in rows]) / math.log(n),
        "dobrushin": max(np.abs(a - b).sum() / 2 for a in H for b in H),
        "permutation_distance": 1 - H[assigned].sum() / n,
        "difference_gain": np.linalg.norm(P @ H @ P, 2),
    }


def some_maps(kind: str, n: int) -> np.ndarray:
    random = np.random.default_rng(n)
    if kind == "random":
        return random.normal(size=(5, n, n))
    if kind == "exploding":
        return 1e6 * random.normal(size=(5, n, n))
    if kind == "permutation":
        return np.stack([np.eye(n)[random.permutation(n)] for _ in range(5)])
    if kind == "orthogonal":
        return np.stack([np.linalg.qr(random.normal(size=(n, n)))[0] for _ in range(5)])
    return np.stack([sinkhorn_limit(2 * random.normal(size=(n, n))) for _ in range(5)])


@pytest.mark.parametrize("n", [2, 4, 8, 9])
@pytest.mark.parametrize("kind", ["random", "exploding", "doubly stochastic", "permutation", "orthogonal"])
def test_measures_of_maps(kind: str, n: int) -> None:
    maps = some_maps(kind, n)
    found = measures(torch.from_numpy(maps))
    assert set(found) == set(NAMES) == set(oracle(maps[0]))
    for name, values in found.items():
        expected = [oracle(H)[name] for H in maps]
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    ("H", "expected"),
    [
        (torch.eye(4), {"forward_gain": 1, "entropy": 0, "effective_rank": 4, "difference_gain": 1, "log_mass": 0,
                        "dobrushin": 1, "permutation_distance": 0, "log_determinant": 0, "stable_rank": 4}),
        (torch.eye(4)[[1, 2, 3, 0]], {"spectral_norm": 1, "smallest_singular_value": 1, "difference_gain": 1,
                                      "permutation_distance": 0, "received_gini": 0, "least_sent": 1}),
        (torch.full((4, 4), 0.25), {"forward_gain": 1, "backward_gain": 1, "entropy": 1, "effective_rank": 1,
                                    "difference_gain": 0, "smallest_singular_value": 0, "column_error": 0,
                                    "dobrushin": 0, "permutation_distance": 0.75, "most_received": 1}),
        (1.1 * torch.eye(4), {"forward_gain": 1.1, "row_error": 0.1, "log_mass": math.log(1.1),
                              "log_determinant": 4 * math.log(1.1)}),
        (torch.eye(4)[[2, 2, 2, 2]], {"most_received": 1, "least_sent": 0, "stable_rank": 1, "received_gini": 0}),
        (torch.eye(4)[[2, 2, 2, 2]].mT, {"most_received": 4, "least_sent": 1, "received_gini": 1, "dobrushin": 2}),
    ],
)  # fmt: skip
def test_analytic_maps(H: Tensor, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert measures(H.double())[name].item() == pytest.approx(value, abs=1e-7), name


def test_one_stream_has_no_differences_and_a_broken_map_no_singular_values() -> None:
    assert measures(torch.ones(1, 1))["difference_gain"].isnan()
    assert measures(torch.full((2, 2), math.inf))["spectral_norm"].isnan()
    assert measures(torch.full((2, 9, 9), math.inf), ["permutation_distance"])["permutation_distance"].isnan().all()
    assert statistics(torch.tensor([1.0, math.inf]))["max"] is None


def test_what_is_not_asked_for_is_not_measured() -> None:
    maps = torch.from_numpy(some_maps("random", 3))
    everything, names = measures(maps), ("entropy", "stable_rank")
    for asked in (names, names[:1], ()):
        found = measures(maps, asked)
        assert found.keys() == set(asked) and all(found[name].equal(everything[name]) for name in asked)


def test_composites_are_ordered_products() -> None:
    maps = [torch.randn(2, 3, 3, dtype=torch.float64) for _ in range(4)]
    A, B, C, D = maps
    torch.testing.assert_close(forward_composites(maps)[2], C @ B @ A)
    torch.testing.assert_close(backward_composites(maps)[1], D @ C @ B)
    amplifier = [1.1 * torch.eye(2, dtype=torch.float64)] * 100
    assert measures(forward_composites(amplifier)[-1])["forward_gain"].item() == pytest.approx(13780.6, abs=0.1)


def test_energy_ledger_adds_up_to_the_real_write() -> None:
    X, y = torch.randn(7, 4, 8, dtype=torch.float64), torch.randn(7, 8, dtype=torch.float64)
    H, post = torch.randn(7, 4, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    ledger = signals.energy_ledger(X, H, post, y)
    after = np.einsum("tij,tjc->tic", H, X) + np.einsum("ti,tc->tic", post, y)
    np.testing.assert_allclose(ledger["energy_out"], (after**2).sum((1, 2)))
    total = ledger["energy_residual"] + ledger["energy_injected"] + ledger["energy_cross"]
    torch.testing.assert_close(total, ledger["energy_out"])


def test_stream_numbers_of_copies_and_of_orthogonal_streams() -> None:
    copies, orthogonal = torch.ones(1, 4, 8), 3 * torch.eye(4, 8)[None]
    assert signals.stream_difference(copies) == 0 and signals.stream_cosine(copies).item() == pytest.approx(1)
    assert signals.stream_difference(orthogonal).item() == pytest.approx(0.75)
    assert signals.stream_cosine(orthogonal) == 0 and signals.effective_streams(orthogonal) == 4
    lonely = torch.zeros(1, 4, 8)
    lonely[0, 2] = 1
    assert signals.effective_streams(lonely) == 1


def random_model(kind: str) -> Transformer:
    streams = 1 if kind == "residual" else 4
    model = Transformer(MODEL, ConnectionConfig(kind=kind, streams=streams), 32)
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # streams of about 0.4, so that the norms are smooth over a small step
        for parameter in model.path.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.3)
    return model


BLOCKS = torch.randint(32, (3, 13), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["residual", "hc", "mhc"])
def test_observed_gradients_are_the_losses_true_ones(kind: str) -> None:
    """Move one stream by a small step where it is observed: the loss changes by the gradient times the step."""
    model = random_model(kind)
    observation = observe(model, BLOCKS)
    assert all(parameter.grad is None for parameter in model.parameters())
    gradients = [crossing.backward.after.unflatten(0, (3, 12)) for crossing in observation.crossings]
    step, direction = 2e-4, torch.randn(gradients[0].shape, generator=torch.Generator().manual_seed(1))
    path, write = model.path, model.path.write
    path.cross = lambda at, state, output: path.read(at + 1, path.write(at, state, output))
    for index in (0, 3):
        losses = []
        for sign in (1, -1):

            def moved(at: int, state: State, output: Tensor, sign: int = sign, index: int = index) -> State:
                written = write(at, state, output)
                return written._replace(streams=written.streams + sign * step * direction) if at == index else written

            path.write = moved
            losses.append(observe_loss(model))
        path.write = write
        expected = (gradients[index] * direction).sum().item()
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=2e-2)


EVERY_PATH = pytest.mark.parametrize("option", groups()["connection"])


def parted(option: str) -> Transformer:
    """A model of that option whose streams have parted."""
    model = Transformer(MODEL, compose([f"connection={option}"]).connection, 32)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
        for parameter in model.path.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.3)
    return model


@EVERY_PATH
def test_the_three_ways_of_a_gradient_add_up(option: str) -> None:
    model = parted(option)
    observation = observe(model, BLOCKS)
    for crossing, row in zip(observation.crossings, measure(observation)["sublayers"], strict=True):
        back = crossing.backward
        branch = crossing.pre.unsqueeze(-1) * back.read.unsqueeze(-2)
        ways = crossing.res.mT @ back.after + branch + back.coefficients
        torch.testing.assert_close(ways, back.total, rtol=1e-3, atol=1e-5 * back.total.abs().max().item())
        parts = ("mixer", "branch", "coefficients", "mixer_branch", "mixer_coefficients", "branch_coefficients")
        total = sum(row[f"gradient_{part}"]["mean"] for part in parts)
        assert total == pytest.approx(row["gradient_out"]["mean"], rel=1e-5)


@EVERY_PATH
@pytest.mark.parametrize("index", [0, 3, 5])
def test_without_the_maps_own_way_two_ways_are_left(option: str, index: int) -> None:
    """Cut one sublayer's maps out of the graph: what the gradient loses there is the coefficients' share."""
    model, streams = parted(option), []
    whole = observe(model, BLOCKS).crossings[index].backward
    maps = model.path[index].maps

    def cut(X: Tensor) -> Any:
        X.retain_grad()
        streams.append(X)
        return Maps(*(part.detach() for part in maps(X)))

    model.path[index].maps = cut
    with model.path.step_by_step():
        observe_loss_of(model).backward()
    left = streams[0].grad.flatten(0, 1)
    expected = whole.total - whole.coefficients
    torch.testing.assert_close(left, expected, rtol=1e-3, atol=2e-5 * whole.total.abs().max().item())


def test_majorisation_is_what_a_doubly_stochastic_map_cannot_break() -> None:
    X = torch.randn(5, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sound = torch.from_numpy(some_maps("doubly stochastic", 4))
    assert signals.majorisation_excess(X, sound).max() < 1e-9
    assert signals.mass_drift(X, sound).max() < 1e-9
    unsound = torch.from_numpy(some_maps("orthogonal", 4))
    for X_t, H, found in zip(X.numpy(), unsound.numpy(), signals.majorisation_excess(X, unsound), strict=True):
        mixed, excess = H @ X_t, 0.0
        for channel, k in itertools.product(range(8), range(1, 5)):
            largest = [sum(sorted(values[:, channel], reverse=True)[:k]) for values in (mixed, X_t)]
            excess = max(excess, largest[0] - largest[1])
        assert found.item() == pytest.approx(excess / np.sqrt((X_t**2).mean()))


@pytest.mark.parametrize("n", range(1, 9))
def test_majorisation_is_by_sorted_streams_however_many(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    X = torch.randint(-2, 3, (50, n, 16), generator=generator).double()  # with ties
    H = torch.randint(-1, 2, (50, n, n), generator=generator).double()
    mixed, before = (part.sort(-2, descending=True).values.cumsum(-2) for part in (H @ X, X))
    excess = (mixed - before).clamp_min(0).amax((-2, -1))
    assert signals.majorisation_excess(X, H).equal(excess / X.square().mean((-2, -1)).sqrt())
    broken = X.index_fill(0, torch.tensor([3]), math.nan)
    assert signals.majorisation_excess(broken, H).isnan().nonzero().tolist() == [[3]]


def test_numbers_of_single_streams_and_channels() -> None:
    X = torch.zeros(1, 4, 9, dtype=torch.float64)
    X[0, :3] = 1
    assert signals.least_energy_share(X) == 0 and signals.least_energy_share(X[:, :3]) == 1
    y = torch.zeros(1, 9, dtype=torch.float64)
    y[0, 4] = -2
    assert signals.outlier(y).item() == pytest.approx(3) and signals.outlier(torch.ones(1, 9)) == 1


def test_spans_and_halves_are_products_of_the_maps_between() -> None:
    observation = observe(parted("mhc"), BLOCKS)
    maps = [crossing.res.double().numpy() for crossing in observation.crossings]
    tables = spans(observation)
    for first, last in ((0, 0), (1, 3), (0, 5)):
        product = np.eye(4)
        for H in maps[first : last + 1]:
            product = H @ product
        assert tables["forward_gain"][first][last] == pytest.approx(max(oracle(P)["forward_gain"] for P in product))
        middle = np.median([oracle(P)["difference_gain"] for P in product])
        assert tables["difference_gain"][first][last] == pytest.approx(middle)
    assert tables["forward_gain"][3][1] is None
    np.testing.assert_allclose(halves(observation)["second"], (maps[5] @ maps[4] @ maps[3]).mean(0))


def test_a_mixer_drifts_from_where_it_started() -> None:
    model, start = parted("mhc"), Transformer(MODEL, ConnectionConfig(), 32)
    observation = observe(model, BLOCKS, start.path)
    crossing, row = observation.crossings[2], measure(observation)["sublayers"][2]
    moved = torch.linalg.matrix_norm(crossing.res - start.path[2].maps(crossing.streams[None]).res[0])
    assert row["mixer_drift"]["max"] == pytest.approx(
        (moved / crossing.initial.norm(dim=(1, 2))).max().item(), rel=1e-4
    )
    assert row["logit_range"]["max"] == pytest.approx(np.ptp(crossing.logits.numpy(), axis=1).max())
    assert row["mixer_gradient"]["max"] > 0 and row["output_gradient"]["max"] > 0


def observe_loss_of(model: Transformer) -> Tensor:
    return torch.nn.functional.cross_entropy(model(BLOCKS[:, :-1]).flatten(0, 1), BLOCKS[:, 1:].flatten())


def observe_loss(model: Transformer) -> float:
    logits = model(BLOCKS[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), BLOCKS[:, 1:].flatten()).item()


def test_the_residual_path_is_perfectly_passive_and_hc_can_be_caught() -> None:
    residual = measure(observe(random_model("residual"), BLOCKS))
    verdicts = {law["law"]: law["verdict"] for law in residual["laws"]}
    assert set(verdicts.values()) == {"ok", "not applicable"}
    model = random_model("hc")
    with torch.no_grad():
        model.path[4].bias_res.mul_(1.3)
    hc = {law["law"]: law for law in measure(observe(model, BLOCKS))["laws"]}
    assert hc["mass"]["verdict"] == hc["dissipation"]["verdict"] == "fail"
    assert hc["distinct_streams"]["verdict"] == "ok"


def test_uniform_mixers_conserve_everything_and_collapse() -> None:
    model = Transformer(MODEL, ConnectionConfig(init="uniform", gate_init=0), 32)
    document = measure(observe(model, BLOCKS))
    laws = {law["law"]: law for law in document["laws"]}
    assert laws["mass"]["verdict"] == laws["closure_forward"]["verdict"] == "ok"
    assert laws["no_collapse"]["verdict"] == "warn"
    assert laws["time_symmetry"]["declared"] == {"tolerance": 1e-5, "logit_range": None}
    assert laws["mass"]["declared"] == {"tolerance": 1e-3, "logit_range": 3.0}


def test_energy_is_judged_where_it_is_declared_and_nowhere_else() -> None:
    rotating = Transformer(MODEL, ConnectionConfig(mixer="quaternion", init="home", gate_init=1), 32)
    energy = next(law for law in measure(observe(rotating, BLOCKS))["laws"] if law["law"] == "energy")
    assert energy["verdict"] == "ok" and energy["declared"]["tolerance"] == 1e-5
    assert energy["evidence"]["value"] == pytest.approx(1, abs=1e-5)
    assert "energy" not in {law["law"] for law in measure(observe(random_model("hc"), BLOCKS))["laws"]}


def test_conditions_look_at_the_extreme_token_and_take_null_for_a_violation() -> None:
    document = measure(observe(random_model("hc"), BLOCKS))
    worst = max(row["forward_gain"]["max"] for row in document["composite"]["forward"])
    assert parse_condition(f"composite_forward_gain>={worst}").violations(document)
    assert not parse_condition(f"composite_forward_gain > {worst}").violations(document)
    assert parse_condition("smallest_entry<0").violations(document)
    assert not parse_condition("row_error.min > 1e9").violations(document)
    document["sublayers"][2]["row_error"]["max"] = None
    assert parse_condition("row_error>1e9").violations(document) == [
        "row_error.max > 1e+09: it is not finite at layers.1.attention"
    ]
    for text, name in itertools.product(("{}", "{}=1", "{}>x", "{}.sum>1", "{}>nan", "{}<inf"), ("row_error",)):
        with pytest.raises(ConfigError, match="not a condition"):
            parse_condition(text.format(name))
    broken = [law["law"] for law in document["laws"] if law["verdict"] == "fail"]
    assert broken and [place.partition(":")[0] for place in parse_condition(" fail ").violations(document)] == broken
    assert len(parse_condition("warn").violations(document)) > len(broken)
    assert parse_condition("dobrushin.median>1e-9").violations(document)
    assert parse_condition("fail:mass").violations(document) and not parse_condition("fail:outliers").violations(
        document
    )
    for text, hint in (
        ("forwardgain>1", "did you mean forward_gain"),
        ("fail:masss", "did you mean mass"),
        ("x>1", "x"),
    ):
        with pytest.raises(ConfigError, match=hint):
            parse_condition(text)
    del document["sublayers"][0]["outlier"], document["sublayers"][2]["outlier"]
    assert not parse_condition("outlier>1e9").violations(document)  # what some sublayers have is judged there
    with pytest.raises(ConfigError, match="not measured here"):
        parse_condition("mixer_drift>1").violations(document)


def test_what_has_no_meaning_for_one_stream_is_beyond_no_limit() -> None:
    document = measure(observe(random_model("residual"), BLOCKS))
    for text in ("stream_difference<1e-3", "composite_difference_gain<0.01", "stream_cosine>0.9"):
        assert not parse_condition(text).violations(document)
    assert parse_condition("forward_gain>=1").violations(document)
