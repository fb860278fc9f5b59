"""Batches: what does not divide or is of something else is refused; workers change nothing and leave nothing."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import small_config, some_files, starting
from streams import Memory, train

from mhc_train.data import Batches, merged, open_corpus, order_fingerprint, skipped_documents
from mhc_train.data.lanes import Plan
from mhc_train.data.order import lane_parts
from mhc_train.errors import ConfigError, DataError

PLAN = Plan((Memory((((1, 2, 3), (4,), None, (5, 6)),)),), (1.0,), 6, 0, 2, 2, np.dtype("<u2"))


@pytest.mark.parametrize(
    ("size", "world", "workers", "problems"),
    [
        (4, 4, 0, ["data.lanes = 6: must be a multiple of the number of processes, 4."]),
        (5, 2, 0, ["a batch of 5 sequences cannot be shared by 2 processes; change train.batch_tokens."]),
        (6, 2, 2, ["data.workers = 2: must divide the 3 lanes of a process."]),
        (5, 4, 0, ["data.lanes = 6", "a batch of 5"]),
        (0, 2, 0, ["a batch of 0"]),
    ],
)
def test_numbers_that_do_not_divide_are_all_named(size: int, world: int, workers: int, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Batches(PLAN, "text", size, None, 0, world, workers)
    found = caught.value.problems
    assert [problem[: len(known)] for problem, known in zip(found, problems, strict=True)] == problems


def test_batches_are_ids_of_the_ranks_share_without_end() -> None:
    ranks = [Batches(PLAN, "text", 6, rank=rank, world=3) for rank in range(3)]
    assert all(iter(rank) is rank for rank in ranks)
    batch = next(ranks[1])
    assert batch.shape == (2, 3) and batch.dtype == torch.int64


def test_a_new_states_lanes_stand_at_the_beginning_and_begin_alike() -> None:
    begun = Batches(PLAN, "text", 6).state()
    assert begun["following"] == 0 and list(begun["lanes"]) == [str(lane) for lane in range(6)]
    assert begun == json.loads(json.dumps(begun))
    start = lambda state, rank, world: Batches(PLAN, "text", 6, state, rank, world)  # noqa: E731
    assert train(start, 9, begun, 2)[0].equal(train(start, 9)[0])
    assert skipped_documents(begun) == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 1}, "another version of mhc-train: begin a new run"),
        ({"identity": "other"}, "the text or its tokenizer is not what the run was reading.*or begin a new run"),
        ({"lanes": {}}, "holds 0 lanes of 6.*merged"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict, problem: str) -> None:
    state = Batches(PLAN, "text", 6).state()
    assert Batches(PLAN, "text", 6, state)
    with pytest.raises(DataError, match=problem):
        Batches(PLAN, "text", 6, state | change)
    with pytest.raises(DataError, match="another version"):
        Batches(PLAN, "text", 6, {"document": {"epoch": 0}, "tokens": []})


def test_a_ranks_own_state_is_not_enough_and_those_of_different_steps_do_not_merge() -> None:
    ranks = [Batches(PLAN, "text", 6, rank=rank, world=2) for rank in range(2)]
    assert sorted(merged([rank.state() for rank in ranks])["lanes"], key=int) == [str(lane) for lane in range(6)]
    next(ranks[0])
    with pytest.raises(ValueError, match="different steps"):
        merged([rank.state() for rank in ranks])
    for states in ([ranks[0].state()], [ranks[1].state()] * 2):
        with pytest.raises(ValueError, match="each of 6 lanes once"):
            merged(states)
    with pytest.raises(DataError, match="holds 3 lanes of 6.*merged"):
        Batches(PLAN, "text", 6, ranks[0].state())


def test_a_state_is_of_what_was_delivered_not_of_what_was_read_ahead() -> None:
    batches = Batches(PLAN, "text", 4)
    next(batches)
    kept = json.dumps(batches.state())
    state = batches.state()
    assert list(state["lanes"]) == [str(lane) for lane in range(6)]
    batches = Batches(PLAN, "text", 4, state)  # its first lane is the fifth
    assert json.dumps(batches.state()) == kept
    next(batches)
    assert json.dumps(state) == kept != json.dumps(batches.state())


def test_batches_leave_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    batches = Batches(PLAN, "text", 6)
    for _ in range(20):
        next(batches)
    batches.close()
    assert torch.get_rng_state().equal(before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_workers_change_nothing_and_are_gone_when_closed(tmp_path: Path, tokenizer_file: str) -> None:
    own = {
        name: {"weight": weight, "source": files.source, "path": files.path}
        for name, weight, files in (
            ("a", 2, some_files(tmp_path / "a", "parquet")),
            ("b", 1, some_files(tmp_path / "b", "jsonl.gz", seed=1)),
        )
    }
    config = dataclasses.replace(
        small_config(some_files(tmp_path / "a", "parquet"), tokenizer_file, tmp_path / "cache"),
        source="mixture", mixture=own, lanes=6,
    )  # fmt: skip
    corpora = [open_corpus(dataclasses.replace(config, workers=workers)) for workers in range(3)]
    straight, state = train(starting(corpora[0], 4), 60)
    random = torch.get_rng_state()
    parts, after = [], None
    for workers, world, steps in ((2, 1, 17), (0, 2, 5), (1, 1, 21), (0, 1, 17)):
        part, after = train(starting(corpora[workers], 4), steps, after, world)
        assert multiprocessing.active_children() == []
        parts.append(part)
    assert torch.cat(parts).equal(straight) and after == state
    assert order_fingerprint(after) == order_fingerprint(state)
    assert torch.get_rng_state().equal(random)


def test_what_a_worker_cannot_read_is_the_same_error_here(tmp_path: Path, tokenizer_file: str) -> None:
    config = small_config(some_files(tmp_path / "text", "jsonl"), tokenizer_file, tmp_path / "cache", lanes=1)
    corpora = [open_corpus(dataclasses.replace(config, workers=workers)) for workers in range(2)]
    last = lane_parts(3, 0, 1, config.seed, 0)[-1].shard
    (tmp_path / "text" / f"{last:02d}.jsonl").write_text("{}")
    told = []
    for corpus in corpora:
        batches = corpus.batches(2)
        with pytest.raises(DataError) as caught:
            for _ in range(200):
                next(batches)
        told.append((str(caught.value), batches.following))
        state = batches.state()
        with pytest.raises(DataError, match="has changed since"):
            next(batches)
        assert batches.state() == state
        batches.close()
    assert told[0] == told[1] and "has changed since the run began" in told[0][0] and told[0][1] > 0
    assert multiprocessing.active_children() == []


PROGRAM = """
import json, multiprocessing, os, signal, sys
import numpy as np
from streams import Memory
from mhc_train.data import Batches, loader
from mhc_train.data.lanes import Plan

loader.LEAST_TOKENS = 2  # so that workers are not long ahead


def tell(*facts):
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    plan = Plan((Memory((((1, 2, 3), (4,), (5, 6)),)),), (1.0,), 2, 0, 2, 2, np.dtype("<u2"))
    batches = Batches(plan, "text", 2, workers=2)
    next(batches)
    children = multiprocessing.active_children()
    {then}
"""
KILL = """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for child in children:
            os.kill(child.pid, number)
    for _ in range(2000):
        next(batches)
    tell([child.is_alive() for child in children])
    os.kill(children[0].pid, signal.SIGKILL)
    try:
        while True:
            next(batches)
    except Exception as error:
        tell(type(error).__name__, str(error))
    batches.close()
    tell(len(multiprocessing.active_children()))
"""


def run(directory: Path, then: str, before: str = "") -> tuple[list[list], subprocess.CompletedProcess]:
    """What the program tells, run as a process of its own."""
    (directory / "program.py").write_text(before + PROGRAM.replace("{then}", then.strip()))
    done = subprocess.run(
        [sys.executable, "program.py"],
        capture_output=True, text=True, timeout=100, cwd=directory,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_workers_heed_no_stop_signal_and_a_killed_one_is_an_error_that_says_so_not_a_hang(tmp_path: Path) -> None:
    told, done = run(tmp_path, KILL)
    assert told[0] == [[True, True]] and told[2] == [0]
    kind, message = told[1]
    assert kind == "DataError" and "a loader worker ended" in message and "data.workers=0" in message
    assert done.returncode == 0 and "Traceback" not in done.stderr


FINALIZE = "import weakref\nweakref.finalize(weakref.WeakSet(), bool)\n"


@pytest.mark.parametrize("before", ["", FINALIZE])
def test_a_process_ends_though_its_workers_were_not_closed(before: str, tmp_path: Path) -> None:
    _, done = run(tmp_path, "raise KeyError", before)
    assert "KeyError" in done.stderr
