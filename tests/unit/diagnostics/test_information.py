"""Estimates of retained information against plain NumPy, cases with a known answer, and repeated draws."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mhc_train.diagnostics import observe
from mhc_train.diagnostics.information import FOLDS, PENALTIES, information
from mhc_train.diagnostics.observation import Crossing, Observation
from mhc_train.model import Transformer
from mhc_train.schema import ConnectionConfig, ModelConfig


def observed(*places: Tensor | None) -> Observation:
    """Streams before every sublayer and after the last, and maps that nobody asks for."""
    tokens, n, _ = next(place.shape for place in places if place is not None)
    ones = torch.ones(tokens, n)
    crossings = [Crossing(ones, ones, torch.ones(tokens, n, n), streams=place) for place in places[:-1]]
    return Observation([f"s{i}" for i in range(len(crossings))], crossings, "drawn", last=places[-1])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copies(embedding: Tensor, n: int = 4) -> Tensor:
    return embedding.unsqueeze(1).repeat(1, n, 1)


def estimates(X: Tensor, embedding: Tensor, length: int | None = 8) -> dict:
    """The entry of streams X in a model whose n streams start from the embedding."""
    return information(observed(copies(embedding, X.shape[1]), X), length)[1]


# --- the oracle: loops, explicit solves, explicit deletions


def ridge(X: np.ndarray, Y: np.ndarray, at: np.ndarray, penalty: float, dimensions: int) -> np.ndarray:
    A, B = X - X.mean(0), Y - Y.mean(0)
    strength = penalty * (A**2).sum() / dimensions
    return (at - X.mean(0)) @ np.linalg.solve(A.T @ A + strength * np.eye(A.shape[1]), A.T @ B) + Y.mean(0)


def r2(X: np.ndarray, Y: np.ndarray, sequences: np.ndarray) -> tuple[float, float]:
    count = sequences.max() + 1
    folds = np.array([sequence * FOLDS // count for sequence in sequences])
    dimensions, chosen = min(X.shape), []
    for fold in range(FOLDS):
        chooser = folds == (fold + 1) % FOLDS
        fitted = (folds != fold) & ~chooser
        tried = [ridge(X[fitted], Y[fitted], X[chooser], penalty, dimensions) for penalty in PENALTIES]
        losses = [((prediction - Y[chooser]) ** 2).sum() for prediction in tried]
        chosen.append(PENALTIES[int(np.argmin(losses))])

    def sums(dropped: int | None = None) -> np.ndarray:
        """Squared error and deviation of each sequence."""
        found = np.zeros((2, count))
        for sequence in range(count):
            fold, mine = sequence * FOLDS // count, sequences == sequence
            if fold == dropped:
                continue
            others = (folds != fold) & (folds != dropped)
            prediction = ridge(X[others], Y[others], X[mine], chosen[fold], dimensions)
            found[0, sequence] = ((prediction - Y[mine]) ** 2).sum()
            found[1, sequence] = ((Y[others].mean(0) - Y[mine]) ** 2).sum()
        return found

    def share(found: np.ndarray) -> float:
        return 1 - found[0].sum() / found[1].sum()

    everything = sums()
    units = [share(np.delete(everything, sequence, axis=1)) for sequence in range(count)]
    return share(everything), max(jackknife(units), jackknife([share(sums(fold)) for fold in range(FOLDS)]))


def jackknife(values: list[float]) -> float:
    return math.sqrt((len(values) - 1) * np.var(values))


def debiased_cka(X: np.ndarray, Y: np.ndarray) -> float:
    """By U-centred Gram matrices (Szekely and Rizzo, 2014), another form of the unbiased HSIC."""

    def centred(X: np.ndarray) -> np.ndarray:
        K, m = X @ X.T, len(X)
        np.fill_diagonal(K, 0)
        rows = K.sum(1, keepdims=True)
        K = K - rows / (m - 2) - rows.T / (m - 2) + K.sum() / ((m - 1) * (m - 2))
        np.fill_diagonal(K, 0)
        return K

    K, L = centred(X), centred(Y)
    return float((K * L).sum() / math.sqrt((K * K).sum() * (L * L).sum()))


def textbook_cka(X: np.ndarray, Y: np.ndarray) -> float:
    A, B = X - X.mean(0), Y - Y.mean(0)
    return float(np.linalg.norm(A.T @ B) ** 2 / (np.linalg.norm(A.T @ A) * np.linalg.norm(B.T @ B)))


@pytest.mark.parametrize(("sequences", "dim", "n"), [(24, 5, 4), (9, 6, 2), (10, 30, 4)])  # the last: 80 tokens, 120
def test_against_numpy(sequences: int, dim: int, n: int) -> None:
    tokens = 8 * sequences
    embedding = drawn(tokens, dim)
    X = copies(embedding, n) + 2 + drawn(tokens, n, dim, seed=1) * drawn(n, 1, seed=2).exp()
    found = estimates(X, embedding)
    x, y, of = X.double().flatten(1).numpy(), embedding.double().numpy(), np.arange(tokens) // 8
    expected, error = r2(x, y, of)
    assert found["r2"]["estimate"] == pytest.approx(expected, rel=1e-6)
    assert found["r2"]["standard_error"] == pytest.approx(error, rel=1e-5)
    assert found["cka"]["estimate"] == pytest.approx(debiased_cka(x, y), rel=1e-6)
    without = [debiased_cka(x[of != sequence], y[of != sequence]) for sequence in range(sequences)]
    assert found["cka"]["standard_error"] == pytest.approx(jackknife(without), rel=1e-5)
    assert found["units"] == sequences and found["unit"] == "sequence" and found["tokens"] == tokens


def test_many_tokens_give_the_textbook_alignment() -> None:
    embedding = drawn(2048, 3)
    X = copies(embedding, 2) + drawn(2048, 2, 3, seed=1)
    expected = textbook_cka(X.flatten(1).double().numpy(), embedding.double().numpy())
    assert estimates(X, embedding, 32)["cka"]["estimate"] == pytest.approx(expected, abs=2e-3)


ROTATION = torch.linalg.qr(drawn(24, 24, seed=5)).Q


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X,
        lambda X: (X.flatten(1) @ ROTATION).unflatten(1, (4, 6)),
        lambda X: 1e6 * X,
        lambda X: 1e-6 * X.flip(1),
        lambda X: X + 1e3 * torch.arange(6.0),
    ],
    ids=["itself", "rotated", "amplified", "shrunk and permuted", "moved"],
)
def test_nothing_is_lost_by_a_rotation_a_scale_or_a_shift(change) -> None:
    embedding = drawn(256, 6)
    found = estimates(change(copies(embedding)), embedding)
    for key in ("r2", "r2_new", "cka"):
        assert found[key]["estimate"] == pytest.approx(1, abs=1e-5), key
        assert found[key]["standard_error"] < 1e-5, key


def test_what_only_differences_between_streams_hold_is_found_by_regression_and_less_by_alignment() -> None:
    embedding, noise = drawn(256, 6), 10 * drawn(256, 6, seed=1)
    found = estimates(torch.stack([noise + embedding, noise - embedding], 1), embedding)
    assert found["r2"]["estimate"] > 0.999 and found["cka"]["estimate"] < 0.2


def test_independent_streams_keep_nothing_where_tokens_are_few_for_the_dimensions() -> None:
    embedding, X = drawn(128, 64), drawn(128, 4, 64, seed=1)
    found = estimates(X, embedding)
    assert -0.1 < found["r2"]["estimate"] < 0.01
    assert abs(found["cka"]["estimate"]) < 4 * found["cka"]["standard_error"] < 0.1
    assert textbook_cka(X.flatten(1).numpy(), embedding.numpy()) > 0.4  # what it is debiased against


def test_a_recognised_token_is_not_a_kept_embedding() -> None:
    """Every type has a code of its own that says nothing of its embedding: repeated types are known by heart."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randint(12, (40, 8), generator=generator)
    ids = torch.cat(
        [common, 12 + torch.arange(40).unsqueeze(1)], 1
    ).flatten()  # and a type of its own in every sequence
    table, codes = drawn(52, 16), drawn(52, 2, 32, seed=1)
    found = estimates(codes[ids], table[ids], 9)
    assert found["r2"]["estimate"] > 0.8
    assert found["r2_new"]["estimate"] < 0.1
    new = information(observed(copies(table[ids]), copies(table[ids])), 9)[1]["r2_new"]
    assert new["estimate"] > 0.95


def test_types_that_all_repeat_leave_nothing_new() -> None:
    ids = torch.arange(8).repeat(16)
    assert estimates(drawn(128, 2, 4), drawn(8, 4)[ids])["r2_new"] == {"estimate": None, "standard_error": None}


@pytest.mark.parametrize(("sequences", "dim"), [(32, 4), (16, 16)])  # many tokens for 8 dimensions, few for 32
def test_standard_errors_are_of_the_order_of_the_spread_over_draws(sequences: int, dim: int) -> None:
    draws = []
    for seed in range(40):
        embedding = drawn(8 * sequences, dim, seed=3 * seed)
        own = drawn(sequences, 2, dim, seed=3 * seed + 1).repeat_interleave(8, 0)  # what tokens of a sequence share
        draws.append(estimates(copies(embedding, 2) + own + drawn(*own.shape, seed=3 * seed + 2), embedding))
    for key in ("r2", "cka"):
        spread = np.std([draw[key]["estimate"] for draw in draws], ddof=1)
        stated = math.sqrt(np.mean([draw[key]["standard_error"] ** 2 for draw in draws]))
        assert 0.7 < stated / spread < 1.6, (key, stated, spread)


WIDE = drawn(400, 192, seed=4)


@pytest.mark.parametrize("change", [lambda X: X, lambda X: 3 * X.flip(1), lambda X: X * drawn(4, 1)])
def test_what_is_projected_is_found_whole_after_whatever_streams_do_among_each_other(change) -> None:
    found = estimates(change(copies(WIDE)), WIDE)
    assert found["dimensions"] == 512
    for key in ("r2", "r2_new", "cka"):
        assert found[key]["estimate"] == pytest.approx(1, abs=1e-4), key


def test_a_projection_is_about_what_is_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = drawn(512, 64)
    X = copies(embedding) + drawn(512, 4, 64, seed=1)
    exact = estimates(X, embedding)
    monkeypatch.setattr("mhc_train.diagnostics.information.MOST_DIMENSIONS", 130)
    found = estimates(X, embedding)
    assert (exact["dimensions"], found["dimensions"]) == (256, 128)
    assert found["r2"]["estimate"] == pytest.approx(exact["r2"]["estimate"], abs=0.1)
    assert found["cka"]["estimate"] == pytest.approx(exact["cka"]["estimate"], abs=0.05)
    independent = estimates(drawn(512, 4, 64, seed=1), embedding)
    assert independent["r2"]["estimate"] < 0.01
    assert abs(independent["cka"]["estimate"]) < 4 * independent["cka"]["standard_error"] < 0.1
    assert found == estimates(X, embedding)  # the same projection each time


def test_repeated_tokens_are_still_known_after_a_projection() -> None:
    found = estimates(drawn(160, 4, 192), WIDE[:20].repeat(8, 1))
    assert found["r2_new"] == {"estimate": None, "standard_error": None}


def test_of_many_tokens_some_of_every_sequence_are_used() -> None:
    embedding = drawn(80 * 64, 2)
    found = estimates(copies(embedding, 1), embedding, 64)
    assert found["tokens"] == math.ceil(80 * 64 / 3) <= 2048 and found["units"] == 80
    assert estimates(copies(embedding, 1), embedding, 2 * 1024)["unit"] == "run of tokens"
    fewer = information(observed(copies(embedding, 1)[:640], copies(embedding, 1)[:640]), most_tokens=100)[1]
    assert fewer["tokens"] == math.ceil(640 / 7) and fewer["units"] == 32 and fewer["r2"]["estimate"] > 0.999


def test_what_is_undefined_is_null() -> None:
    embedding = drawn(64, 4)
    broken = copies(embedding)
    broken[3, 1] = math.nan
    nothing = {"estimate": None, "standard_error": None}
    entries = information(observed(copies(embedding), broken, torch.zeros(64, 4, 4)), 8)
    assert entries[1]["r2"] == entries[1]["r2_new"] == entries[1]["cka"] == nothing
    assert entries[2]["r2"]["estimate"] == pytest.approx(0, abs=1e-9) and entries[2]["cka"] == nothing
    constant = information(observed(torch.ones(64, 4, 4), copies(embedding)), 8)[1]
    assert constant["r2"] == constant["cka"] == nothing
    assert information(observed(copies(embedding), None), 8) == information(observed(None, broken), 8) == []
    assert information(observed(copies(embedding[:63]), copies(embedding[:63])), 8) == []
    assert information(observed(copies(embedding), copies(embedding)), 8, most_tokens=40) == []
    json.dumps(entries, allow_nan=False)


@pytest.mark.parametrize("kind", ["residual", "hc", "mhc"])
def test_of_a_model(kind: str) -> None:
    config = ModelConfig(dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
    model = Transformer(config, ConnectionConfig(kind=kind, streams=1 if kind == "residual" else 4), 64)
    blocks = torch.randint(64, (24, 13), generator=torch.Generator().manual_seed(0))
    entries = information(observe(model, blocks), 12)
    assert [entry["name"] for entry in entries] == [*model.sublayer_names(), "read-out"]
    assert [entry["index"] for entry in entries] == list(range(5))
    assert entries[0]["r2"]["estimate"] == pytest.approx(1, abs=1e-4)
    assert entries[0]["cka"]["estimate"] == pytest.approx(1)
    assert 0 < entries[-1]["cka"]["estimate"] < 1
