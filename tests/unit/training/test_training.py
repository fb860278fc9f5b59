"""The parts of a training: gradients of a global batch, decay, schedule, checkpoints."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mhc_train.errors import ConfigError
from mhc_train.files import append_json_line, read_json_lines
from mhc_train.model import Transformer
from mhc_train.model.cost import recomputed_share, training_flops_per_token
from mhc_train.model.recompute import KEEP_ALL, Segments
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ConnectionConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from mhc_train.training.device import Device, check_float64, choose_device, loader_workers
from mhc_train.training.distributed import Parallel, lay_out
from mhc_train.training.optimizer import build_optimizer, decays, learning_rate
from mhc_train.training.step import Guard, StepResult, accumulate_gradients, take_step, validation_loss

MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
BATCH = torch.randint(32, (6, 9), generator=torch.Generator().manual_seed(0))
CPU = choose_device(TrainConfig(device="cpu"))


def model(kind: str = "mhc") -> Transformer:
    return Transformer(MODEL, ConnectionConfig(kind=kind), 32)


def alone(subject: Transformer) -> Parallel:
    """The layout of one process."""
    return lay_out(subject, Config(), Ranks())


def step(subject: Transformer, clip: float = 1.0, guard: Guard | None = None) -> StepResult:
    optimizer = build_optimizer(subject, OptimConfig())
    return take_step(alone(subject), optimizer, guard or Guard(hold=True), BATCH, 6, CPU, clip)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_is_the_big_batch(micro_batch: int) -> None:
    whole, parts = model(), model()
    losses = [accumulate_gradients(alone(m), BATCH, size, CPU) for m, size in ((whole, 6), (parts, micro_batch))]
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_validation_loss_is_the_mean_over_all_tokens() -> None:
    logits = model()(BATCH[:, :-1]).double().log_softmax(-1)
    expected = -logits.gather(-1, BATCH[:, 1:, None]).mean()
    assert validation_loss(alone(model()), BATCH, 4, CPU) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("hold", [True, False])
def test_what_is_not_finite_changes_nothing_and_what_follows_only_if_it_may(hold: bool) -> None:
    subject = model()
    optimizer = build_optimizer(subject, OptimConfig())
    parallel, guard = alone(subject), Guard(hold)
    gain = subject.final_norm.weight

    def next_step() -> float:
        return take_step(parallel, optimizer, guard, BATCH, 6, CPU, 1.0).refused.item()

    def everything() -> list[torch.Tensor]:
        moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
        return [tensor.detach().clone() for tensor in [*subject.parameters(), *moments]]

    assert next_step() == 0
    good, value = everything(), gain[0].item()
    for broken in (math.nan, math.inf):
        gain.data[0] = broken
        assert next_step() == 1
        gain.data[0] = value
        assert all(a.equal(b) for a, b in zip(good, everything(), strict=True))
    assert next_step() == hold
    assert all(a.equal(b) for a, b in zip(good, everything(), strict=True)) == hold


@pytest.mark.parametrize("kind", ["hc", "mhc"])
def test_norms_gates_biases_and_mixers_do_not_decay(kind: str) -> None:
    decayed = {name for name, parameter in model(kind).named_parameters() if decays(name, parameter)}
    assert all(name.startswith(("embedding.", "attention.", "feedforward.")) for name in decayed)
    assert len(decayed) == 1 + 3 + 2


def test_reported_norm_is_the_one_before_clipping() -> None:
    free, clipped = model(), model()
    accumulate_gradients(alone(free), BATCH, 6, CPU)
    expected = torch.cat([parameter.grad.flatten() for parameter in free.parameters()]).norm()
    assert step(model(), 0.0).grad_norm.item() == pytest.approx(expected.item(), rel=1e-5)
    optimizer = build_optimizer(clipped, OptimConfig())
    result = take_step(alone(clipped), optimizer, Guard(hold=True), BATCH, 6, CPU, 1e-3)
    assert result.grad_norm.item() == pytest.approx(expected.item(), rel=1e-5)
    moments = torch.cat([state["exp_avg"].flatten() for state in optimizer.state.values()])
    assert moments.norm().item() == pytest.approx(1e-3 * (1 - OptimConfig().betas[0]), rel=1e-2)


def test_schedules() -> None:
    cosine = OptimConfig(lr=1.0, warmup_steps=4, final_lr_ratio=0.1)
    assert [learning_rate(cosine, step, 105) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert learning_rate(cosine, 54, 105) == pytest.approx(0.55) and learning_rate(cosine, 104, 105) == pytest.approx(
        0.1
    )
    paper = OptimConfig(lr=1.0, warmup_steps=0, schedule="steps")
    assert [learning_rate(paper, step, 100) for step in (0, 79, 80, 90)] == [1.0, 1.0, 0.316, 0.1]


def test_a_device_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="train.device = cuda"):
            choose_device(TrainConfig(device="cuda"))
    assert "asked for" in CPU.reason


@pytest.mark.parametrize(("mixer", "needed"), [("newton", True), ("spectral", True), ("sinkhorn", False)])
def test_device_without_float64_is_refused_where_a_mixer_needs_it(mixer: str, needed: bool) -> None:
    subject = Transformer(MODEL, ConnectionConfig(mixer=mixer, last_layer=0), 32)
    assert subject.path.float64 == needed
    check_float64(CPU, needed)
    metal = Device(torch.device("mps"), torch.float32, "asked for")
    check_float64(metal, False)
    with pytest.raises(ConfigError, match="train.device=cpu"):
        check_float64(metal, True)


def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"step": 1})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    assert read_json_lines(path) == [{"step": 1}]


def test_cost_counts_the_products_that_are_made() -> None:
    """One linear layer worth of arithmetic by hand: 6 operations a weight and token, plus attention and connections."""
    subject = Transformer(MODEL, ConnectionConfig(kind="residual", streams=1), 32)
    weights = sum(p.numel() for n, p in subject.named_parameters() if p.ndim == 2)  # the tied embedding is the head
    assert training_flops_per_token(subject, 8) == 6 * weights + 3 * (2 * 8 * 16) + 3 * 2 * 16
    # Running it again leaves out the head.
    whole = training_flops_per_token(subject, 8)
    assert recomputed_share(subject, Segments(2), 8) == pytest.approx(1 - 6 * 32 * 16 / whole)
    assert recomputed_share(subject, KEEP_ALL, 8) == 0


def test_streams_are_rebuilt_by_a_write_each() -> None:
    """Two streams of 16, four sublayers, every third state kept: two writes of 2 x 2 + 2 products of 16 numbers."""
    subject = Transformer(replace(MODEL, layers=2), ConnectionConfig(kind="mhc", streams=2), 32)
    share = recomputed_share(subject, Segments(3, streams_only=True), 8)
    assert share == pytest.approx(2 * (2 * 6 * 16) / (training_flops_per_token(subject, 8) / 3))


@pytest.mark.parametrize(
    ("kind", "cores", "lanes", "workers"),
    [("cpu", 64, 16, 0), ("cuda", 64, 16, 8), ("cuda", 12, 16, 4), ("cuda", 1, 16, 0)],
)
def test_a_gpu_gets_as_many_loader_workers_as_cores_and_lanes_allow(
    kind: str, cores: int, lanes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mhc_train.training.device._cores", lambda: cores)
    device = Device(torch.device(kind), torch.float32, "")
    assert loader_workers(device, DataConfig(lanes=lanes)) == workers
    assert loader_workers(device, DataConfig(lanes=lanes, workers=2)) == 2
