"""Losses that are not finite, that leap or that diverge: no weight is touched by them, and what went on is known."""

import json
import math
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import pytest
import torch
from faulted_runs import Place, at_call, replace

from mhc_train.checkpoints import load_checkpoint, writing
from mhc_train.training import progression, session, step
from mhc_train.training.optimizer import optimizer_tensors
from mhc_train.training.results import Results
from mhc_train.training.session import Session

LATE = pytest.mark.parametrize("late", [0, 1])


@pytest.fixture(scope="module")
def every_step(shared: Path) -> Place:
    """A run with nothing wrong, saved at every step."""
    place = Place(shared, shared / "straight", "train.save_every=1", "train.keep_checkpoints=99")
    assert place.job().code == 0
    return place


def faulty_losses(change: Callable[[int, torch.Tensor], torch.Tensor], late: int = 0) -> None:
    """In a child: the losses of training step number `n`, from 1, are `change(n, losses)`; read `late` steps late."""
    count = 0

    def make(genuine: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def token_losses(*arguments: Any) -> torch.Tensor:
            nonlocal count
            losses = genuine(*arguments)
            if not torch.is_grad_enabled():
                return losses
            count += 1  # a step is one micro-batch here
            return change(count, losses)

        return token_losses

    replace(step, "token_losses", make)
    replace(session, "Results", lambda genuine: lambda **by_device: Results(late))


def not_finite(steps: Container[int], value: float = math.nan) -> Callable[[int, torch.Tensor], torch.Tensor]:
    return lambda number, losses: losses * value if number in steps else losses


def keeping_weights(path: Path) -> None:
    """In a child: whatever the training knows when it is told of a step that was refused is kept."""

    def make(genuine: Callable[[Session, Any], None]) -> Callable[[Session, Any], None]:
        def refused(self: Session, outcome: Any) -> None:
            model = self.parallel.model
            tensors = {"model": model.state_dict(), "optimizer": optimizer_tensors(self.optimizer, model)}
            torch.save(tensors, path)
            genuine(self, outcome)

        return refused

    replace(Session, "_refused", make)


@LATE
@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_the_last_good_weights_stay(late: int, value: float, shared: Path, tmp_path: Path, every_step: Place) -> None:
    place, kept = Place(shared, tmp_path), tmp_path / "kept.pt"

    def prepare() -> None:
        faulty_losses(not_finite({5}, value), late)
        keeping_weights(kept)

    ended = place.job(prepare)
    assert ended.code == 5 and "Step 5: loss " in ended.said and "not finite" in ended.said, ended.said
    assert place.status["status"] == "failed"
    document = json.loads((place.run / "diagnostics" / "not-finite-step-00000005.json").read_text())
    assert document["schema_version"] == 1 and document["step"] == 5 and document["loss"] is None
    assert document["weights_after_step"] == 4
    (rank,) = document["ranks"]
    assert [sequence["number"] for sequence in rank["sequences"]] == [16, 17, 18, 19]
    assert all(set(sequence) == {"number", "sha256", "loss", "text"} for sequence in rank["sequences"])
    assert [row["name"] for row in rank["ledger"]][-1] == "read_out" and rank["gradients_not_finite"] == []
    good = load_checkpoint(every_step.run / "checkpoints" / "step-00000004")
    for name, found in torch.load(kept).items():
        expected = good.tensors(name)
        assert found.keys() == expected.keys() and all(found[key].equal(expected[key]) for key in expected)


@LATE
def test_what_was_saved_before_is_where_it_goes_on(late: int, shared: Path, tmp_path: Path, every_step: Place) -> None:
    place = Place(shared, tmp_path)
    assert place.job(lambda: faulty_losses(not_finite({5}), late)).code == 5
    assert place.saved == 3
    assert place.job(lambda: None, "train.save_every=1").code == 0
    assert [line["train_loss"] for line in place.lines()[1:]] == [line["train_loss"] for line in every_step.lines()[1:]]


@LATE
def test_skipped_steps_are_counted(late: int, shared: Path, tmp_path: Path, every_step: Place) -> None:
    place = Place(shared, tmp_path)
    ended = place.job(
        lambda: faulty_losses(not_finite({5, 7, 8}), late), "train.on_nonfinite=skip", "train.skip_limit=2"
    )
    assert ended.code == 0 and ended.said.count("Skipped; the batch is described in") == 3, ended.said
    assert load_checkpoint(place.run).state["skipped"] == [5, 7, 8]
    counts = {line["step"]: line.get("skipped_steps") for line in place.lines()}
    assert counts == {0: None, 2: None, 4: None, 6: 1, 8: 3, 10: 3, 12: 3}
    found = sorted(path.name for path in (place.run / "diagnostics").glob("not-finite-*"))
    assert found == [f"not-finite-step-{number:08d}.json" for number in (5, 7, 8)]
    fifth = json.loads((place.run / "diagnostics" / found[0]).read_text())
    assert fifth["weights_after_step"] == 5 + late
    optimizer = load_checkpoint(place.run).tensors("optimizer")
    assert optimizer["step/final_norm.weight"] == 12 - 3
    assert place.lines()[2] == every_step.lines()[2]


@LATE
def test_too_many_skipped_in_a_row_end_it(late: int, shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)
    ended = place.job(
        lambda: faulty_losses(not_finite(range(4, 99)), late), "train.on_nonfinite=skip", "train.skip_limit=2"
    )
    assert ended.code == 5 and "That is 3 in a row, and train.skip_limit=2" in ended.said, ended.said
    assert "Step 6: " in ended.said and place.saved == 3


def test_a_checkpoint_under_way_is_written_whatever_follows(shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)

    def prepare() -> None:
        faulty_losses(not_finite({4}))
        replace(writing, "_complete", at_call(1, lambda: time.sleep(2)))

    assert place.job(prepare).code == 5
    assert place.saved == 3 and not list((place.run / "checkpoints").glob(".*"))


def early(memory: int, least: int) -> None:
    """In a child: divergence and spikes are seen after few steps."""
    progression.MEMORY, progression.LEAST = memory, least


@LATE
def test_a_loss_that_diverges_ends_it(late: int, shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)

    def prepare() -> None:
        early(4, 3)
        faulty_losses(lambda number, losses: losses * 2 if number > 5 else losses, late)

    ended = place.job(prepare)
    assert ended.code == 5 and "Step 7: diverged: the mean loss of the last steps is " in ended.said, ended.said
    assert place.saved == 6
    again = place.job(prepare, "train.divergence=0")
    assert again.code == 0


def test_a_spike_is_seen(shared: Path, tmp_path: Path) -> None:
    place = Place(shared, tmp_path)

    def prepare() -> None:
        early(100, 4)
        faulty_losses(lambda number, losses: losses * 3 if number == 7 else losses)

    assert place.job(prepare, "train.divergence=0").code == 0
    spikes = {line["step"]: line.get("loss_spike") for line in place.lines()}
    assert spikes[4] is None and spikes[8] > 5 > max(spikes[6], spikes[10], spikes[12])
    losses = load_checkpoint(place.run).state["recent"]
    before = torch.tensor(losses[:6], dtype=torch.float64)
    assert spikes[8] == pytest.approx(float((losses[6] - before.mean()) / before.std()))
