"""Ablations against a forward pass written by hand, cases with a known answer, and a model that is left as it was."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.diagnostics import ablation
from mhc_train.diagnostics.ablation import KINDS, ablate, altered, summary
from mhc_train.errors import ConfigError
from mhc_train.model import Transformer
from mhc_train.schema import ConnectionConfig, ModelConfig

MODEL = ModelConfig(dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
BLOCKS = torch.randint(32, (5, 13), generator=torch.Generator().manual_seed(0))


def far_from_start(connection: ConnectionConfig) -> Transformer:
    """Mixing, reading and writing depend on the token, and the sublayers' outputs are as large as the embedding."""
    model, generator = Transformer(MODEL, connection, 32), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.8, generator=generator)
    return model


def by_hand(model: Transformer, kind: str | None, where: range, means: list[np.ndarray]) -> tuple[np.ndarray, list]:
    """Nats a token of every sequence, and the token means of H_res; streams and mixing in NumPy, float64."""
    tokens, targets = BLOCKS[:, :-1], BLOCKS[:, 1:]
    n, path = model.path.streams, model.path
    shift = np.roll(np.eye(n), 1, axis=0)  # ones at [i + 1, i]: what i received, i + 1 receives
    X, projected, seen = path.expand(model.embedding(tokens)).streams.double().numpy(), None, []
    for index in range(model.sublayers):
        pre, post, H = (part.double().numpy() for part in path.connections[index].maps(torch.tensor(X).float()))
        if path.__class__.__name__ == "SinglePassPath":
            pre, projected = (np.broadcast_to(np.eye(n)[0], pre.shape) if projected is None else projected), pre
        seen.append(H.mean((0, 1)))
        if index in where:
            H = {
                "identity": lambda H: np.broadcast_to(np.eye(n), H.shape),
                "token_mean": lambda H, index=index: np.broadcast_to(means[index], H.shape),
                "uniform": lambda H: np.ones_like(H) / n,
                "diagonal": lambda H: H * np.eye(n),
                "permuted": lambda H: shift @ H,
            }[kind](H)
        x = torch.tensor(np.einsum("bti,btic->btc", pre, X)).float()
        layer, is_feedforward = divmod(index, 2)
        normed = model.norms[index](x)
        y = (
            model.feedforward[layer](normed)
            if is_feedforward
            else model.attention[layer](normed, model.rotation[:, :12], None)
        )
        X = np.einsum("btij,btjc->btic", H, X) + post[..., None] * y.double().numpy()[..., None, :]
    out = path.read_out(torch.tensor(X).float(), None if projected is None else torch.tensor(projected).float())
    logits = (model.final_norm(out) @ model.embedding.weight.T).double().numpy()
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(logits, targets.numpy()[..., None], -1)[..., 0].mean(1), seen


@torch.no_grad()
@pytest.mark.parametrize("option", groups()["connection"])
def test_every_ablation_of_every_connection_against_a_forward_by_hand(option: str) -> None:
    model = far_from_start(compose([f"connection={option}"]).connection)
    rows = ablate(model, BLOCKS, per_sublayer=True)
    if option == "residual":
        assert rows == []
        return
    assert len(rows) == len(KINDS) * (1 + model.sublayers)
    places = {"all": range(model.sublayers)}
    places |= {name: range(i, i + 1) for i, name in enumerate(model.sublayer_names())}
    intact, means = by_hand(model, None, range(0), [])
    for row in rows:
        expected, _ = by_hand(model, row["kind"], places[row["sublayer"]], means)
        differences, label = expected - intact, f"{row['sublayer']} {row['kind']}"
        assert row["sequences"] == 5, label
        assert row["loss"] == pytest.approx(expected.mean(), rel=1e-4), label
        assert row["loss_difference"] == pytest.approx(differences.mean(), abs=1e-4, rel=1e-4), label
        assert row["standard_error"] == pytest.approx(differences.std(ddof=1) / math.sqrt(5), abs=1e-4, rel=1e-3), label
    shown = max(abs(row["loss_difference"]) for row in rows if row["kind"] != "token_mean")
    assert shown > 0.01  # the comparison above is not one of zeros


def test_what_does_not_mix_loses_nothing_by_the_identity_and_something_by_another_mixer() -> None:
    """The connection without a mixer skips the product: the other kinds must nevertheless be applied."""
    rows = {row["kind"]: row for row in ablate(far_from_start(compose(["connection=ihc"]).connection), BLOCKS)}
    for kind in ("identity", "token_mean", "diagonal"):
        assert rows[kind]["loss_difference"] == rows[kind]["standard_error"] == 0, kind
        assert rows[kind]["verdict"] == "no effect shown"
    assert abs(rows["uniform"]["loss_difference"]) > 0.01 and abs(rows["permuted"]["loss_difference"]) > 0.01


def test_uniform_mixers_lose_nothing_by_the_uniform_one_and_static_ones_by_their_mean() -> None:
    model = Transformer(MODEL, ConnectionConfig(init="uniform", gate_init=0), 32)
    rows = {row["kind"]: row for row in ablate(model, BLOCKS)}
    for kind in ("uniform", "token_mean"):
        assert abs(rows[kind]["loss_difference"]) < 1e-6 and rows[kind]["verdict"] == "no effect shown", kind
    static = ablate(far_from_start(compose(["connection=hc_static"]).connection), BLOCKS, ["token_mean"])
    assert abs(static[0]["loss_difference"]) < 1e-4


def test_sublayers_that_a_configuration_leaves_out_are_replaced_too() -> None:
    model = far_from_start(ConnectionConfig(where="attention"))
    rows = ablate(model, BLOCKS, ["identity", "uniform"], per_sublayer=True)
    differences = {(row["sublayer"], row["kind"]): row["loss_difference"] for row in rows}
    assert differences["layers.0.feedforward", "identity"] == 0
    assert abs(differences["layers.0.feedforward", "uniform"]) > 1e-3


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_afterwards_what_it_was(fails: bool) -> None:
    model = far_from_start(ConnectionConfig()).eval()
    modules, state = dict(model.named_modules()), {key: value.clone() for key, value in model.state_dict().items()}

    def wrong(res: Tensor) -> Tensor:
        assert not fails
        return res

    if fails:
        with pytest.raises(AssertionError), altered(model.path, [wrong] * model.sublayers):
            model(BLOCKS[:, :-1])
        with pytest.raises(ValueError, match="shorter"), altered(model.path, [wrong]):
            raise AssertionError("not reached")
    else:
        first = ablate(model, BLOCKS, per_sublayer=True)
        assert first == ablate(model, BLOCKS, per_sublayer=True)
    assert list(modules) == [name for name, _ in model.named_modules()]
    assert all(module is modules[name] for name, module in model.named_modules())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_sequences_of_few_at_a_time_and_of_masked_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    masked = ModelConfig(**{**vars(MODEL), "document_mask": True})
    model = Transformer(masked, ConnectionConfig(), 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(1))
    together = ablate(model, BLOCKS)
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, **more: sizes.append(len(tokens)) or forward(tokens, **more))
    for most, size in ((24, 2), (1, 1)):
        sizes.clear()
        monkeypatch.setattr(ablation, "TOKENS_AT_ONCE", most)
        for row, other in zip(together, ablate(model, BLOCKS), strict=True):
            assert other["loss_difference"] == pytest.approx(row["loss_difference"], abs=1e-5)
            assert other["standard_error"] == pytest.approx(row["standard_error"], abs=1e-5)
        assert max(sizes) == size


def test_one_sequence_has_no_standard_error_and_a_broken_model_no_loss() -> None:
    model = far_from_start(ConnectionConfig(kind="hc"))
    row = ablate(model, BLOCKS[:1], ["uniform"])[0]
    assert row["standard_error"] is None and row["verdict"] == "not decided" and row["sequences"] == 1
    assert "one sequence has no standard error" in row["meaning"] and abs(row["loss_difference"]) > 0
    with torch.no_grad():
        model.path[1].bias_res[1] = math.inf
    for row in ablate(model, BLOCKS, ["uniform", "permuted"]):
        assert row["loss_difference"] is row["standard_error"] is None and row["verdict"] == "not finite"
        json.dumps(row, allow_nan=False)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="no ablation nonsense; there are identity"):
        ablate(far_from_start(ConnectionConfig()), BLOCKS, ["uniform", "nonsense"])


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ([0.11, 0.13, 0.12], "matters", "replacing H_res by I everywhere costs 0.12 +- 0.0058 nats a token"),
        ([-0.11, -0.13, -0.12], "matters", "everywhere saves 0.12 +- 0.0058 nats a token"),
        ([0.5, -0.3, 0.1], "no effect shown", "changes the loss by +0.1 +- 0.23 nats a token"),
        ([0.0, 0.0, 0.0], "no effect shown", "changes the loss by +0 +- 0 nats a token"),
        ([4e-6, 4e-6, 4e-6], "no effect shown", "changes the loss by +4e-06"),  # what rounding may do
    ],
)
def test_both_sides_and_neither(
    changes: list[float], verdict: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([torch.zeros(3).double(), torch.tensor(changes).double(), *[torch.zeros(3).double()] * 4])
    monkeypatch.setattr(ablation, "_losses", lambda *_: next(losses))
    rows = ablate(far_from_start(ConnectionConfig()), BLOCKS, ["identity"], per_sublayer=True)
    assert rows[0]["verdict"] == verdict
    everywhere, alone = summary(rows)
    assert everywhere == rows[0]["meaning"] and everywhere.startswith(f"mixing: {verdict}; ") and words in everywhere
    assert alone.startswith("replacing H_res by I: an effect is shown at 0 of 4 sublayers alone; ")


def test_the_summary_names_the_sublayer_that_counts() -> None:
    model = Transformer(MODEL, ConnectionConfig(mixer="identity"), 32)
    rows = ablate(model, BLOCKS, ["identity"], per_sublayer=True)
    rows[3] |= {"loss_difference": -0.5, "verdict": "matters", "meaning": "planted"}
    assert "at 1 of 4 sublayers alone; where the loss changes most, planted" in summary(rows)[1]
    rows[2] |= {"loss_difference": None, "verdict": "not finite", "meaning": "broken"}
    assert "at 2 of 4 sublayers alone; where the loss changes most, broken" in summary(rows)[1]
