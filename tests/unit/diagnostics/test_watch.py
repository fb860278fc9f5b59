"""A training step that is looked through: the same numbers as any measurement, and nothing else about it changes."""

import json
import math
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose
from mhc_train.diagnostics import measure, observe
from mhc_train.diagnostics.watch import LEFT_OUT, Watch, line
from mhc_train.model import Transformer
from mhc_train.model.initialise import initial_path
from mhc_train.model.recompute import KEEP_ALL, Segments
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ModelConfig, TrainConfig
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import Parallel, lay_out
from mhc_train.training.step import accumulate_gradients

MODEL = ModelConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=64, max_seq_len=32)
BATCH = torch.randint(32, (6, 17), generator=torch.Generator().manual_seed(0))
CPU = choose_device(TrainConfig(device="cpu"))
CUTS = (Segments(3), Segments(3, streams_only=True))
OPTIONS = pytest.mark.parametrize("option", ["residual", "hc", "mhc", "mhc_single_pass", "mhc_newton"])


def random_model(option: str, recompute: Segments = KEEP_ALL) -> Transformer:
    """All maps depend on the token."""
    model = Transformer(MODEL, compose([f"connection={option}"]).connection, 32, seed=5)
    model.recompute = recompute
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.path.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def a_watch(model: Transformer, option: str, tokens: int = 32) -> Watch:
    initial = initial_path(MODEL, compose([f"connection={option}"]).connection, seed=5)
    return Watch(model, tokens, 16, initial)


def looked(model: Transformer, option: str, parallel: Parallel | None = None) -> dict[str, Any]:
    """What a step on the whole batch, two sequences at once, lets be seen."""
    watch = a_watch(model, option)
    accumulate_gradients(parallel or lay_out(model, Config(), Ranks()), BATCH, 2, CPU, watch)
    return measure(watch.observation())


def numbers(document: Any, path: str = "") -> dict[str, Any]:
    """Every number (or null) by where it is; verdicts, which jump at a limit, left out."""
    if isinstance(document, dict):
        parts = [(key, value) for key, value in document.items() if key not in ("laws", "basis")]
    elif isinstance(document, list):
        parts = list(enumerate(document))
    else:
        return {} if isinstance(document, str) else {path: document}
    return {key: value for name, part in parts for key, value in numbers(part, f"{path}/{name}").items()}


def assert_alike(one: dict[str, Any], other: dict[str, Any], rel: float = 1e-4, least: float = 1e-5) -> None:
    found, expected = numbers(one), numbers(other)
    assert found.keys() == expected.keys()
    for place, value in found.items():
        wanted = expected[place]
        assert value == (None if wanted is None else pytest.approx(wanted, rel=rel, abs=least)), place


@OPTIONS
def test_a_look_is_the_measurement_of_the_first_tokens_without_gradients(option: str) -> None:
    model = random_model(option)
    start = initial_path(MODEL, compose([f"connection={option}"]).connection, seed=5)
    whole = observe(model, BATCH[:2], start, basis="training tokens")
    crossings = [replace(crossing, backward=None) for crossing in whole.crossings]
    document = looked(model, option)
    assert_alike(document, measure(replace(whole, crossings=crossings)))
    assert document["basis"] == "training tokens" and document["tokens"] == 32


@OPTIONS
@pytest.mark.parametrize("recompute", [KEEP_ALL, *CUTS])
def test_gradients_are_the_same_to_the_last_bit(option: str, recompute: Segments) -> None:
    unseen, seen = random_model(option, recompute), random_model(option, recompute)
    losses = [
        accumulate_gradients(lay_out(model, Config(), Ranks()), BATCH, 2, CPU, watch)
        for model, watch in ((unseen, None), (seen, a_watch(seen, option)))
    ]
    assert losses[0].equal(losses[1])
    for one, other in zip(unseen.parameters(), seen.parameters(), strict=True):
        assert one.grad is other.grad is None or one.grad.equal(other.grad)


@OPTIONS
@pytest.mark.parametrize("recompute", CUTS)
def test_with_recomputation_the_same_is_seen(option: str, recompute: Segments) -> None:
    assert looked(random_model(option, recompute), option) == looked(random_model(option), option)


@OPTIONS
def test_with_rebuilt_streams_a_measurement_with_gradients_is_the_same(option: str) -> None:
    model = random_model(option)
    expected = measure(observe(model, BATCH[:2]))
    model.recompute = CUTS[1]
    assert measure(observe(model, BATCH[:2])) == expected


SLOW = [pytest.param("mhc", cut, marks=pytest.mark.slow) for cut in (KEEP_ALL, *CUTS)]  # a compilation each


@pytest.mark.parametrize(("option", "recompute"), [("mhc_single_pass", CUTS[0]), *SLOW])
def test_a_compiled_step_is_seen_without_a_break_and_compiled_once(
    option: str, recompute: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks cannot be traced
    eager, model = looked(random_model(option), option), random_model(option, recompute)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    parallel = lay_out(model, Config(), Ranks())
    parallel.forward = torch.compile(model, backend="aot_eager", fullgraph=True)
    watch = a_watch(model, option)
    for _ in range(3):  # both graphs are made in the first of these steps, and none after it
        accumulate_gradients(parallel, BATCH, 2, CPU, watch)
        document = measure(watch.observation())
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_alike(document, eager)


@pytest.mark.parametrize(
    ("tokens", "rows", "positions"),
    [(1, 1, [0]), (5, 1, [0, 4, 8, 12]), (16, 1, list(range(16))), (40, 2, list(range(16))), (999, 6, list(range(16)))],
)
def test_which_tokens_are_seen(tokens: int, rows: int, positions: list[int]) -> None:
    model = random_model("mhc")
    watch = a_watch(model, "mhc", tokens)
    _, states = model(BATCH[:, :-1], observe=lambda _, state, *__: state)
    watch.through(model)(BATCH[:, :-1])
    losses = torch.arange(96.0).view(6, 16)
    watch.note(losses)
    observation = watch.observation()
    assert observation.loss == losses[:rows, positions].mean()
    assert observation.last is not None
    assert torch.equal(observation.last, states[-1].streams[:rows, positions].flatten(0, 1))
    for crossing, state in zip(observation.crossings, states, strict=False):
        assert torch.equal(crossing.res, state.maps.res[:rows, positions].flatten(0, 1))


def test_nothing_large_is_kept_alive() -> None:
    """What is seen of a step owns its few numbers: it is no view of a whole micro-batch's."""
    model = random_model("mhc")
    watch = a_watch(model, "mhc", tokens=4)
    watch.through(model)(BATCH[:, :-1])
    watch.note(torch.zeros(6, 16))

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [tensor for part in value for tensor in tensors(part)]

    for tensor in tensors(watch._seen):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes and not tensor.requires_grad


def test_what_was_seen_is_let_go_once_it_is_told() -> None:
    model = random_model("mhc")
    watch = a_watch(model, "mhc")
    accumulate_gradients(lay_out(model, Config(), Ranks()), BATCH, 2, CPU, watch)
    assert watch._seen and watch._made
    watch.observation()
    assert not watch._seen and not watch._made


def test_before_the_first_step_nothing_is_told_of_drift() -> None:
    connection = compose(["connection=mhc"]).connection
    for moved, verdict in ((True, "fail"), (False, "not applicable")):
        model = Transformer(MODEL, connection, 32, seed=5)
        with torch.no_grad():
            model.embedding.weight.mul_(20)  # streams part at once, so that mixing matters
        watch = a_watch(model, "mhc")
        accumulate_gradients(lay_out(model, Config(), Ranks()), BATCH, 2, CPU, watch)
        document = measure(watch.observation(moved))
        assert [law["verdict"] for law in document["laws"] if law["law"] == "dead_mixer"] == [verdict]
        assert all(("mixer_drift" in row) is moved for row in document["sublayers"])


def test_drift_is_measured_from_the_path_that_the_model_began_with() -> None:
    connection = compose(["connection=mhc"]).connection
    fresh = Transformer(MODEL, connection, 32, seed=5)
    for name, parameter in initial_path(MODEL, connection, seed=5).named_parameters():
        assert parameter.equal(fresh.path.get_parameter(name)), name
    watch = a_watch(fresh, "mhc")
    accumulate_gradients(lay_out(fresh, Config(), Ranks()), BATCH, 2, CPU, watch)
    assert all(torch.equal(crossing.res, crossing.initial) for crossing in watch.observation().crossings)
    assert looked(random_model("mhc"), "mhc")["sublayers"][0].get("mixer_drift", {"min": 1})["min"] > 0


def test_a_line_has_the_same_numbers_to_six_digits_and_no_more_than_it_must() -> None:
    document = looked(random_model("mhc"), "mhc")
    short = line(document)
    found, expected = numbers(short), numbers(document)
    assert all(value == pytest.approx(expected[place], rel=1e-5) for place, value in found.items() if value is not None)
    assert [law["verdict"] for law in short["laws"]] == [law["verdict"] for law in document["laws"]]
    text = json.dumps(short)
    assert len(text) < len(json.dumps(document)) / 2 and not any(f'"{key}":' in text for key in LEFT_OUT)
    # All of the whole depth's composites: the last one of the signal, the first one of gradients.
    whole = (short["composite"]["forward"][-1], short["composite"]["backward"][0])
    assert all(entry.keys() >= {"mean_map", "entropy"} for entry in whole)
    assert "mean_map" not in short["composite"]["forward"][0] and "mean_maps" in short["sublayers"][0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_breaks_is_seen_too(value: float) -> None:
    model = random_model("mhc")
    with torch.no_grad():
        model.feedforward[0].down.weight[0, 0] = value
    short = line(looked(model, "mhc"))
    json.dumps(short, allow_nan=False)
    assert short["loss"] is None
    assert [row["energy_out"]["max"] is None for row in short["sublayers"]] == [False, True, True, True]
