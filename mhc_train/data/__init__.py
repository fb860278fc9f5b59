"""From text to batches of tokens: sources, a deterministic order, a tokenizer, packing, a fixed validation set."""

from mhc_train.data.corpus import Corpus, open_corpus

__all__ = ["Corpus", "open_corpus"]
