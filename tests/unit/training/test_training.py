"""The parts of a training: gradients of a global batch, decay, schedule, checkpoints, trackers."""

import math
from pathlib import Path

import pytest
import torch

from mhc_train.checkpoints import complete_checkpoints, find_checkpoint, load_checkpoint, save_checkpoint
from mhc_train.errors import CheckpointError, ConfigError, NumericsError
from mhc_train.files import append_json_line, read_json_lines
from mhc_train.model import Transformer
from mhc_train.model.cost import recomputed_share, training_flops_per_token
from mhc_train.schema import Config, ConnectionConfig, DataConfig, ModelConfig, OptimConfig, TrainConfig
from mhc_train.tracking import Tracker
from mhc_train.training.device import Device, check_float64, choose_device, loader_workers
from mhc_train.training.optimizer import build_optimizer, decays, learning_rate, optimizer_tensors
from mhc_train.training.step import accumulate_gradients, take_step, validation_loss

MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)
BATCH = torch.randint(32, (6, 9), generator=torch.Generator().manual_seed(0))
CPU = choose_device(TrainConfig(device="cpu"))


def model(kind: str = "mhc") -> Transformer:
    return Transformer(MODEL, ConnectionConfig(kind=kind), 32)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_accumulation_is_the_big_batch(micro_batch: int) -> None:
    whole, parts = model(), model()
    losses = [accumulate_gradients(m, BATCH, size, CPU) for m, size in ((whole, 6), (parts, micro_batch))]
    torch.testing.assert_close(losses[0], losses[1])
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_validation_loss_is_the_mean_over_all_tokens() -> None:
    logits = model()(BATCH[:, :-1]).double().log_softmax(-1)
    expected = -logits.gather(-1, BATCH[:, 1:, None]).mean()
    assert validation_loss(model(), BATCH, 4, CPU) == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    subject = model()
    optimizer = build_optimizer(subject, OptimConfig())
    with torch.no_grad():
        subject.final_norm.weight[0] = math.nan
    before = [parameter.clone() for parameter in subject.parameters()]
    with pytest.raises(NumericsError):
        take_step(subject, subject, optimizer, BATCH, 6, CPU, 1.0)
    assert all(a.equal(b) or a.isnan().any() for a, b in zip(before, subject.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["hc", "mhc"])
def test_norms_gates_biases_and_mixers_do_not_decay(kind: str) -> None:
    decayed = {name for name, parameter in model(kind).named_parameters() if decays(name, parameter)}
    assert all(name.startswith(("embedding.", "attention.", "feedforward.")) for name in decayed)
    assert len(decayed) == 1 + 3 + 2


def test_reported_norm_is_the_one_before_clipping() -> None:
    free, clipped = model(), model()
    results = [
        take_step(m, m, torch.optim.SGD(m.parameters(), 1.0), BATCH, 6, CPU, clip)
        for m, clip in ((free, 0.0), (clipped, 1e-3))
    ]
    assert results[0] == results[1]
    moved = [
        sum((a - b).square().sum() for a, b in zip(m.parameters(), model().parameters(), strict=True)).sqrt()
        for m in (free, clipped)
    ]
    assert moved[0].item() == pytest.approx(results[0].grad_norm, rel=1e-3)
    assert moved[1].item() == pytest.approx(1e-3, rel=1e-2)


def test_schedules() -> None:
    cosine = OptimConfig(lr=1.0, warmup_steps=4, final_lr_ratio=0.1)
    assert [learning_rate(cosine, step, 105) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert learning_rate(cosine, 54, 105) == pytest.approx(0.55) and learning_rate(cosine, 104, 105) == pytest.approx(
        0.1
    )
    paper = OptimConfig(lr=1.0, warmup_steps=0, schedule="steps")
    assert [learning_rate(paper, step, 100) for step in (0, 79, 80, 90)] == [1.0, 1.0, 0.316, 0.1]


def saved(directory: Path, step: int) -> Path:
    subject = model()
    optimizer = build_optimizer(subject, OptimConfig())
    take_step(subject, subject, optimizer, BATCH, 6, CPU, 1.0)
    state = {"step": step}
    return save_checkpoint(
        directory, Config(model=MODEL), subject, optimizer_tensors(optimizer, subject), state, "{}", 2
    )


def test_checkpoints_are_pruned_found_and_verified(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        saved(directory, step)
    assert [path.name for path in complete_checkpoints(directory)] == ["step-00000002", "step-00000003"]
    assert find_checkpoint(tmp_path).name == (directory / "latest").read_text().strip() == "step-00000003"
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config == Config(model=MODEL) and checkpoint.state == {"step": 3}
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    (directory / "step-00000004").mkdir()  # one whose manifest was never written
    assert load_checkpoint(tmp_path).path.name == "step-00000003"


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    manifest = saved(tmp_path / "checkpoints", 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="format version 9"):
        load_checkpoint(tmp_path)


def test_a_device_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="train.device = cuda"):
            choose_device(TrainConfig(device="cuda"))
    assert "asked for" in CPU.reason


class FailingBackend:
    calls = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        raise ConnectionError("gone")

    def finish(self) -> None:
        raise AssertionError("never reached")


def test_a_failing_tracker_is_switched_off_with_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    backend = FailingBackend()
    tracker = Tracker(backend)
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.finish()
    assert backend.calls == 1 and capsys.readouterr().err.count("tracker failed") == 1


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
    assert recomputed_share(subject, 8) == pytest.approx(1 - 6 * 32 * 16 / training_flops_per_token(subject, 8))


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
