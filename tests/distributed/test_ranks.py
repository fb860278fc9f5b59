"""Real processes: two ranks together train on what one does, and go on where it stopped."""

import datetime
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from corpora import small_config, some_files, starting
from streams import train
from text_files import some_documents

from mhc_train.data import merged, open_corpus, order_fingerprint
from mhc_train.data.tokenizer import trained_tokenizer
from mhc_train.schema import DataConfig

BATCH = 6


def take(config: DataConfig, steps: int, state: dict | None) -> tuple[list[list[int]], dict]:
    """The next sequences of all ranks in order, and the state after them, the same on each."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = open_corpus(config).batches(BATCH, state, rank, world)
    found = []
    for _ in range(steps):
        mine = next(batches)
        everyones = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(everyones, mine)
        found += torch.stack(everyones, 1).flatten(0, 1).tolist()
    states: list = [None] * world
    dist.all_gather_object(states, batches.state())
    batches.close()
    return found, merged(states)


def be_a_rank(rank: int, world: int, place: str, config: DataConfig, legs: list[tuple[int, int]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{place}/meeting", datetime.timedelta(seconds=100), world_size=world, rank=rank
    )
    state = json.loads((Path(place) / "state.json").read_text())
    found = []
    for steps, workers in legs:
        part, state = take(DataConfig(**vars(config) | {"workers": workers}), steps, json.loads(json.dumps(state)))
        found += part
    (Path(place) / f"{rank}.json").write_text(json.dumps([found, state]))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["jsonl.zst"])
def test_one_rank_then_two_then_two_with_workers_then_one(kind: str, tmp_path: Path) -> None:
    trained_tokenizer(some_documents(50), 300, "tests", tmp_path)
    (tokenizer,) = (tmp_path / "tokenizers").glob("[!.]*")
    config = small_config(some_files(tmp_path / "text", kind), str(tokenizer), tmp_path / "cache")
    start = starting(open_corpus(config), BATCH)
    straight, expected = train(start, 60)
    first, state = train(start, 13)
    (tmp_path / "state.json").write_text(json.dumps(state))
    torch.multiprocessing.spawn(be_a_rank, (2, str(tmp_path), config, [(14, 0), (16, 1)]), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    middle, state = ranks[0]
    last, state = train(start, 17, state)
    assert [*first.tolist(), *middle, *last.tolist()] == straight.tolist()
    assert state == expected and order_fingerprint(state) == order_fingerprint(expected)
