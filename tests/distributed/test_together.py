"""Real processes that train together: as one would alone, through stops and failures of any of them."""

import functools
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import command, ended, fork, metrics, only_run, together
from tiny import overrides, write_corpus

from mhc_train.checkpoints import load_checkpoint
from mhc_train.config.compose import compose
from mhc_train.errors import DataError
from mhc_train.files import read_json_lines
from mhc_train.model import Transformer
from mhc_train.schema import Config, ModelConfig, OptimConfig, TrainConfig
from mhc_train.training import step as steps
from mhc_train.training.device import choose_device
from mhc_train.training.distributed import joined, lay_out, whole
from mhc_train.training.optimizer import build_optimizer, optimizer_tensors
from mhc_train.training.step import Guard, take_step

MORE = ("train.steps=12", "train.micro_batch=2", "data.lanes=4", "connection.gate_init=0.5", "train.sample_tokens=2")
SAME = ("train_loss", "val_loss", "grad_norm")


def alone(directory: Path, *arguments: str) -> None:
    pid = fork(directory, "alone", command(*arguments))
    found = ended(directory, "alone", pid, math.inf)
    assert found.code == 0, found.err


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process' run to the end, and the corpus and caches beside it."""
    directory = tmp_path_factory.mktemp("straight")
    write_corpus(directory)
    alone(directory, "fit", *overrides(directory), *MORE)
    return directory


@pytest.fixture
def place(straight: Path, tmp_path: Path) -> Path:
    """A directory of one's own with the same corpus and caches."""
    shutil.copy(straight / "corpus.jsonl", tmp_path)
    shutil.copytree(straight / "data", tmp_path / "data")
    return tmp_path


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What must be equal in a line."""
    return {key: line[key] for key in SAME if key in line}


def assert_alike(run: Path, expected: Path) -> None:
    """The same curve within float32's rounding of sums, on the same tokens, no line twice or missing."""
    found, wanted = metrics(run), metrics(expected)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), rel=2e-5)
    statuses = [json.loads((path / "status.json").read_text()) for path in (run, expected)]
    assert statuses[0]["order_fingerprint"] == statuses[1]["order_fingerprint"]


@pytest.mark.parametrize(
    ("kind", "recompute"),
    [("ddp", "1"), ("ddp", "streams"), ("fsdp", "none"), ("fsdp", "3"), ("fsdp", "streams"), ("hsdp", "auto")],
)
def test_two_processes_train_as_one(kind: str, recompute: str, place: Path, straight: Path) -> None:
    arguments = ("fit", *overrides(place), *MORE, f"train.parallel={kind}", f"train.recompute={recompute}")
    found = together(place, 2, command(*arguments), local=1 if kind == "hsdp" else 2)
    assert [end.code for end in found] == [0, 0], found[0].err + found[1].err
    assert found[1].err == ""
    run = only_run(place)
    assert_alike(run, only_run(straight))
    one, other = (load_checkpoint(path).tensors("model") for path in (run, only_run(straight)))
    assert set(one) == set(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-4)
    assert load_checkpoint(run).sharded == (kind != "ddp")


@pytest.mark.parametrize(("kind", "recompute"), [("ddp", "none"), ("fsdp", "1")])
def test_the_first_of_two_processes_looks_through_its_steps(
    kind: str, recompute: str, place: Path, straight: Path
) -> None:
    more = (
        f"train.parallel={kind}",
        f"train.recompute={recompute}",
        "diagnostics.watch_every=3",
        "diagnostics.every=0",
    )
    found = together(place, 2, command("fit", *overrides(place), *MORE, *more))
    assert [end.code for end in found] == [0, 0], found[0].err + found[1].err
    run = only_run(place)
    assert_alike(run, only_run(straight))
    looks = read_json_lines(run / "diagnostics" / "watch.jsonl")
    assert [line["step"] for line in looks] == [3, 6, 9, 12]
    assert {(line["tokens"], line["basis"]) for line in looks} == {(64, "training tokens")}
    # Its tokens are some of the step's, whose mean loss all processes agree on.
    losses = {line["step"]: line["train_loss"] for line in metrics(run) if "train_loss" in line}
    assert all(abs(line["loss"] - losses[line["step"]]) < 0.5 for line in looks if line["step"] in losses)


@pytest.mark.parametrize("kinds", [("ddp", "none", "ddp"), ("fsdp", "none", "fsdp"), ("ddp", "fsdp", "none")])
def test_stopped_and_resumed_on_other_numbers_of_processes(
    kinds: tuple[str, str, str], place: Path, straight: Path
) -> None:
    arguments = ("fit", *overrides(place), *MORE, "--resume", "auto")
    for kind, stop in zip(kinds, (3, 7, None), strict=True):
        world = 1 if kind == "none" else 2
        run = functools.partial(stopped_at, stop, world - 1, *arguments, f"train.parallel={kind}")
        found = together(place, world, run)
        assert [end.code for end in found] == [75 if stop else 0] * world, found[0].err
    assert_alike(only_run(place), only_run(straight))


def stopped_at(step: int | None, by: int, *arguments: str) -> None:
    """The command line in a process whose rank is last: `by` gets a signal after a step. (The rank comes last.)"""
    *texts, rank = arguments
    from mhc_train.training.session import Session

    take = Session.step

    def step_and_signal(self: Session, batch: Any) -> None:
        take(self, batch)
        if self.progression.step == step and int(rank) == by:
            os.kill(os.getpid(), signal.SIGTERM)

    Session.step = step_and_signal  # type: ignore[method-assign]
    command(*texts)(int(rank))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_nan_on_one_rank_changes_no_parameter_on_any(kind: str, tmp_path: Path) -> None:
    found = together(tmp_path, 2, functools.partial(step_with_a_nan, kind))
    assert [end.code for end in found] == [0, 0], found[1].err
    assert [end.result for end in found] == [{"refused": [0.0, 1.0, 1.0], "same": True, "moved": True}] * 2


MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16)


def step_with_a_nan(kind: str, rank: int) -> dict[str, Any]:
    """Three steps; in the second, one rank's loss is not a number."""
    with joined() as ranks:
        config = Config(model=MODEL, train=TrainConfig(parallel=kind))
        model = Transformer(MODEL, config.connection, 32)
        start = [value.clone() for value in model.state_dict().values()]
        parallel = lay_out(model, config, ranks)
        optimizer, guard = build_optimizer(model, OptimConfig()), Guard(hold=True)
        batch = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(rank))

        def everything() -> list[torch.Tensor]:
            tensors = {**model.state_dict(), **optimizer_tensors(optimizer, model)}
            return [whole(tensor).clone() for tensor in tensors.values()]

        refused, seen = [], []
        honest = steps.token_losses
        for number in range(3):
            if number == 1 and rank == 1:
                steps.token_losses = lambda *arguments: honest(*arguments) * math.nan
            result = take_step(parallel, optimizer, guard, batch, 1, choose_device(config.train), 1.0)
            steps.token_losses = honest
            refused.append(result.refused.item())
            seen.append(everything())
        same = all(a.equal(b) for later in seen[1:] for a, b in zip(seen[0], later, strict=True))
        moved = any(not a.equal(b) for a, b in zip(start, seen[0], strict=False))
        return {"refused": refused, "same": same, "moved": moved}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_nan_ends_all_ranks_with_the_batch_described(kind: str, place: Path) -> None:
    arguments = ("fit", *overrides(place), *MORE, f"train.parallel={kind}")
    found = together(place, 2, functools.partial(poisoned, 6, *arguments))
    assert [end.code for end in found] == [5, 5], found[0].err
    run = only_run(place)
    document = json.loads((run / "diagnostics" / "not-finite-step-00000006.json").read_text())
    numbers = [sequence["number"] for rank in document["ranks"] for sequence in rank["sequences"]]
    assert document["loss"] is None and sorted(numbers) == list(range(40, 48))
    assert len(document["ranks"][0]["ledger"]) == 5 and load_checkpoint(run).state["step"] == 4
    assert all(rank["gradients_not_finite"] == [] for rank in document["ranks"])  # it was not the batch


def poisoned(step: int, *arguments: str) -> None:
    """The command line; at a step, the loss of the last rank is not a number."""
    *texts, rank = arguments
    from mhc_train.training.session import Session

    take, honest = Session.step, steps.token_losses

    def step_with_poison(self: Session, batch: Any) -> None:
        if self.progression.step == step - 1 and int(rank) == 1:
            steps.token_losses = lambda *given: honest(*given) * math.nan
        try:
            take(self, batch)
        finally:
            steps.token_losses = honest

    Session.step = step_with_poison  # type: ignore[method-assign]
    command(*texts)(int(rank))


def test_text_that_one_rank_cannot_read_ends_all_with_a_save(place: Path, straight: Path) -> None:
    arguments = ("fit", *overrides(place), *MORE, "--resume", "auto")
    found = together(place, 2, functools.partial(unreadable, 6, *arguments))
    assert [end.code for end in found] == [3, 3], found[0].err
    assert "Step 5 is saved" in found[0].err
    assert [end.code for end in together(place, 2, command(*arguments))] == [0, 0]
    assert_alike(only_run(place), only_run(straight))


def unreadable(step: int, *arguments: str) -> None:
    """The command line; the last rank's text fails before a step."""
    *texts, rank = arguments
    from mhc_train.data.loader import Batches

    wait = Batches.wait

    def wait_and_fail(self: Batches) -> None:
        if self.following // 8 == step - 1 and int(rank) == 1:
            self.failure = DataError("the disk is gone.")
        wait(self)

    Batches.wait = wait_and_fail  # type: ignore[method-assign]
    command(*texts)(int(rank))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_that_one_rank_cannot_write_ends_all(kind: str, place: Path) -> None:
    arguments = ("fit", *overrides(place), *MORE, f"train.parallel={kind}", "train.save_every=3")
    found = together(place, 2, functools.partial(unwritable, *arguments))
    assert [end.code for end in found] == [7, 7], found[0].err + found[1].err
    assert "cannot write" in found[0].err
    assert not [path for path in (only_run(place) / "checkpoints").glob("*") if path.name != "latest"]


def unwritable(*arguments: str) -> None:
    """The command line; a rank's disk is full: the first one's, or, where each writes shards, the last one's."""
    *texts, rank = arguments
    from mhc_train.checkpoints import tensors, writing

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if int(rank) == ("train.parallel=fsdp" in texts):
        writing.write_whole = full
        tensors.sync = full
    command(*texts)(int(rank))


def test_what_does_not_go_with_the_number_of_processes_is_refused(place: Path) -> None:
    wrong = (("train.parallel=none", "train.parallel=ddp"), ("data.lanes=3", "data.lanes"))
    for override, advice in wrong:
        found = together(place, 2, command("fit", *overrides(place), override))
        assert [end.code for end in found] == [2, 2] and advice in found[0].err


@pytest.mark.parametrize("connection", ["residual", "hc", "mhc", "ihc", "ohc", "mhc_single_pass", "shc", "mhc_v4"])
def test_every_parameter_of_a_connection_is_exchanged(connection: str, tmp_path: Path) -> None:
    found = together(tmp_path, 2, functools.partial(two_steps, connection))
    assert [end.code for end in found] == [0, 0], found[0].err
    torch.testing.assert_close(found[0].result, found[1].result, rtol=0, atol=0)


def two_steps(connection: str, rank: int) -> dict[str, torch.Tensor]:
    with joined() as ranks:
        config = compose(["model=tiny", f"connection={connection}", "train.parallel=ddp", "train.device=cpu"])
        model = Transformer(MODEL, config.connection, 32)
        parallel = lay_out(model, config, ranks)
        optimizer = build_optimizer(model, OptimConfig())
        batch = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(rank))
        for _ in range(2):
            take_step(parallel, optimizer, Guard(True), batch, 2, choose_device(config.train), 1.0)
        return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_rank_that_dies_is_one_clear_message_of_the_others(place: Path) -> None:
    found = together(place, 2, functools.partial(killed, 3, *("fit", *overrides(place), *MORE)))
    assert [end.code for end in found] == [1, -9]
    assert "another process of this training has ended" in found[0].err and "Traceback" not in found[0].err


def killed(step: int, *arguments: str) -> None:
    """The command line; the last rank is killed before a step."""
    *texts, rank = arguments
    from mhc_train.training.session import Session

    take = Session.step

    def step_and_die(self: Session, batch: Any) -> None:
        if self.progression.step == step and int(rank) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        take(self, batch)

    Session.step = step_and_die  # type: ignore[method-assign]
    command(*texts)(int(rank))


def test_a_resume_that_is_refused_changes_nothing(place: Path) -> None:
    arguments = (*overrides(place), *MORE, "train.save_every=2", "train.keep_checkpoints=9")
    alone(place, "fit", *arguments)
    run = only_run(place)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before, older = files(), str(run / "checkpoints" / "step-00000004")
    for wrong in ((3, "train.parallel=ddp"), (2, "train.parallel=hsdp", "train.shard_size=3")):
        found = together(place, wrong[0], command("fit", "--resume", older, *wrong[1:]))
        assert [end.code for end in found] == [2] * wrong[0], found[0].err
    assert files() == before
