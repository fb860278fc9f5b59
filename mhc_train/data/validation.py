"""The fixed validation set: the same tokens for every run on the same data, none of them ever trained on."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from safetensors.numpy import load, save
from torch import Tensor

from mhc_train.console import say
from mhc_train.data.holdout import digest, held_out
from mhc_train.data.text_reader import DOCUMENTS_A_CALL, TextReader
from mhc_train.data.tokenizer import LoadedTokenizer, Tokens
from mhc_train.errors import DataError
from mhc_train.files import only_one, write_bytes


@dataclass(frozen=True)
class Validation:
    """The fixed validation set."""

    blocks: Int64[Tensor, "blocks seq_plus_1"]
    """Inputs are `[:, :-1]`, targets `[:, 1:]`."""
    bytes_per_token: float
    """UTF-8 bytes of the documents over their tokens, end-of-text included."""
    sha256: str
    """Hash of the tokens."""

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats a token as bits a byte of text, comparable between tokenizers."""
        return loss / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class HeldOut:
    """The documents of one source that are kept for validation: the first ones in stored order."""

    tokens: Tokens
    size: int
    """UTF-8 bytes of their text."""
    digests: frozenset[bytes]
    """Of each document; none of these may be trained on."""


def read_held_out(
    reader: TextReader, share: float | None, wanted: int, tokenizer: LoadedTokenizer, cache_dir: Path
) -> HeldOut:
    """The first documents with more than `wanted` tokens together, from the cache or read now.

    Args:
        reader: the source, or the split that is for validation.
        share: which of its documents are held out, by hash; None takes all.
        wanted: tokens.
        tokenizer: what makes them.
        cache_dir: where they are kept, so that the next run need not search the text for them.
    """
    key = json.dumps([reader.source.identity, share, wanted, tokenizer.sha256])
    path = cache_dir / "validation" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.kept"
    found = _cached(path)
    if found is None:
        with only_one(path):
            found = _cached(path) or _choose(reader, share, wanted, tokenizer, path)
    return found


def _choose(reader: TextReader, share: float | None, wanted: int, tokenizer: LoadedTokenizer, path: Path) -> HeldOut:
    say(f"Choosing the validation set; it will be kept in {path.parent}")
    texts = (text for text in reader.texts() if share is None or held_out(text[1], share))
    found = _first(texts, wanted, tokenizer)
    write_bytes(path, _packed(found))
    return found


def validation_set(held_out: Iterable[tuple[HeldOut, int]], seq_len: int, where: str) -> Validation:
    """So many tokens of each source, one source after another, cut into whole sequences.

    Raises:
        DataError: together they make no sequence.
    """
    held_out = list(held_out)
    flat = np.concatenate([held.tokens[: wanted + 1] for held, wanted in held_out])
    rows = (len(flat) - 1) // seq_len
    if rows < 1:
        raise DataError(
            f"{where} has {len(flat)} validation tokens, fewer than one sequence of data.seq_len = {seq_len}. "
            "Raise data.holdout, or give more text."
        )
    tokens = torch.from_numpy(flat[: rows * seq_len + 1].astype(np.int64))
    blocks = tokens.unfold(0, seq_len + 1, seq_len).contiguous()
    size, count = sum(held.size for held, _ in held_out), sum(len(held.tokens) for held, _ in held_out)
    return Validation(blocks, size / count, hashlib.sha256(blocks.numpy().tobytes()).hexdigest())


def _first(texts: Iterable[tuple[str, bytes]], wanted: int, tokenizer: LoadedTokenizer) -> HeldOut:
    documents, parts, count, size = iter(texts), [np.empty(0, tokenizer.token_type)], 0, 0
    digests: set[bytes] = set()
    while count <= wanted and (group := list(islice(documents, DOCUMENTS_A_CALL))):
        tokens, lengths = tokenizer.encode([text for text, _ in group])
        # Up to the document with which there are enough.
        needed = int(np.searchsorted(lengths.cumsum(), wanted - count, "right")) + 1
        parts.append(tokens[: lengths[:needed].sum()])
        count += len(parts[-1])
        size += sum(len(text) for _, text in group[:needed])
        digests |= {digest(text) for _, text in group[:needed]}
    return HeldOut(np.concatenate(parts), size, frozenset(digests))


def _packed(found: HeldOut) -> bytes:
    """The file's content, behind its own hash."""
    digests = np.frombuffer(b"".join(sorted(found.digests)), np.uint8)
    content = save({"tokens": found.tokens, "digests": digests, "size": np.array([found.size])})
    return hashlib.sha256(content).digest() + content


def _cached(path: Path) -> HeldOut | None:
    """What an earlier run kept; None if there is nothing, or not what was written."""
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    arrays = load(content[32:])
    digests = arrays["digests"].reshape(-1, 8)
    return HeldOut(arrays["tokens"], int(arrays["size"][0]), frozenset(digest.tobytes() for digest in digests))
