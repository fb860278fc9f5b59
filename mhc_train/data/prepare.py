"""What a training does to its text, done once before: corpus, tokenizer and validation set, and all tokens if asked."""

from pathlib import Path
from typing import Any

from mhc_train.console import say
from mhc_train.data.corpus import open_corpus
from mhc_train.data.text_reader import Tokenizing
from mhc_train.data.token_cache import cache_directory, write_cache
from mhc_train.files import only_one
from mhc_train.progress import Progress
from mhc_train.schema import DataConfig

SCHEMA_VERSION = 1


def prepare(config: DataConfig, tokens: bool) -> dict[str, Any]:
    """The document of `data prepare --json`; `tokens` also writes the tokens of all training documents.

    What an earlier call has finished is not done again, whole files of text at a time.

    Raises:
        DataError: the text is absent, unreachable or unreadable.
        StorageError: the cache cannot be written.
    """
    corpus = open_corpus(config)
    return {
        "schema_version": SCHEMA_VERSION,
        "tokenizer_sha256": corpus.tokenizer.sha256,
        "vocab_size": corpus.tokenizer.vocab_size,
        "validation_sha256": corpus.validation.sha256,
        "validation_tokens": corpus.validation.blocks[:, 1:].numel(),
        "prepared": [_write(source, Path(config.cache_dir)) for source in corpus.texts] if tokens else [],
    }


def _write(source: Tokenizing, cache_dir: Path) -> dict[str, Any]:
    """Write one source's tokens, with a progress bar over its files."""
    directory = cache_directory(source, cache_dir)
    with Progress("tokens", source.shards, unit="file") as progress:

        def advance(files: int, documents: int, tokens: int) -> None:
            progress.update(files, f"{documents:,} documents · {tokens:,} tokens")

        with only_one(directory):
            manifest = write_cache(source, directory, advance)
    say(f"{manifest['tokens']:,} tokens of {manifest['documents']:,} documents in {directory}")
    return {"directory": str(directory), **manifest}
