"""What a data configuration amounts to: its files, its documents in numbers, a sample, and the order's fingerprint."""

from collections.abc import Iterator
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
    batches = corpus.batches(config.train.batch_tokens // config.data.seq_len)
    sample = [next(batches) for _ in range(steps)][0][0]
    state = batches.state()
    batches.close()
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
    shards, lanes = text.reader.source.shards, corpus.config.lanes
    return {
        "source": describe(part.config),
        "share": part.share,
        "revision": part.config.revision,
        "column": part.config.column,
        "files": len(shards),
        "identity": text.reader.source.identity,
        "parts_a_lane": len(lane_parts(len(shards), 0, lanes, corpus.config.seed, 0)),
        "whole_files": lane_parts(len(shards), 0, lanes, corpus.config.seed, 0)[0].parts == 1,
        "prepared": str(reader.directory) if isinstance(reader, TokenCache) else None,
        "first_documents": _statistics(text, documents),
    }


def _statistics(text: Tokenizing, wanted: int) -> dict[str, Any]:
    """What the first `wanted` records in stored order are."""
    counts = {"records": 0, "training": 0, "held_out": 0, "empty": 0, "unreadable": 0}
    size, lengths = 0, np.empty(0, np.int64)
    for record in islice(_records(text), wanted):
        kind = _kind(text, record)
        counts["records"] += 1
        counts[kind] += 1
        if kind == "training" and record:
            size += len(record[1])
            lengths = np.append(lengths, text.tokenizer.encode([record[0]])[1])
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
