"""What a tutorial writes with `datasets` and `tokenizers` for the same batches: the rival of data_throughput.py."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Rows = dict[str, list[Any]]


class ObviousPipeline:
    """Streams files, tokenises them, cuts the tokens into blocks, and makes tensors of those.

    Args:
        format: parquet or json.
        files: a path or glob.
        tokenizer: of the library `tokenizers`, or what encodes like it.
        end_of_text: the token that ends every document.
        block: tokens a row of a batch.
        rows: rows a batch.
        at_once: documents that `map` passes on at once.
        shuffled: whether `datasets` shuffles in a buffer of its usual 1000 documents.
        one_function: whether one `map` does what a tutorial does in two.
    """

    def __init__(
        self,
        format: str,
        files: str,
        tokenizer: Any,
        end_of_text: int,
        block: int,
        rows: int,
        at_once: int = 1000,
        shuffled: bool = False,
        one_function: bool = False,
    ) -> None:
        import datasets

        self.tokenizer, self.end_of_text, self.block, self.rows = tokenizer, end_of_text, block, rows
        stream = datasets.load_dataset(format, data_files=files, split="train", streaming=True)
        if shuffled:
            # With more than one, every iterator that is closed sleeps for five seconds.
            stream = stream.shuffle(seed=0, max_buffer_input_shards=1)
        steps = [self._tokenised_blocks] if one_function else [self._tokenised, self._blocks]
        for step in steps:
            stream = stream.map(step, batched=True, batch_size=at_once, remove_columns=stream.column_names)
        self.stream = stream

    def batches(self) -> Iterator[Tensor]:
        """The batches of one epoch, (rows, block); `with_format("torch")` would make them several times slower."""
        return iter(DataLoader(self.stream, self.rows, collate_fn=_collated))

    def _tokenised(self, rows: Rows) -> Rows:
        encodings = self.tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)
        return {"input_ids": [[*encoding.ids, self.end_of_text] for encoding in encodings]}

    def _blocks(self, rows: Rows) -> Rows:
        """Whole blocks; the rest of every group of documents is lost, as it is in the tutorials."""
        tokens = list(chain.from_iterable(rows["input_ids"]))
        starts = range(0, len(tokens) - self.block + 1, self.block)
        return {"input_ids": [tokens[start : start + self.block] for start in starts]}

    def _tokenised_blocks(self, rows: Rows) -> Rows:
        return self._blocks(self._tokenised(rows))


def _collated(rows: list[dict[str, list[int]]]) -> Tensor:
    return torch.tensor([row["input_ids"] for row in rows])
