"""Prepared tokens: written once, file by file, and read as the text would be; damage is said, never trained on."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import prepared, small_config, some_files, starting
from streams import train
from text_files import KINDS, Files, some_documents, write_files
from tokenizers import Tokenizer, models, pre_tokenizers

from mhc_train.data import Corpus, open_corpus
from mhc_train.data.order import Reader
from mhc_train.data.prepare import prepare
from mhc_train.data.readers import Part
from mhc_train.data.token_cache import TokenCache
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig


@pytest.fixture
def config(tmp_path: Path, tokenizer_file: str) -> DataConfig:
    return small_config(some_files(tmp_path / "text", "jsonl"), tokenizer_file, tmp_path / "cache")


def written(config: DataConfig) -> Path:
    """The directory of a source's tokens."""
    (done,) = prepare(config, tokens=True)["prepared"]
    return Path(done["directory"])


def tokens_of(corpus: Corpus, steps: int = 30) -> list[list[int]]:
    return train(starting(corpus, 4), steps)[0].tolist()


def as_lists(reader: Reader, part: Part, size: int, cursor: int | None = None) -> list[Any]:
    """Everything a reader says of a part, blocks in stored order and backwards."""
    found = []
    for block in reader.blocks(part, size, cursor):
        for order in (np.arange(len(block)), np.arange(len(block))[::-1][len(block) // 3 :]):
            some = list(block.documents(order))
            joined = [
                np.concatenate([getattr(piece, name) for piece in some]) for name in ("tokens", "lengths", "places")
            ]
            skipped = np.concatenate([*(piece.skipped[:-1] for piece in some), some[-1].skipped[-1:]])
            found.append((block.cursor, len(block), *(array.tolist() for array in (*joined, skipped))))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_of_every_part_is_the_one_of_the_text(kind: str, tmp_path: Path, tokenizer_file: str) -> None:
    documents = some_documents(19)
    if "jsonl" in kind:
        documents[2::5] = ["unreadable"] * 4
    shards = [documents, ["", "", "alone"] if "txt" not in kind and "csv" not in kind else ["alone"]]
    files = write_files(tmp_path / "text", kind, shards)
    config = small_config(files, tokenizer_file, tmp_path / "cache", on_error="skip", validation_tokens=8)
    (text,) = open_corpus(config).plan.readers
    (ready,) = open_corpus(prepared(config)).plan.readers
    assert isinstance(ready, TokenCache) and not isinstance(text, TokenCache) and ready.shards == text.shards == 2
    for part in (Part(0), Part(0, 1, 3), Part(1), Part(1, 0, 2), Part(1, 5, 50)):
        for size in (1, 4, 1000):
            found = as_lists(text, part, size)
            assert as_lists(ready, part, size) == found
            for cursor, *_ in found[2:5:2]:
                assert as_lists(ready, part, size, cursor) == as_lists(text, part, size, cursor)


def test_many_documents_and_large_ones_come_in_pieces(tmp_path: Path, tokenizer_file: str) -> None:
    documents = [*some_documents(1300), "word " * 300_000]
    files = write_files(tmp_path / "text", "parquet", [documents])
    config = small_config(files, tokenizer_file, tmp_path / "cache")
    (text,) = open_corpus(config).plan.readers
    (ready,) = open_corpus(prepared(config)).plan.readers
    (found,), (expected,) = ([*reader.blocks(Part(0), 5000)] for reader in (ready, text))
    assert len(list(found.documents(np.arange(len(found))))) > 1
    assert as_lists(ready, Part(0), 5000) == as_lists(text, Part(0), 5000) and len(expected) == 1301


def test_the_manifest_and_the_files_say_what_is_in_them(config: DataConfig) -> None:
    directory = written(config)
    corpus = open_corpus(config)
    manifest = json.loads((directory / "manifest.json").read_text())
    texts = [text for text in _texts(config) if text]
    training = [text for text in texts if text.encode() in corpus.texts[0].training]
    lengths = corpus.tokenizer.encode(training)[1]
    assert manifest == {
        "files": 3,
        "tokenizer_sha256": corpus.tokenizer.sha256,
        "records": len(_texts(config)),
        "documents": len(training),
        "unreadable": 0,
        "tokens": lengths.sum(),
        "bytes": sum(len(text.encode()) for text in training),
    }
    stored = np.concatenate([np.fromfile(path, "<u2") for path in sorted(directory.glob("*.tokens"))])
    assert stored.tolist() == corpus.tokenizer.encode(training)[0].tolist()
    every = np.concatenate([np.load(path) for path in sorted(directory.glob("*.lengths.npy"))])
    assert every[every > 0].tolist() == lengths.tolist() and len(every) == manifest["records"]


def _texts(config: DataConfig) -> list[str]:
    lines = [line for path in sorted(Path(config.path).parent.iterdir()) for line in path.read_bytes().splitlines()]
    return [json.loads(line)["text"] if line else "" for line in lines]


def test_an_interrupted_preparation_goes_on_with_the_file_it_was_at(config: DataConfig) -> None:
    directory = written(config)
    before = {path.name: path.read_bytes() for path in directory.glob("[!.]*")}
    for name in ("manifest.json", "00001.json"):
        (directory / name).unlink()
    (directory / "00001.tokens").write_bytes(b"half")
    (directory / "00002.tokens").chmod(0o444)
    stamps = {path.name: path.stat().st_mtime_ns for path in directory.glob("[!.]*") if path.name[:5] != "00001"}
    assert open_corpus(config).plan.readers != open_corpus(dataclasses.replace(config, prepared="never"))
    assert written(config) == directory
    assert {path.name: path.read_bytes() for path in directory.glob("[!.]*")} == before
    assert {name: (directory / name).stat().st_mtime_ns for name in stamps} == stamps


def test_only_whole_preparations_are_read(config: DataConfig) -> None:
    directory = written(config)
    assert isinstance(open_corpus(config).plan.readers[0], TokenCache)
    (directory / "manifest.json").unlink()
    assert not isinstance(open_corpus(config).plan.readers[0], TokenCache)


def test_prepared_is_used_or_not_as_asked(config: DataConfig) -> None:
    always, never = (dataclasses.replace(config, prepared=choice) for choice in ("always", "never"))
    with pytest.raises(DataError, match="data prepare --tokens"):
        open_corpus(always)
    text = tokens_of(open_corpus(config))
    written(config)
    readers = [open_corpus(choice).plan.readers[0] for choice in (always, never, config)]
    assert [isinstance(reader, TokenCache) for reader in readers] == [True, False, True]
    assert [tokens_of(open_corpus(choice)) for choice in (always, never, config)] == [text] * 3


def test_no_text_is_read_where_tokens_are(config: DataConfig) -> None:
    directory = written(config)
    corpus = open_corpus(config)
    found = tokens_of(corpus)
    for path in Path(config.path).parent.iterdir():
        path.unlink()
    assert tokens_of(corpus) == found and directory.exists()


@pytest.mark.parametrize(
    "changes", [{"tokenizer": None, "vocab_size": 280}, {"holdout": 0.3}, {"on_error": "skip"}, {"column": "other"}]
)
def test_tokens_of_another_choice_are_elsewhere(changes: dict[str, Any], config: DataConfig) -> None:
    for path in Path(config.path).parent.iterdir():
        path.write_bytes(re.sub(rb'"other": (\d+)', rb'"other": "text number \1 of its own"', path.read_bytes()))
    written(config)
    with pytest.raises(DataError, match="there are no prepared tokens"):
        open_corpus(dataclasses.replace(config, prepared="always", **changes))


def test_tokens_of_another_seed_or_lanes_or_block_are_the_same(config: DataConfig) -> None:
    written(config)
    for changes in ({"seed": 8}, {"lanes": 2}, {"shuffle_block": 3}, {"seq_len": 5}, {"validation_tokens": 32}):
        open_corpus(dataclasses.replace(config, prepared="always", **changes))


def test_tokens_prepared_without_a_validation_split_are_not_read_with_one(tmp_path: Path, tokenizer_file: str) -> None:
    files = some_files(tmp_path / "text", "hub of parquet")
    write_files(tmp_path / "other", "parquet", [some_documents(9)])
    (tmp_path / "other" / "00.parquet").rename(tmp_path / "text" / "validation-00000.parquet")
    config = small_config(files, tokenizer_file, tmp_path / "cache")
    written(config)
    with pytest.raises(DataError, match="there are no prepared tokens"):
        open_corpus(dataclasses.replace(config, prepared="always", validation_split="validation"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_shard(path: Path) -> None:
    path.write_bytes(path.with_name(path.name.replace("00000", "00001")).read_bytes())


@pytest.mark.parametrize("name", ["00000.tokens", "00000.lengths.npy", "00000.keys.npy", "00000.json"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, of_another_shard])
def test_damaged_files_are_an_error(name: str, damage: Callable[[Path], None], config: DataConfig) -> None:
    damage(written(config) / name)
    with pytest.raises(DataError, match="the prepared tokens are damaged.*Delete this directory"):
        tokens_of(open_corpus(config))


def test_a_shard_without_documents_is_prepared_too(tmp_path: Path, tokenizer_file: str) -> None:
    for kind in ("jsonl", "parquet"):
        files = write_files(tmp_path / kind, kind, [some_documents(20), [], ["", ""]])
        config = small_config(files, tokenizer_file, tmp_path / "cache")
        text = tokens_of(open_corpus(config))
        assert tokens_of(open_corpus(prepared(config))) == text


def test_large_vocabularies_take_four_bytes_a_token(tmp_path: Path) -> None:
    size = (1 << 16) + 100
    words = {f"w{number}": number for number in range(size - 1)} | {"<|endoftext|>": size - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents = [
        " ".join(f"w{97 * number % size}" for number in range(start, start + 20)) for start in range(300, 700, 5)
    ]
    files = write_files(tmp_path / "text", "jsonl", [documents])
    config = small_config(files, str(tmp_path / "tokenizer.json"), tmp_path / "cache")
    found = tokens_of(open_corpus(config))
    directory = written(config)
    assert tokens_of(open_corpus(config)) == found and max(map(max, found)) == size - 1
    facts = json.loads((directory / "00000.json").read_text())
    assert facts["type"] == "<u4" and (directory / "00000.tokens").stat().st_size == 4 * facts["tokens"]


def test_a_broken_file_is_not_prepared(tmp_path: Path, tokenizer_file: str) -> None:
    files = write_files(tmp_path / "text", "jsonl.gz", [some_documents(60), some_documents(60, seed=1)])
    config = small_config(files, tokenizer_file, tmp_path / "cache", on_error="skip")
    path = tmp_path / "text" / "01.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="breaks off: tokens can be kept of whole files only"):
        prepare(config, tokens=True)
    assert not list((tmp_path / "cache").glob("tokens/*/manifest.json"))
    assert tokens_of(open_corpus(config))


def test_a_mixtures_sources_are_prepared_apart(tmp_path: Path, tokenizer_file: str) -> None:
    kept: dict[str, Files] = {
        kind: some_files(tmp_path / kind, kind, seed) for seed, kind in enumerate(("jsonl", "txt"))
    }
    own = {name: {"weight": 1, "source": files.source, "path": files.path} for name, files in kept.items()}
    config = small_config(kept["txt"], tokenizer_file, tmp_path / "cache", source="mixture", mixture=own)
    done = prepare(config, tokens=True)["prepared"]
    assert len({each["directory"] for each in done}) == 2
    (Path(done[0]["directory"]) / "manifest.json").unlink()
    readers = open_corpus(config).plan.readers
    assert [isinstance(reader, TokenCache) for reader in readers] == [False, True]
