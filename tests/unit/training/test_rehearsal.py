"""What a rehearsal tells of a whole step that it took a part of."""

from collections.abc import Sequence

import pytest
from tiny import TINY

from mhc_train.config.compose import compose
from mhc_train.training.rehearsal import Rehearsal, Seconds


def rehearsal_at(monkeypatch: pytest.MonkeyPatch, times: Sequence[tuple[float, float]]) -> Rehearsal:
    """One of eight micro-batches a step, by clocks that show these times."""
    found = Rehearsal(compose([*TINY, "train.batch_tokens=1024"]))
    assert found.micro_batches == 8
    shown = iter(times)
    monkeypatch.setattr(found, "now", lambda: Seconds(*next(shown)))
    return found


def test_a_part_stands_for_all_micro_batches_but_for_one_update(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = rehearsal_at(monkeypatch, [(10, 100), (12, 105), (13, 112)])
    assert rehearsal.step(2)() == Seconds(4 * 2 + 1, 4 * 5 + 7)


def test_a_whole_step_is_not_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = rehearsal_at(monkeypatch, [(10, 100), (13, 112)])
    assert rehearsal.step(8)() == Seconds(3, 12)


def test_a_step_updates_the_model_and_leaves_no_gradients() -> None:
    rehearsal = Rehearsal(compose(TINY))
    before = [parameter.detach().clone() for parameter in rehearsal.parallel.model.parameters()]
    rehearsal.step(1)()
    after = list(rehearsal.parallel.model.parameters())
    assert any(not old.equal(new) for old, new in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)


@pytest.mark.parametrize(("share", "part"), [(0.0, 1), (0.1, 1), (0.3, 2), (1.0, 8), (7.0, 8)])
def test_a_part_of_a_step_is_whole_micro_batches(share: float, part: int) -> None:
    assert Rehearsal(compose([*TINY, "train.batch_tokens=1024"])).part(share) == part
