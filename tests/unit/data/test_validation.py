"""The validation set: fixed by the text alone, kept, and never trained on."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpora import small_config, some_files, starting
from streams import train
from text_files import Files, some_documents, write_files

from mhc_train.data import Corpus, open_corpus
from mhc_train.data.holdout import TrainingSet, digest, held_out
from mhc_train.data.text_reader import TextReader
from mhc_train.data.tokenizer import LoadedTokenizer
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

Open = Callable[..., Corpus]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return some_files(tmp_path / "text", "jsonl")


@pytest.fixture
def open_with(files: Files, tmp_path: Path, tokenizer_file: str) -> Open:
    return lambda **changes: open_corpus(small_config(files, tokenizer_file, tmp_path / "cache", **changes))


def trained_documents(corpus: Corpus, epochs: int = 1) -> list[str]:
    """Texts of what a training of one lane reads."""
    steps, state, tokens = 0, None, []
    while state is None or state["lanes"]["0"]["positions"][0][0] < epochs:
        batch, state = train(starting(corpus, 4), 10, state)
        tokens += batch[:, :-1].flatten().tolist()
        steps += 1
    ends = [-1, *(place for place, token in enumerate(tokens) if token == corpus.tokenizer.end_of_text)]
    return [corpus.tokenizer.decode(tokens[a + 1 : b]) for a, b in zip(ends, ends[1:], strict=False)]


def test_it_is_the_first_held_out_documents_in_stored_order(files: Files, open_with: Open) -> None:
    corpus = open_with()
    kept = [text for text in files.texts if text and held_out(text.encode(), 0.2)]
    tokens = corpus.tokenizer.encode(kept)[0].tolist()
    assert 0.1 < len(kept) / len(files.texts) < 0.4 and len(tokens) > 257
    assert corpus.validation.blocks.shape == (32, 9)
    assert corpus.validation.blocks[:, :-1].flatten().tolist() == tokens[:256]
    assert corpus.validation.blocks[:, 1:].flatten().tolist() == tokens[1:257]


@pytest.mark.parametrize("wanted", [256, 6000])
def test_bytes_a_token_are_of_whole_documents(wanted: int, tmp_path: Path, tokenizer_file: str) -> None:
    files = write_files(tmp_path / "text", "jsonl", [some_documents(300)])
    config = small_config(files, tokenizer_file, tmp_path, holdout=0.9, validation_tokens=wanted)
    corpus = open_corpus(config)
    kept = [text for text in files.texts if text and held_out(text.encode(), 0.9)]
    lengths = [len(corpus.tokenizer.encode([text])[0]) for text in kept]
    number = next(number for number in range(len(kept)) if sum(lengths[:number]) > wanted)
    assert (number > 128) == (wanted == 6000)
    size = sum(len(text.encode()) for text in kept[:number])
    assert corpus.validation.bytes_per_token == size / sum(lengths[:number])
    assert corpus.validation.bits_per_byte(corpus.validation.bytes_per_token * math.log(256)) == pytest.approx(8)


def test_the_last_token_asked_for_has_its_target_even_where_a_document_ends_there(
    files: Files, open_with: Open, tokenizer: LoadedTokenizer
) -> None:
    kept = [text for text in files.texts if text and held_out(text.encode(), 0.2)]
    lengths = tokenizer.encode(kept)[1].cumsum()
    assert len(open_with(seq_len=1, validation_tokens=int(lengths[2])).validation.blocks) == lengths[2]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 9}, {"shuffle_block": 2}, {"lanes": 12}, {"prepared": "never"}, {"retries": 1}, {"workers": None}],
)
def test_nothing_of_the_order_changes_it(changes: dict[str, Any], open_with: Open) -> None:
    assert open_with(**changes).validation.sha256 == open_with().validation.sha256


@pytest.mark.parametrize("changes", [{"holdout": 0.6}, {"validation_tokens": 128}, {"seq_len": 7}])
def test_what_is_asked_of_it_does(
    changes: dict[str, Any], files: Files, open_with: Open, tmp_path: Path, tokenizer_file: str
) -> None:
    assert open_with(**changes).validation.sha256 != open_with().validation.sha256
    elsewhere = open_corpus(small_config(files, tokenizer_file, tmp_path / "fresh"))
    assert elsewhere.validation.sha256 == open_with().validation.sha256


def test_all_held_out_tokens_are_taken_where_fewer_are_there_than_asked_for(files: Files, open_with: Open) -> None:
    corpus = open_with(validation_tokens=10**6)
    kept = [text for text in files.texts if text and held_out(text.encode(), 0.2)]
    tokens = corpus.tokenizer.encode(kept)[0]
    assert len(corpus.validation.blocks) == (len(tokens) - 1) // 8


def test_no_document_of_it_is_trained_on(files: Files, open_with: Open) -> None:
    trained = set(trained_documents(open_with(lanes=1), 2))
    kept = {text for text in files.texts if held_out(text.encode(), 0.2)}
    assert trained == {text for text in files.texts if text} - kept and kept & set(files.texts)


@pytest.mark.parametrize("prepared", ["never", "always"])
def test_a_split_of_its_own_is_left_out_where_training_repeats_it(
    prepared: str, tmp_path: Path, tokenizer_file: str
) -> None:
    own, shared, rest = some_documents(6), some_documents(5, seed=1), some_documents(20, seed=2)
    write_files(tmp_path / "text", "hub of parquet", [shared + rest[:10], rest[10:] + shared])
    write_files(tmp_path / "other", "parquet", [own + shared])
    (tmp_path / "other" / "00.parquet").rename(tmp_path / "text" / "validation-00000.parquet")
    config = DataConfig(
        source="hub", path=str(tmp_path / "text"), validation_split="validation", cache_dir=str(tmp_path),
        tokenizer=tokenizer_file, seq_len=8, lanes=1, validation_tokens=10**6,
    )  # fmt: skip
    if prepared == "always":
        from corpora import prepared as write

        config = write(config)
    corpus = open_corpus(config)
    flat = corpus.tokenizer.encode(own + shared)[0].tolist()
    assert corpus.validation.blocks[:, 1:].flatten().tolist() == flat[1 : len(flat) - (len(flat) - 1) % 8]
    assert set(trained_documents(corpus)) == set(rest)  # none by hash, though some hash below data.holdout
    with pytest.raises(DataError, match="has no split test. It has"):
        open_corpus(dataclasses.replace(config, validation_split="test"))


def test_only_the_documents_that_are_used_are_taken_from_training(tmp_path: Path, tokenizer_file: str) -> None:
    documents = some_documents(30)
    files = write_files(tmp_path / "text", "hub of parquet", [documents])
    write_files(tmp_path / "other", "parquet", [documents])
    (tmp_path / "other" / "00.parquet").rename(tmp_path / "text" / "validation-00000.parquet")
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path, validation_split="validation", lanes=1))
    lengths = corpus.tokenizer.encode(documents)[1].cumsum()
    used = int((lengths <= 256).sum()) + 1
    assert set(trained_documents(corpus)) == set(documents[used:])


def test_it_is_read_once_and_kept(open_with: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_with().validation
    monkeypatch.setattr(TextReader, "texts", lambda self: pytest.fail("the text was read again"))
    again = open_with(seed=4).validation
    assert again.sha256 == first.sha256 and again.blocks.equal(first.blocks)
    assert again.bytes_per_token == first.bytes_per_token


def test_what_is_kept_of_a_split_still_leaves_it_out_of_training(tmp_path: Path, tokenizer_file: str) -> None:
    documents = some_documents(30)
    files = write_files(tmp_path / "text", "hub of parquet", [documents])
    write_files(tmp_path / "other", "parquet", [documents[:9]])
    (tmp_path / "other" / "00.parquet").rename(tmp_path / "text" / "validation-00000.parquet")
    config = small_config(files, tokenizer_file, tmp_path, validation_split="validation", validation_tokens=10**6)
    excluded = [open_corpus(config).texts[0].training.excluded for _ in range(2)]
    assert excluded[0] == excluded[1] == {digest(text.encode()) for text in documents[:9]}


def test_a_kept_copy_with_any_wrong_byte_or_cut_anywhere_is_made_anew(open_with: Open, tmp_path: Path) -> None:
    first = open_with().validation
    (path,) = (tmp_path / "cache" / "validation").glob("[!.]*")
    content = path.read_bytes()
    flipped = [content[:n] + bytes([content[n] ^ 0x41]) + content[n + 1 :] for n in range(0, len(content), 9)]
    for damaged in [b"nonsense", *flipped, *(content[:n] for n in range(0, len(content), 40))]:
        path.write_bytes(damaged)
        assert open_with().validation.sha256 == first.sha256
        assert path.read_bytes() == content


def test_too_little_of_it_is_an_error(open_with: Open) -> None:
    with pytest.raises(DataError, match=r"json .*jsonl has \d+ validation tokens, fewer than one sequence"):
        open_with(seq_len=10**5)


def test_the_share_of_held_out_documents_is_the_one_asked_for() -> None:
    documents = [text.encode() for text in some_documents(4000)]
    for share in (0.01, 0.5, 0.99):
        kept = sum(held_out(document, share) for document in documents)
        assert abs(kept - share * 4000) < 4 * math.sqrt(4000 * share * (1 - share))
        assert sum(document in TrainingSet(share) for document in documents) == 4000 - kept
    excluded = TrainingSet(0.0, frozenset({digest(documents[0])}))
    assert documents[0] not in excluded and documents[1] in excluded


def test_it_is_the_same_for_the_tokenizer_given_and_trained(open_with: Open, tokenizer: LoadedTokenizer) -> None:
    corpus = open_with()
    assert corpus.tokenizer.sha256 == corpus.config.tokenizer_sha256 == tokenizer.sha256
