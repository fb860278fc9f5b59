"""The order of training sequences written down a second time, token by token, from nothing but the documents."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from text_files import Files
from tokenizers import Tokenizer

Ids = tuple[int, ...]


def shuffled(size: int, *key: int) -> list[int]:
    """An order that a key names: by the numbers that PCG64 draws, seeded with the key's SHA-256."""
    seed = int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest(), "little")
    drawn = np.random.PCG64(seed).random_raw(size).tolist()
    return sorted(range(size), key=drawn.__getitem__)


@dataclass(frozen=True)
class Listed:
    """A source as the oracle sees it: the documents of a part as token ids; None is unreadable, () not trained on."""

    shards: int
    part: Callable[[int, int, int], list[Ids | None]]


def lane_documents(source: Listed, lane: int, lanes: int, seed: int, block: int, epoch: int) -> Iterator[Ids]:
    """What a lane trains on in an epoch."""
    parts = 1 if source.shards >= 8 * lanes else lanes
    every = [(shard, number) for shard in range(source.shards) for number in range(parts)]
    dealt = [part for place, part in enumerate(every) if (place - lane - epoch) % lanes == 0]
    for shard, number in (dealt[place] for place in shuffled(len(dealt), seed, epoch, lane)):
        documents = source.part(shard, number, parts)
        for which, start in enumerate(range(0, len(documents), block)):
            together = documents[start : start + block]
            for place in shuffled(len(together), seed, epoch, shard, number, parts, which):
                if together[place]:
                    yield together[place]


def sequences(
    sources: list[Listed], weights: list[float], lanes: int, seed: int, block: int, seq_len: int
) -> Iterator[list[int]]:
    """All sequences of a training, in order, for ever."""

    def of_lane(source: Listed, lane: int) -> Iterator[list[int]]:
        waiting: list[int] = []
        for epoch in count():
            for document in lane_documents(source, lane, lanes, seed, block, epoch):
                waiting += document
                while len(waiting) > seq_len:
                    yield waiting[: seq_len + 1]
                    waiting = waiting[seq_len:]

    streams = [[of_lane(source, lane) for source in sources] for lane in range(lanes)]
    for number in count():
        place = number * 0x9E3779B97F4A7C15 % 2**64 / 2**64
        source = next(
            (s for s in range(len(weights)) if place < sum(weights[: s + 1]) / sum(weights)), len(weights) - 1
        )
        yield next(streams[number % lanes][source])


def listed(files: Files, tokenizer_json: str, holdout: float) -> Listed:
    """Files as token ids, each document tokenised alone."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    end = tokenizer.token_to_id("<|endoftext|>")

    def ids(text: str) -> Ids | None:
        if text.startswith("unreadable"):
            return None
        share = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64
        return (*tokenizer.encode(text).ids, end) if text and share >= holdout else ()

    return Listed(len(files.records), lambda *part: [ids(text) for text in files.part(*part)])
