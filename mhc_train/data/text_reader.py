"""A source read as text: records become documents, unreadable ones are refused or counted, the rest are tokenised."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mhc_train.console import say
from mhc_train.data.holdout import TrainingSet
from mhc_train.data.order import Documents
from mhc_train.data.readers import (
    BadDocumentError,
    BrokenShardError,
    Chunk,
    Part,
    Shard,
    StoreError,
    read_chunks,
    text_of,
)
from mhc_train.data.retry import Retry
from mhc_train.data.sources import Source, check_unchanged
from mhc_train.data.tokenizer import LoadedTokenizer
from mhc_train.errors import DataError

DOCUMENTS_A_CALL, BYTES_A_CALL = 64, 1 << 16
"""What is tokenised at once: little enough to begin soon, and to hold documents of any size."""
RECORDS_A_CHUNK = 1024
MEND = "Mend it before a run begins, or type data.on_error=skip to pass over what cannot be read and count it."


@dataclass(frozen=True)
class TextReader:
    """A source's documents in stored order."""

    source: Source
    skip_unreadable: bool
    retry: Retry
    warned: set[str] = field(default_factory=set)
    """Shards of which an unreadable document was reported."""

    def chunks(self, part: Part, size: int = RECORDS_A_CHUNK, cursor: int | None = None) -> Iterator[Chunk]:
        """The records of a part, `size` at a time; where the shard breaks, one chunk that says so.

        Raises:
            DataError: the shard is gone, has changed, cannot be reached, or is broken and `skip_unreadable` is false.
        """
        shard = self.source.shards[part.shard]
        try:
            yield from self.retry.iterate(lambda at: _read(shard, part, size, at), cursor, shard.url)
        except BrokenShardError as error:
            if not self.skip_unreadable:
                raise DataError(f"{shard.url} cannot be read: {error}. {MEND}") from error
            say(f"{shard.url} cannot be read on: {error}. Passed over, as data.on_error=skip asks.")
            yield Chunk([], [])
        except StoreError as error:
            raise DataError(f"{shard.url} cannot be read: {error}.") from error

    def document(self, shard: Shard, chunk: Chunk, number: int) -> tuple[str, bytes] | None:
        """The text of a chunk's record and its UTF-8 bytes, empty if it has none; None if it is passed over.

        Raises:
            DataError: it is unreadable and `skip_unreadable` is false.
        """
        try:
            return text_of(shard, chunk.records[number])
        except BadDocumentError as error:
            found = " ".join(f"{shard.place(chunk.cursor, number)}: {error}".split())
            if not self.skip_unreadable:
                raise DataError(f"{found}. {MEND}") from error
            if shard.url not in self.warned:
                self.warned.add(shard.url)
                say(f"{found}. Passed over, as data.on_error=skip asks; more of this file are counted in silence.")
            return None

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Every document that has text, in stored order, shard after shard."""
        for index, shard in enumerate(self.source.shards):
            for chunk in self.chunks(Part(index)):
                for number in range(len(chunk.records)):
                    if (found := self.document(shard, chunk, number)) and found[1]:
                        yield found


def _read(shard: Shard, part: Part, size: int, cursor: int | None) -> Iterator[Chunk]:
    check_unchanged(shard)
    yield from read_chunks(shard, part, size, cursor)


class Found(NamedTuple):
    """What a record turned out to be."""

    place: int
    text: str | None
    """None if it is unreadable and passed over."""
    size: int
    """UTF-8 bytes of the text."""


@dataclass(frozen=True)
class Tokenizing:
    """Reads a source's training documents as tokens, made as they are asked for."""

    reader: TextReader
    tokenizer: LoadedTokenizer
    training: TrainingSet

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.reader.source.shards)

    def blocks(self, part: Part, size: int, cursor: int | None = None) -> Iterator["TextBlock"]:
        """The documents of a part, `size` at a time."""
        shard = self.reader.source.shards[part.shard]
        return (TextBlock(self, shard, chunk) for chunk in self.reader.chunks(part, size, cursor))

    def find(self, shard: Shard, chunk: Chunk, order: Iterable[int]) -> Iterator[list[Found]]:
        """A chunk's training documents and its unreadable records in this order, as many as are tokenised at once."""
        group: list[Found] = []
        size = 0
        for place, number in enumerate(order):
            document = self.reader.document(shard, chunk, number)
            if document is None:
                group.append(Found(place, None, 0))
            elif document[1] and document[1] in self.training:
                group.append(Found(place, document[0], len(document[1])))
                size += len(document[1])
            if len(group) >= DOCUMENTS_A_CALL or size > BYTES_A_CALL:
                yield group
                group, size = [], 0
        if group:
            yield group


@dataclass(frozen=True)
class TextBlock:
    """Consecutive stored records of a shard."""

    source: Tokenizing
    shard: Shard
    chunk: Chunk

    @property
    def cursor(self) -> int:
        """Where reading them begins."""
        return self.chunk.cursor

    def __len__(self) -> int:
        return len(self.chunk.records)

    def documents(self, order: NDArray[np.int64]) -> Iterator[Documents]:
        """Those to train on, as tokens, in this order of their stored places."""
        skipped = 0 if self.chunk.records else 1  # the rest of a broken shard counts as one document
        groups = self.source.find(self.shard, self.chunk, order.tolist())
        for group in chain(groups, [[]]):
            unreadable = skipped + np.cumsum([found.text is None for found in group], dtype=np.int64)
            readable = [index for index, found in enumerate(group) if found.text is not None]
            tokens, lengths = self.source.tokenizer.encode([text for _, text, _ in group if text is not None])
            skipped = int(unreadable[-1]) if group else skipped
            places = np.array([found.place for found in group], np.int64)
            yield Documents(tokens, lengths, places[readable], np.append(unreadable[readable], skipped))
