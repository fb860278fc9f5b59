"""Corpora of a few short documents in any format, and the sequences that the oracle expects of them."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

from order_oracle import listed, sequences
from streams import Start
from text_files import Files, some_documents, write_files

from mhc_train.data import Corpus
from mhc_train.data.prepare import prepare
from mhc_train.schema import DataConfig

SIZES = (31, 2, 17)
"""Documents a shard: uneven, and one with fewer than there are lanes."""


def small_config(files: Files, tokenizer: str, cache_dir: Path, **changes: Any) -> DataConfig:
    """Files as they are opened in tests of this floor."""
    base = DataConfig(
        source=files.source, path=files.path, cache_dir=str(cache_dir), tokenizer=tokenizer, seq_len=8, lanes=4,
        shuffle_block=5, holdout=0.2, validation_tokens=256, workers=0, seed=3,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def some_files(directory: Path, kind: str, seed: int = 0, rows_a_group: int = 7) -> Files:
    """Three shards of documents that no other seed has."""
    shards = [some_documents(size, seed=10 * seed + number) for number, size in enumerate(SIZES)]
    return write_files(directory, kind, shards, rows_a_group)


def starting(corpus: Corpus, size: int) -> Start:
    """Batches of a corpus, for `train` and `train_on`."""
    return lambda state, rank, world: corpus.batches(size, state, rank, world)


def expected(corpus: Corpus, files: list[Files], weights: list[float], number: int) -> list[list[int]]:
    """The first sequences of a training."""
    config = corpus.config
    sources = [listed(some, corpus.tokenizer.json, config.holdout) for some in files]
    stream = sequences(sources, weights, config.lanes, config.seed, config.shuffle_block, config.seq_len)
    return list(islice(stream, number))


def prepared(config: DataConfig) -> DataConfig:
    """The same, with its tokens written and nothing else read."""
    prepare(config, tokens=True)
    return dataclasses.replace(config, prepared="always")
