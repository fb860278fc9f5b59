"""Streams kept in bfloat16: the same function to that precision, coefficients in float32, measurements as ever."""

import math

import pytest
import torch
from torch import Tensor

from mhc_train.config.compose import compose, groups
from mhc_train.connections import State
from mhc_train.diagnostics import measure, observe
from mhc_train.diagnostics.watch import Watch
from mhc_train.model import Transformer
from mhc_train.model.initialise import initial_path
from mhc_train.schema import ModelConfig

MODEL = ModelConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=64, max_seq_len=32)
TOKENS = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(0))
OPTIONS = pytest.mark.parametrize("option", groups()["connection"])


def built(option: str, precision: str) -> Transformer:
    config = compose([f"connection={option}", f"train.stream_precision={precision}"])
    model = Transformer(MODEL, config.connection, 32)
    model.adapt(config.train)
    return model


def losses_and_gradients(model: Transformer) -> tuple[Tensor, Tensor]:
    logits = model(TOKENS[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), TOKENS[:, 1:].flatten())
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


@OPTIONS
def test_the_function_stays_the_same_to_that_precision(option: str) -> None:
    (loss, gradient), (expected, exact) = (
        losses_and_gradients(built(option, precision)) for precision in ("bfloat16", "float32")
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2) and loss != expected
    assert gradient.dtype == torch.float32
    assert (gradient - exact).norm() < 0.05 * exact.norm()


@OPTIONS
def test_only_the_streams_are_kept_so(option: str) -> None:
    seen: list[State] = []
    built(option, "bfloat16")(TOKENS[:, :-1], observe=lambda _, state, *rest: seen.append(state))
    assert {state.streams.dtype for state in seen} == {torch.bfloat16}
    assert {part.dtype for state in seen[:-1] for part in state.maps or ()} == {torch.float32}


@pytest.mark.parametrize("option", ["residual", "hc", "mhc", "mhc_single_pass"])
def test_what_is_measured_is_measured_all_the_same(option: str) -> None:
    model = built(option, "bfloat16")
    watch = Watch(model, 32, 16, initial_path(MODEL, compose([f"connection={option}"]).connection, seed=0))
    watch.through(model)(TOKENS[:, :-1])
    watch.note(torch.zeros(4, 16))
    for document in (measure(observe(model, TOKENS)), measure(watch.observation())):
        gains = [row["forward_gain"]["max"] for row in document["sublayers"]]
        assert all(math.isfinite(gain) for gain in gains)
