"""Recomputation: the same gradients to the last bit, less kept, and nothing done where nothing is kept."""

import weakref
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
from mhc_train.connections import State
from mhc_train.model import Transformer
from mhc_train.model.recompute import KEEP_ALL, Segments, segments
from mhc_train.schema import ConnectionConfig, ModelConfig
from mhc_train.training.memory import LiveBytes

MODEL = ModelConfig(dim=32, layers=3, heads=4, kv_heads=2, ffn_dim=64, max_seq_len=32)
OPTIONS = pytest.mark.parametrize("option", groups()["connection"])
TOKENS = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))


def connection(option: str, *overrides: str) -> ConnectionConfig:
    return compose([f"connection={option}", *overrides]).connection


def random_model(option: str, config: ModelConfig = MODEL, *overrides: str) -> Transformer:
    """All maps depend on the token; token 3 ends a document."""
    model = Transformer(config, connection(option, *overrides), 32, end_of_text=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.path.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return model


def streams(length: int) -> Segments:
    return Segments(length, streams_only=True)


def results(model: Transformer, recompute: Segments = KEEP_ALL, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The logits and all gradients."""
    model.recompute = recompute
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(TOKENS)
    logits.float().logsumexp(-1).square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def assert_equal(some: list[Tensor], others: list[Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one, other)


@OPTIONS
@pytest.mark.parametrize("cut", [Segments(1), Segments(4), streams(1), streams(4), streams(6)])
def test_gradients_are_the_same_to_the_last_bit(option: str, cut: Segments) -> None:
    model = random_model(option)
    assert_equal(results(model), results(model, cut))


@pytest.mark.parametrize("places", ["connection.where=attention", "connection.first_layer=1", "connection.streams=2"])
@pytest.mark.parametrize("option", ["hc", "mhc"])
def test_so_are_those_of_sublayers_of_several_kinds(option: str, places: str) -> None:
    model = random_model(option, MODEL, places)
    assert_equal(results(model), results(model, streams(4)))


@pytest.mark.parametrize("option", ["residual", "hc", "mhc", "mhc_single_pass", "mhc_newton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [Segments(2), streams(2), streams(5)])
def test_so_are_those_under_autocast_and_a_document_mask(option: str, dtype: torch.dtype, cut: Segments) -> None:
    model = random_model(option, replace(MODEL, document_mask=True, tie_embeddings=False))
    assert_equal(results(model, dtype=dtype), results(model, cut, dtype))


@pytest.mark.parametrize(("option", "cut"), [("mhc_single_pass", Segments(3)), ("mhc", streams(3))])
def test_a_compiled_model_recomputes_too(option: str, cut: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks cannot be traced
    model = random_model(option, replace(MODEL, layers=2))
    expected = results(model)

    def compiled(recompute: Segments) -> int:
        """Bytes that are kept, once the gradients are right."""
        torch.compiler.reset()
        model.recompute = recompute
        model.zero_grad()
        kept: dict[int, Tensor] = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: keep(tensor, kept), lambda tensor: tensor):
            logits = torch.compile(model, backend="aot_eager", fullgraph=True)(TOKENS)
        logits.logsumexp(-1).square().mean().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch.testing.assert_close([logits.detach(), *gradients], expected, rtol=1e-4, atol=1e-4)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    assert compiled(cut) < 0.8 * compiled(KEEP_ALL)


def saved(model: Transformer) -> int:
    """Numbers that autograd keeps outside of checkpointed segments."""
    storages: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: keep(tensor, storages), lambda tensor: tensor):
        model(TOKENS)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def keep(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    storages[tensor.untyped_storage()._cdata] = tensor
    return tensor


def count_calls(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of sublayers, one for each time that one is run."""
    calls: list[int] = []
    sublayer = model._sublayer
    monkeypatch.setattr(model, "_sublayer", lambda index, *rest: (calls.append(index), sublayer(index, *rest))[1])
    return calls


def test_every_segment_runs_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mhc")
    calls = count_calls(model, monkeypatch)
    results(model, Segments(4))
    assert calls == [0, 1, 2, 3, 4, 5, 4, 5, 0, 1, 2, 3]
    assert saved(model) < saved(random_model("mhc")) / 4


STATE = TOKENS.numel() * 4 * MODEL.dim * 4
"""Bytes of four streams."""
COEFFICIENTS = 2 * 6 * TOKENS.numel() * 4 * 4
"""Bytes of read weights and norms in all sublayers: where kernels use them, it is the rebuilding that keeps them."""


@pytest.mark.parametrize(("length", "rebuilt"), [(1, 0), (2, 3), (4, 4), (6, 5)])
def test_of_the_streams_only_every_so_many_are_kept(length: int, rebuilt: int) -> None:
    saved = kept_bytes(KEEP_ALL) - kept_bytes(streams(length))
    assert saved == pytest.approx(rebuilt * STATE, abs=COEFFICIENTS)


def test_outputs_are_kept_as_they_come() -> None:
    """Six of them in two bytes an entry instead of four, and of the streams half the states."""
    with torch.autocast("cpu", torch.bfloat16):
        saved = kept_bytes(KEEP_ALL) - kept_bytes(streams(2))
    assert saved == pytest.approx(3 * STATE + 6 * STATE // 8, abs=COEFFICIENTS)


def kept_bytes(cut: Segments) -> int:
    """What is there after a forward pass."""
    model = random_model("hc")
    model.recompute = cut
    with LiveBytes() as count:
        logits = model(TOKENS)
        assert logits.requires_grad
    return count.live


def test_each_state_is_written_again_once_and_goes_when_it_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six sublayers in segments of three: when a state's gradient is there, its streams are not needed any more."""
    model = random_model("mhc")
    model.recompute = streams(3)
    write, calls = model.path.write, count_calls(model, monkeypatch)
    states: dict[int, weakref.ref[Tensor]] = {}
    alive: list[list[int]] = []

    def watched(index: int, state: State, output: Tensor) -> State:
        after = write(index, state, output)
        if not torch.is_grad_enabled():
            assert index + 1 not in states
            states[index + 1] = weakref.ref(after.streams)
        return after

    def look(*_: object) -> None:
        alive.append([index for index, streams in states.items() if streams() is not None])

    monkeypatch.setattr(model.path, "write", watched)
    logits, _ = model(TOKENS, observe=lambda index, state, *_: state.streams.register_hook(look) and None)
    logits.sum().backward()
    assert list(states) == [4, 5, 1, 2] and calls == [0, 1, 2, 3, 4, 5]
    assert alive == [[], [4], [], [], [1], [], []]  # of the streams at the end, then before sublayers 5 to 0


def test_a_graph_that_is_retained_gives_the_same_gradients_again() -> None:
    model = random_model("mhc_single_pass")
    expected = results(model)
    model.recompute = streams(4)
    loss = model(TOKENS).logsumexp(-1).square().mean()
    for _ in range(2):
        model.zero_grad()
        loss.backward(retain_graph=True)
        assert_equal([parameter.grad for parameter in model.parameters() if parameter.grad is not None], expected[1:])


def test_passes_do_not_mix() -> None:
    """Two forward passes before their backward passes, and gradients that add up."""

    def gradients(cut: Segments) -> list[Tensor]:
        model = random_model("hc")
        model.recompute = cut
        losses = [model(part).logsumexp(-1).square().mean() for part in TOKENS.split(2)]
        for loss in losses:
            loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    assert_equal(gradients(KEEP_ALL), gradients(streams(3)))


def test_what_was_changed_in_place_is_refused() -> None:
    for changed in ("streams", "parameter"):
        model = random_model("mhc")
        model.recompute = streams(3)
        logits, seen = model(TOKENS, observe=lambda index, state, *_: state.streams.detach())
        with torch.no_grad():
            (seen[3] if changed == "streams" else next(model.path[0].parameters())).add_(1)
        with pytest.raises(RuntimeError, match="in place"):
            logits.sum().backward()


@pytest.mark.parametrize("length", [1, 3])
def test_an_observer_that_lets_go_of_the_streams_frees_them(length: int) -> None:
    model = random_model("mhc")
    model.recompute = streams(length)
    logits, seen = model(TOKENS, observe=lambda index, state, *_: weakref.ref(state.streams.untyped_storage()))
    alive = [index for index, streams in enumerate(seen[:-1]) if streams() is not None]
    assert logits.requires_grad and alive == list(range(0, 6, length))


def test_no_gradients_no_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("mhc")
    monkeypatch.setattr("mhc_train.model.transformer.checkpoint", None)  # to call it would fail
    monkeypatch.setattr("mhc_train.model.transformer.RebuiltStreams", None)
    with torch.no_grad():
        for model.recompute in (Segments(2), streams(2)):
            model(TOKENS)


@pytest.mark.parametrize("cut", [Segments(2), streams(2)])
def test_an_observer_sees_the_same_with_recomputation(cut: Segments) -> None:
    def maps_of(cut: Segments) -> list[Tensor]:
        model = random_model("mhc")
        model.recompute = cut
        logits, seen = model(TOKENS, observe=lambda index, state, *_: state.maps.res if state.maps else state.streams)
        gradients = torch.autograd.grad(logits.square().mean(), seen[:-1])
        return [*seen, *gradients]

    for with_it, without in zip(maps_of(cut), maps_of(KEEP_ALL), strict=True):
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
    expected = results(plain)
    for cut in (KEEP_ALL, Segments(1), Segments(4), streams(3)):
        logits, *gradients = results(sharded, cut)
        assert torch.equal(logits, expected[0])
        for one, other in zip(gradients, expected[1:], strict=True):
            torch.testing.assert_close(one.full_tensor(), other)


@pytest.mark.parametrize(
    ("recompute", "n", "sublayers", "cut"),
    [
        ("none", 4, 48, KEEP_ALL),
        ("auto", 4, 48, Segments(6)),
        ("auto", 1, 48, Segments(4)),
        ("auto", 4, 2, Segments(1)),
        ("streams", 4, 48, streams(6)),  # sqrt(4 x 48 / 6) = 5.7
        ("streams", 2, 24, streams(3)),  # sqrt(2 x 24 / 4) = 3.46
        ("streams", 1, 48, KEEP_ALL),
        ("7", 4, 48, Segments(7)),
        ("99", 4, 8, Segments(8)),
    ],
)
def test_how_a_model_is_cut(recompute: str, n: int, sublayers: int, cut: Segments) -> None:
    assert segments(recompute, n, sublayers) == cut


def test_what_the_backward_pass_does_is_said() -> None:
    assert KEEP_ALL.described(compiled=False) == ""
    assert "segments of 4 sublayers again." in Segments(4).described(compiled=True)
    assert "one state in 3" in streams(3).described(compiled=False)
    assert "segments of 3 sublayers again, but for" in streams(3).described(compiled=True)
