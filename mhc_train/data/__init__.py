"""From text to batches of tokens: sources, a deterministic order, lanes, a tokenizer, a fixed validation set."""

from mhc_train.data.corpus import Corpus, open_corpus
from mhc_train.data.lanes import State
from mhc_train.data.loader import Batches, merged, order_fingerprint, skipped_documents

__all__ = ["Batches", "Corpus", "State", "merged", "open_corpus", "order_fingerprint", "skipped_documents"]
