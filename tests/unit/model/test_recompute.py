"""Recomputation by segments: the same gradients to the last bit, less kept, and nothing done where nothing is kept."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from mhc_train.config.compose import compose, groups
from mhc_train.model import Transformer
from mhc_train.model.recompute import segment_length
from mhc_train.schema import ConnectionConfig, ModelConfig

MODEL = ModelConfig(dim=32, layers=3, heads=4, kv_heads=2, ffn_dim=64, max_seq_len=32)
OPTIONS = pytest.mark.parametrize("option", groups()["connection"])
TOKENS = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))


def connection(option: str) -> ConnectionConfig:
    return compose([f"connection={option}"]).connection


def random_model(option: str, config: ModelConfig = MODEL) -> Transformer:
    """All maps depend on the token; token 3 ends a document."""
    model = Transformer(config, connection(option), 32, end_of_text=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.path.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def results(model: Transformer, recompute: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The logits and all gradients, with segments of that many sublayers."""
    model.recompute = recompute
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(TOKENS)
    logits.float().logsumexp(-1).square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@OPTIONS
@pytest.mark.parametrize("length", [1, 4])
def test_gradients_are_the_same_to_the_last_bit(option: str, length: int) -> None:
    model = random_model(option)
    for one, other in zip(results(model, 0), results(model, length), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("option", ["residual", "hc", "mhc", "mhc_single_pass", "mhc_newton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_are_those_under_autocast_and_a_document_mask(option: str, dtype: torch.dtype) -> None:
    model = random_model(option, replace(MODEL, document_mask=True, tie_embeddings=False))
    for one, other in zip(results(model, 0, dtype), results(model, 2, dtype), strict=True):
        assert torch.equal(one, other)


def test_a_compiled_model_recomputes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks cannot be traced
    model = random_model("mhc_single_pass", replace(MODEL, layers=2))
    expected = results(model, 0)
    torch.compiler.reset()
    model.recompute = 3
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    model.zero_grad()
    logits = compiled(TOKENS)
    logits.logsumexp(-1).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close([logits.detach(), *gradients], expected, rtol=1e-4, atol=1e-4)


def saved(model: Transformer) -> int:
    """Numbers that autograd keeps outside of checkpointed segments."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(TOKENS)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def count_calls(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of sublayers, one for each time that one is run."""
    calls: list[int] = []
    sublayer = model._sublayer
    monkeypatch.setattr(model, "_sublayer", lambda index, *rest: (calls.append(index), sublayer(index, *rest))[1])
    return calls


def test_every_segment_runs_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mhc")
    calls = count_calls(model, monkeypatch)
    results(model, 4)
    assert calls == [0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2, 3]
    assert saved(model) < saved(random_model("mhc")) / 4


def test_no_gradients_no_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mhc")
    model.recompute = 2
    monkeypatch.setattr("mhc_train.model.transformer.checkpoint", None)  # to call it would fail
    with torch.no_grad():
        model(TOKENS)


def test_an_observer_sees_the_same_with_recomputation() -> None:
    def maps_of(length: int) -> list[Tensor]:
        model = random_model("mhc")
        model.recompute = length
        logits, seen = model(TOKENS, observe=lambda index, state, *_: state.maps.res if state.maps else state.streams)
        gradients = torch.autograd.grad(logits.square().mean(), seen[:-1])
        return [*seen, *gradients]

    for with_it, without in zip(maps_of(2), maps_of(0), strict=True):
        torch.testing.assert_close(with_it, without)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("option", ["residual", "mhc"])
def test_sharded_sublayers_are_gathered_for_the_second_run(option: str) -> None:
    plain, sharded = random_model(option), random_model(option)
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for sublayer in (*sharded.attention, *sharded.feedforward):
        fully_shard(sublayer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    expected = results(plain, 0)
    for length in (0, 1, 4):
        logits, *gradients = results(sharded, length)
        assert torch.equal(logits, expected[0])
        for one, other in zip(gradients, expected[1:], strict=True):
            torch.testing.assert_close(one.full_tensor(), other)


@pytest.mark.parametrize(
    ("recompute", "streams", "sublayers", "length"),
    [("none", 4, 48, 0), ("auto", 4, 48, 6), ("auto", 1, 48, 4), ("auto", 4, 2, 1), ("7", 4, 48, 7), ("99", 4, 8, 8)],
)
def test_segment_length(recompute: str, streams: int, sublayers: int, length: int) -> None:
    assert segment_length(recompute, streams, sublayers) == length
