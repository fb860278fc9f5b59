"""A byte-level BPE tokenizer, trained on the corpus itself or given; its hash goes wherever its tokens go."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mhc_train.console import say
from mhc_train.errors import DataError
from mhc_train.files import only_one, write_text

Tokens = NDArray[np.unsignedinteger]
END_OF_TEXT = "<|endoftext|>"
TRAINING_BYTES = 10_000_000
PARTS_A_CALL = 64
"""What is encoded at once, however large a document is."""
LONGEST_PART, NEAR = 100_000, 100
"""Characters that are encoded at once, and how many more are looked at for the end of a word."""
ENDS_OF_WORDS = (
    re.compile(r"(?<=\S)(?= \S)"),
    re.compile(r"(?<=\S)(?=[ \t\n\r\f\v])"),
    re.compile(r"(?<=[^\W\d_])(?=[^\w\s])"),
)
"""Before a space and a word, before other white space, between a letter and a sign; the first that is found."""


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, the exact file it came from, and that file's hash."""

    tokenizer: Tokenizer
    json: str

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of tokenizer.json."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of token ids: one more than the largest, since ids may have gaps."""
        return 1 + max(self.tokenizer.get_vocab(True).values())

    @functools.cached_property
    def end_of_text(self) -> int:
        """The token that ends every document."""
        token = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token is not None  # load_tokenizer has checked
        return token

    @functools.cached_property
    def token_type(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type, least significant byte first, that holds every token id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    def encode(self, documents: list[str]) -> tuple[Tokens, NDArray[np.int64]]:
        """The documents' tokens one after another, each closed by the end-of-text token, and how many each has."""
        parts = iter([(part, last) for document in documents for part, last in _marked(cut(document))])
        tokens, ends, count = [np.empty(0, self.token_type)], [], 0
        while group := list(islice(parts, PARTS_A_CALL)):
            encodings = self.tokenizer.encode_batch_fast([part for part, _ in group], add_special_tokens=False)
            ids: list[int] = []
            for encoding, (_, last) in zip(encodings, group, strict=True):
                ids += encoding.ids
                if last:
                    ids.append(self.end_of_text)
                    ends.append(count + len(ids))
            tokens.append(np.fromiter(ids, self.token_type, len(ids)))
            count += len(ids)
        return np.concatenate(tokens), np.array(ends, np.int64) - np.array([0, *ends[:-1]], np.int64)[: len(ends)]

    def __reduce__(self) -> tuple[Any, ...]:
        # What load_tokenizer sets is not all in the file, so a copy for another process is made from the start.
        return load_tokenizer, (self.json, "tokenizer.json")

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(ids))


def cut(document: str) -> list[str]:
    """Parts of a long document, which together take less memory to encode than the whole.

    They part where byte-level BPE never joins tokens, so that those stay the same: at the end of a word if there is
    one near, which only text without words and spaces lacks.
    """
    parts, start = [], 0
    while len(document) - start > LONGEST_PART + NEAR:
        end = _end_of_word(document, start + LONGEST_PART)
        parts.append(document[start:end])
        start = end
    return [*parts, document[start:]]


def _marked(parts: list[str]) -> Iterator[tuple[str, bool]]:
    """Each part with whether it is the last."""
    return ((part, number == len(parts)) for number, part in enumerate(parts, 1))


def _end_of_word(document: str, start: int) -> int:
    found = (pattern.search(document, start, start + NEAR) for pattern in ENDS_OF_WORDS)
    return next((match.start() for match in found if match), start)


def load_tokenizer(text: str, where: str) -> LoadedTokenizer:
    """A tokenizer from the text of its tokenizer.json.

    Raises:
        DataError: it is no tokenizer, or has no end-of-text token.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{where} is not a tokenizer.json: {error}") from error
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        raise DataError(f"{where} has no {END_OF_TEXT} token. Add it to the tokenizer as a special token.")
    # A document that spells out the special token must not be able to end itself.
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return LoadedTokenizer(tokenizer, text)


def read_tokenizer(path: Path) -> LoadedTokenizer:
    """A tokenizer from a tokenizer.json file."""
    try:
        return load_tokenizer(path.expanduser().read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.tokenizer = {path} cannot be read: {error}") from error


def trained_tokenizer(documents: Iterable[str], vocab_size: int, identity: Any, cache_dir: Path) -> LoadedTokenizer:
    """Train a byte-level BPE on the first 10 MB of `documents`, or reuse the one trained on the same before.

    Args:
        documents: training documents, in stored order; read only when nothing is cached.
        vocab_size: ids, the 256 bytes and the end-of-text token included.
        identity: what identifies the documents; the cache is keyed by it.
        cache_dir: where trained tokenizers are kept.
    """
    key = hashlib.sha256(json.dumps([identity, vocab_size, TRAINING_BYTES], sort_keys=True).encode()).hexdigest()
    path = cache_dir / "tokenizers" / f"{key[:16]}.json"
    if not path.exists():
        with only_one(path):
            if not path.exists():
                say(f"Training a tokenizer of {vocab_size} ids; it will be kept in {path.parent}")
                write_text(path, _train(documents, vocab_size).to_str())
    return read_tokenizer(path)


def _train(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # With all 256 bytes in the alphabet there is no unknown token, and decoding is exact.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(first_bytes(documents, TRAINING_BYTES), trainer)
    return tokenizer


def first_bytes(documents: Iterable[str], budget: int) -> Iterator[str]:
    """The first documents with at least `budget` bytes together."""
    for text in documents:
        yield text
        budget -= len(text.encode(errors="replace"))
        if budget <= 0:
            return
