"""One tokenizer for all tests of this floor, and loaders that make little at once, so that batches straddle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from text_files import some_documents

from mhc_train.data import loader
from mhc_train.data.tokenizer import LoadedTokenizer, trained_tokenizer


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="session")
def tokenizer(cache_dir: Path) -> LoadedTokenizer:
    return trained_tokenizer(some_documents(50), 300, "tests", cache_dir)


@pytest.fixture(scope="session")
def tokenizer_file(cache_dir: Path, tokenizer: LoadedTokenizer) -> str:
    return str(next(cache_dir.glob("tokenizers/*.json")))


@pytest.fixture(autouse=True, scope="module")
def little_at_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "LEAST_TOKENS", 24)
        yield
