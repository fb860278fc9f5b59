"""What a data configuration amounts to: its files, its documents in numbers, a sample, and the order's fingerprint."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np

from mhc_train.data.corpus import Corpus, open_corpus
from mhc_train.data.loader import order_fingerprint
from mhc_train.data.mixture import Component, components
from mhc_train.data.order import lane_parts
from mhc_train.data.readers import Part
from mhc_train.data.sources import describe
from mhc_train.data.text_reader import Tokenizing
from mhc_train.data.token_cache import TokenCache
from mhc_train.schema import Config

SCHEMA_VERSION = 1
SAMPLE_TOKENS = 120


def inspect(config: Config, documents: int, steps: int) -> dict[str, Any]:
    """The document of `data inspect --json`.

    Args:
        config: its `data`, and `train.batch_tokens`.
        documents: how many of each source, in stored order, the statistics are over.
        steps: how many the fingerprint covers.

    Raises:
        DataError: the text is absent, unreachable or unreadable.
    """
    corpus = open_corpus(config.data)
    parts = components(corpus.config)
    with closing(corpus.batches(config.train.batch_tokens // config.data.seq_len)) as batches:
        sample = next(batches)[0]
        for _ in range(steps - 1):
            next(batches)
        state = batches.state()
    return {
        "schema_version": SCHEMA_VERSION,
        "sources": [_source(corpus, number, part, documents) for number, part in enumerate(parts)],
        "tokenizer": {"sha256": corpus.tokenizer.sha256, "vocab_size": corpus.tokenizer.vocab_size},
        "validation": {
            "sha256": corpus.validation.sha256,
            "sequences": len(corpus.validation.blocks),
            "tokens": corpus.validation.blocks[:, 1:].numel(),
            "bytes_per_token": corpus.validation.bytes_per_token,
        },
        "order": {"steps": steps, "tokens": steps * config.train.batch_tokens, "fingerprint": order_fingerprint(state)},
        "sample": corpus.tokenizer.decode(sample[:SAMPLE_TOKENS].tolist()),
    }


def _source(corpus: Corpus, number: int, part: Component, documents: int) -> dict[str, Any]:
    text, reader = corpus.texts[number], corpus.plan.readers[number]
    shards = text.reader.source.shards
    parts = lane_parts(len(shards), 0, corpus.config.lanes, corpus.config.seed, 0)
    return {
        "source": describe(part.config),
        "share": part.share,
        "revision": part.config.revision,
        "column": part.config.column,
        "files": len(shards),
        "identity": text.reader.source.identity,
        "parts_a_lane": len(parts),
        "whole_files": parts[0].parts == 1,
        "prepared": str(reader.directory) if isinstance(reader, TokenCache) else None,
        "first_documents": _statistics(text, documents),
    }


def _statistics(text: Tokenizing, wanted: int) -> dict[str, Any]:
    """What the first `wanted` records in stored order are."""
    counts = {"records": 0, "training": 0, "held_out": 0, "empty": 0, "unreadable": 0}
    training: list[tuple[str, bytes]] = []
    for record in islice(_records(text), wanted):
        kind = _kind(text, record)
        counts["records"] += 1
        counts[kind] += 1
        if kind == "training" and record:
            training.append(record)
    size, lengths = (
        sum(len(content) for _, content in training),
        text.tokenizer.encode([document for document, _ in training])[1],
    )
    tokens = int(lengths.sum())
    spread = np.percentile(lengths, (50, 99, 100)).tolist() if len(lengths) else [None] * 3
    return counts | {
        "tokens": tokens,
        "tokens_per_document": dict(zip(("median", "p99", "max"), spread, strict=True)),
        "bytes_per_token": size / tokens if tokens else None,
    }


def _records(text: Tokenizing) -> Iterator[tuple[str, bytes] | None]:
    for index, shard in enumerate(text.reader.source.shards):
        for chunk in text.reader.chunks(Part(index)):
            yield from (text.reader.document(shard, chunk, number) for number in range(len(chunk.records)))


def _kind(text: Tokenizing, record: tuple[str, bytes] | None) -> str:
    if record is None:
        return "unreadable"
    if not record[1]:
        return "empty"
    return "training" if record[1] in text.training else "held_out"
