"""From documents to batches: encode, pack into blocks without padding, stack. Every stage yields (item, state)."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.data.order import Position
from mhc_train.data.tokenizer import LoadedTokenizer

State = dict[str, Any]
DOCUMENTS_A_CALL = 64


def encode(
    documents: Iterable[tuple[str, Position]], tokenizer: LoadedTokenizer
) -> Iterator[tuple[list[int], Position]]:
    """Token ids of each document with the document's position; several are encoded at a time, on all cores."""
    source = iter(documents)
    while group := list(islice(source, DOCUMENTS_A_CALL)):
        ids = tokenizer.encode_batch([text for text, _ in group])
        yield from zip(ids, (position for _, position in group), strict=True)


def pack(
    encoded: Iterable[tuple[list[int], Position]], seq_len: int, carry: list[int] | None = None, taken: int = 0
) -> Iterator[tuple[list[int], State]]:
    """Blocks of `seq_len + 1` tokens; each begins with the last of the one before, its first target.

    A block's state names the document it ends in, the tokens `carry` left over from earlier documents (at most
    `seq_len`), and how many of `carry` and that document together are `taken`.
    """
    carry = carry or []
    for ids, position in encoded:
        tokens = carry + ids
        while len(tokens) - taken > seq_len:
            block = tokens[taken : taken + seq_len + 1]
            taken += seq_len
            yield block, {"document": position, "carry": carry, "taken": taken}
        carry, taken = tokens[taken:], 0


def batches(
    blocks: Iterable[tuple[list[int], State]], size: int, fingerprint: str = ""
) -> Generator[tuple[Int[Tensor, "batch seq_plus_1"], State], None, None]:
    """Stack `size` blocks; the state also carries a running hash of every token delivered so far."""
    source = iter(blocks)
    while group := list(islice(source, size)):
        for block, _ in group:
            fingerprint = hashlib.sha256((fingerprint + ",".join(map(str, block))).encode()).hexdigest()
        yield torch.tensor([block for block, _ in group]), group[-1][1] | {"fingerprint": fingerprint}
