"""What becomes of losses: read without waiting, remembered, judged."""

import math
import statistics

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ConnectionConfig, ModelConfig, OptimConfig, TrainConfig
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import lay_out
from mhc_train.training.optimizer import build_optimizer
from mhc_train.training.progression import LEAST, MEMORY, Progression, spike_score
from mhc_train.training.results import Results
from mhc_train.training.step import Guard, StepResult, take_step

MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)


def result(number: float) -> StepResult:
    return StepResult(torch.tensor(number), torch.tensor(2 * number), torch.tensor(float(math.isnan(number))))


def test_the_host_reads_no_number_of_a_step() -> None:
    """Without data, whatever a step asked a tensor for would raise."""
    device = choose_device(TrainConfig(device="cpu"))
    with FakeTensorMode():
        model = Transformer(MODEL, ConnectionConfig(), 32)
        parallel, optimizer = lay_out(model, Config(), Ranks()), build_optimizer(model, OptimConfig())
        batch, guard = torch.zeros(4, 9, dtype=torch.long), Guard(hold=True)
        for _ in range(2):
            found = take_step(parallel, optimizer, guard, batch, 2, device, 1.0)
        with pytest.raises(DataDependentOutputException):
            found.loss.item()


@pytest.mark.parametrize("late", [0, 1, 2])
def test_numbers_arrive_in_order_and_late_if_they_may(late: int) -> None:
    results = Results(late)
    batch = torch.zeros(1, 2, dtype=torch.long)
    seen = []
    for step in range(1, 6):
        results.add(step, result(float(step)), batch)
        seen += [outcome.step for outcome in results.arrived(results.late)]
        assert seen == list(range(1, step + 1 - late))
    rest = list(results.arrived())
    assert [outcome.step for outcome in rest] == list(range(6 - late, 6))
    results.add(6, result(math.nan), batch)
    (outcome,) = results.arrived()
    assert outcome.refused and math.isnan(outcome.loss) and outcome.batch is batch


def test_a_spike_is_counted_in_standard_deviations() -> None:
    before = [3.0, 5.0] * (LEAST // 2)
    assert spike_score(9.0, before[1:]) is None
    assert spike_score(9.0, before) == pytest.approx(5.0 / statistics.stdev(before))
    assert spike_score(9.0, [4.0] * LEAST) == 0.0


def test_the_highest_spike_of_a_window_is_remembered_until_it_is_logged() -> None:
    progression = Progression()
    for number in range(LEAST + 1):
        progression.note(4.0 + number % 2, 1.0)
    progression.note(9.0, 1.0)
    highest = progression.spike
    progression.note(4.0, 1.0)
    assert highest is not None and progression.spike == highest > 5
    progression.logged()
    assert progression.spike is None and progression.window == []


def test_divergence_is_the_rise_of_a_mean_above_its_lowest() -> None:
    progression = Progression()
    losses = [8.0 - number / 50 for number in range(150)] + [5.0 + number / 50 for number in range(150)]
    for number, loss in enumerate(losses):
        progression.note(loss, 1.0)
        means = [statistics.fmean(losses[end - MEMORY : end]) for end in range(MEMORY, number + 2)]
        assert progression.rise == pytest.approx(means[-1] - min(means) if means else 0.0)
    assert progression.rise > 1 and len(progression.recent) == MEMORY


def test_skipped_steps_are_counted_in_a_row() -> None:
    progression = Progression()
    progression.skip(1)
    progression.skip(2)
    assert progression.skipped_in_a_row == 2
    progression.note(1.0, 1.0)
    assert progression.skipped_in_a_row == 0 and progression.skipped == [1, 2]
