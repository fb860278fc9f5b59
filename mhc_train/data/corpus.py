"""A corpus ready to train on: its tokenizer, its fixed validation set, and its endless stream of batches."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mhc_train.console import say
from mhc_train.data.holdout import TrainingSet, held_out
from mhc_train.data.lanes import Plan, State
from mhc_train.data.loader import Batches, check_dealing, check_state
from mhc_train.data.mixture import Component, components, settled
from mhc_train.data.order import Reader
from mhc_train.data.retry import Retry
from mhc_train.data.sources import describe, find_source, resolve_source
from mhc_train.data.text_reader import TextReader, Tokenizing
from mhc_train.data.token_cache import cache_directory, open_cache
from mhc_train.data.tokenizer import TRAINING_BYTES, LoadedTokenizer, first_bytes, read_tokenizer, trained_tokenizer
from mhc_train.data.validation import HeldOut, Validation, read_held_out, validation_set
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig


@dataclass(frozen=True)
class Corpus:
    """An opened data configuration. `config` has everything settled that was left open."""

    config: DataConfig
    tokenizer: LoadedTokenizer
    validation: Validation
    texts: tuple[Tokenizing, ...]
    """The text of every source, whether or not its tokens were prepared."""
    plan: Plan
    identity: str
    """Changes with the text, the tokenizer, and what they are read as."""

    def batches(
        self, size: int, state: State | None = None, rank: int = 0, world: int = 1, workers: int | None = None
    ) -> Batches:
        """Training batches without end; see `Batches`. Without a number of workers, `data.workers` says it."""
        workers = (self.config.workers or 0) if workers is None else workers
        return Batches(self.plan, self.identity, size, state, rank, world, workers)

    def check(self, state: State | None, size: int, world: int = 1, workers: int = 0) -> None:
        """Refuse what `batches` would refuse, of any rank.

        Raises:
            ConfigError: the numbers do not divide one another.
            DataError: the state is of other text, another tokenizer, or other lanes.
        """
        check_dealing(self.plan.lanes, size, world, workers)
        check_state(state, self.identity, self.plan.lanes)


def open_corpus(config: DataConfig) -> Corpus:
    """Open the sources, get the tokenizer (given, cached or trained now) and the validation set.

    Raises:
        DataError: text or tokenizer are absent, unreachable, unreadable or too short.
    """
    config = settled(config, resolve_source)
    parts = components(config)
    texts = [_text(part.config) for part in parts]
    tokenizer = _tokenizer(config, parts, texts)
    held = [_held_out(part, text, tokenizer) for part, text in zip(parts, texts, strict=True)]
    where = " and ".join(describe(part.config) for part in parts)
    validation = validation_set(
        [(part_held, _wanted(part)) for part_held, part in zip(held, parts, strict=True)], config.seq_len, where
    )
    # Where all hold out by hash alone, the hash says it; else no source trains on what any other validates on.
    by_hash = len({_holdout(part.config) for part in parts}) == 1 and _holdout(parts[0].config) > 0
    excluded = frozenset[bytes]() if by_hash else frozenset[bytes]().union(*(source.digests for source in held))
    live = [
        Tokenizing(text, tokenizer, TrainingSet(_holdout(part.config), excluded))
        for text, part in zip(texts, parts, strict=True)
    ]
    shares = tuple(part.share for part in parts)
    plan = Plan(
        tuple(_reader(config, source) for source in live),
        shares, config.lanes, config.seed, config.shuffle_block, config.seq_len, tokenizer.token_type,
    )  # fmt: skip
    config = dataclasses.replace(config, tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size)
    identity = _identity(live, shares, config)
    return Corpus(config, tokenizer, validation, tuple(live), plan, identity)


def _text(config: DataConfig, split: str | None = None) -> TextReader:
    retry = Retry(config.retries, advice="Check the network; data.retries=N tries more often.")
    return TextReader(find_source(config, split), config.on_error == "skip", retry)


def _tokenizer(config: DataConfig, parts: list[Component], texts: list[TextReader]) -> LoadedTokenizer:
    if config.tokenizer is not None:
        tokenizer = read_tokenizer(Path(config.tokenizer))
    else:
        facts = [
            [text.source.identity, part.share, _holdout(part.config)] for text, part in zip(texts, parts, strict=True)
        ]
        tokenizer = trained_tokenizer(_sample(parts, texts), config.vocab_size, facts, Path(config.cache_dir))
    if config.tokenizer_sha256 not in (None, tokenizer.sha256):
        raise DataError(
            f"the tokenizer's hash is {tokenizer.sha256[:16]}..., the configuration asks for "
            f"{str(config.tokenizer_sha256)[:16]}...: tokens would not mean the same. Use the original tokenizer.json."
        )
    return tokenizer


def _sample(parts: list[Component], texts: list[TextReader]) -> Iterator[str]:
    """The first training documents of every source, as many as its share of what a tokenizer is trained on."""
    for part, reader in zip(parts, texts, strict=True):
        share = _holdout(part.config)
        training = (text for text, content in reader.texts() if not held_out(content, share))
        yield from first_bytes(training, int(TRAINING_BYTES * part.share))


def _held_out(part: Component, text: TextReader, tokenizer: LoadedTokenizer) -> HeldOut:
    config = part.config
    reader = text if config.validation_split is None else _text(config, config.validation_split)
    share = config.holdout if config.validation_split is None else None
    return read_held_out(reader, share, _wanted(part), tokenizer, Path(config.cache_dir))


def _wanted(part: Component) -> int:
    return int(part.config.validation_tokens * part.share)


def _holdout(config: DataConfig) -> float:
    """The share held out by hash: none where a split of its own is the validation set."""
    return config.holdout if config.validation_split is None else 0.0


def _reader(config: DataConfig, source: Tokenizing) -> Reader:
    """The prepared tokens where there are any and `data.prepared` allows it, else the text."""
    directory = cache_directory(source, Path(config.cache_dir))
    cache = open_cache(directory, source.reader.source.shards) if config.prepared != "never" else None
    if cache is None and config.prepared == "always":
        raise DataError(
            "data.prepared = always: there are no prepared tokens of this text and tokenizer. Type "
            "`mhc-train data prepare --tokens` with the same data overrides, or data.prepared=auto."
        )
    if cache is None:
        return source
    say(f"Reading prepared tokens from {directory}")
    return cache


def _identity(live: list[Tokenizing], shares: tuple[float, ...], config: DataConfig) -> str:
    """Hash of everything that decides which sequence is the g-th."""
    sources = [
        [source.reader.source.identity, source.training.identity, share]
        for source, share in zip(live, shares, strict=True)
    ]
    facts = [sources, config.tokenizer_sha256, config.seed, config.lanes, config.shuffle_block, config.seq_len]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
