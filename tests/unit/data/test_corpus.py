"""From files to batches: the same tokens straight and resumed, from text and from prepared tokens, in every format."""

import dataclasses
import gc
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from corpora import expected, prepared, small_config, some_files, starting
from streams import train, train_on
from text_files import KINDS, some_documents, write_files
from tokenizers import Tokenizer, models, pre_tokenizers

from mhc_train.data import Corpus, open_corpus, order_fingerprint, skipped_documents
from mhc_train.data.order import TOKEN
from mhc_train.data.token_cache import TokenCache
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

STEPS, BATCH = 70, 6
"""More than an epoch. Four lanes: a batch ends in the middle of a round."""


def reads_tokens(corpus: Corpus) -> bool:
    return all(isinstance(reader, TokenCache) for reader in corpus.plan.readers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # `datasets` leaves closing a CSV that was left to the collector
def test_every_format_gives_the_oracles_tokens_straight_resumed_and_prepared(
    kind: str, tmp_path: Path, tokenizer_file: str
) -> None:
    files = some_files(tmp_path / "text", kind)
    config = small_config(files, tokenizer_file, tmp_path / "cache")
    text = open_corpus(config)
    straight, state = train(starting(text, BATCH), STEPS)
    assert straight.tolist() == expected(text, [files], [1.0], STEPS * BATCH)
    assert all(lane["positions"][0][0] >= 1 for lane in state["lanes"].values()), "less than an epoch"
    ready = open_corpus(prepared(config))
    assert reads_tokens(ready) and not reads_tokens(text)
    assert ready.identity == text.identity and ready.validation.sha256 == text.validation.sha256
    for legs in ([(text, 23), (text, 47)], [(ready, 70)], [(ready, 7), (text, 31), (ready, 32)]):
        after, parts = None, []
        for corpus, steps in legs:
            part, after = train(starting(corpus, BATCH), steps, after)
            parts.append(part)
        assert torch.cat(parts).equal(straight) and after == state
        assert order_fingerprint(after) == order_fingerprint(state)
    gc.collect()


@pytest.mark.parametrize("rows_a_group", [1, 30, 1000])
def test_row_groups_do_not_change_the_order(rows_a_group: int, tmp_path: Path, tokenizer_file: str) -> None:
    found = []
    for rows in (7, rows_a_group):
        files = some_files(tmp_path / str(rows), "parquet", rows_a_group=rows)
        found.append(train(starting(open_corpus(small_config(files, tokenizer_file, tmp_path)), BATCH), STEPS)[0])
    assert found[0].equal(found[1])


@pytest.mark.parametrize("lanes", [1, 4, 12])
@pytest.mark.parametrize("block", [1, 5, 1000])
def test_lanes_and_blocks_of_any_size_give_the_oracles_tokens(
    lanes: int, block: int, tmp_path: Path, tokenizer_file: str
) -> None:
    files = some_files(tmp_path / "text", "jsonl")
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path, lanes=lanes, shuffle_block=block, seed=block))
    found, _ = train(starting(corpus, 5), 30)
    assert found.tolist() == expected(corpus, [files], [1.0], 150)


@pytest.mark.parametrize("legs", [[(9, 2), (11, 1), (8, 2)], [(9, 1), (19, 4)], [(7, 4), (7, 2), (7, 1), (7, 4)]])
def test_ranks_may_change_at_every_resume(legs: list, tmp_path: Path, tokenizer_file: str) -> None:
    files = some_files(tmp_path / "text", "parquet")
    start = starting(open_corpus(small_config(files, tokenizer_file, tmp_path, lanes=8)), 12)
    straight, state = train(start, 28)
    resumed, states = train_on(start, legs)
    assert resumed.equal(straight) and states[-1] == state


def test_whole_files_are_dealt_where_there_are_many(tmp_path: Path, tokenizer_file: str) -> None:
    files = write_files(tmp_path / "text", "jsonl", [some_documents(number % 4, seed=number) for number in range(20)])
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path, lanes=2))
    straight, state = train(starting(corpus, 3), 40)
    assert straight.tolist() == expected(corpus, [files], [1.0], 120)
    resumed, states = train_on(starting(corpus, 3), [(17, 1), (23, 1)])
    assert resumed.equal(straight) and states[-1] == state
    ready = open_corpus(prepared(corpus.config))
    assert train(starting(ready, 3), 40)[0].equal(straight)


def test_unreadable_documents_are_counted_alike_from_text_tokens_and_after_resumes(
    tmp_path: Path, tokenizer_file: str
) -> None:
    documents = some_documents(40)
    documents[3::8] = [f"unreadable {number}" for number in range(5)]
    files = write_files(tmp_path / "text", "jsonl", [documents, ["unreadable"], some_documents(9, seed=1)])
    config = small_config(files, tokenizer_file, tmp_path / "cache", on_error="skip")
    text = open_corpus(config)
    straight, state = train(starting(text, BATCH), STEPS)
    assert straight.tolist() == expected(text, [files], [1.0], STEPS * BATCH)
    epochs = [lane["positions"][0][0] for lane in state["lanes"].values()]
    assert 6 * min(epochs) <= skipped_documents(state) <= 6 * (max(epochs) + 1) and min(epochs) > 0
    for corpus in (text, open_corpus(prepared(config))):
        resumed, states = train_on(starting(corpus, BATCH), [(11, 2), (22, 1), (37, 1)])
        assert resumed.equal(straight) and states[-1] == state
        assert [skipped_documents(some) for some in states] == sorted(skipped_documents(some) for some in states)
    with pytest.raises(DataError, match=r"record \d+ from byte \d+ on: invalid JSON.*data.on_error=skip"):
        train(starting(open_corpus(dataclasses.replace(config, on_error="stop")), BATCH), STEPS)


def test_a_document_longer_than_many_batches_is_resumed_in_its_middle(tmp_path: Path, tokenizer_file: str) -> None:
    long = " ".join(some_documents(100))
    files = write_files(tmp_path / "text", "txt", [[*some_documents(20), long, "short"]])
    start = starting(open_corpus(small_config(files, tokenizer_file, tmp_path, lanes=1)), 2)
    straight, state = train(start, 300)
    resumed, states = train_on(start, [(10, 1)] * 30)
    assert resumed.equal(straight) and states[-1] == state
    inside = [state["lanes"]["0"]["positions"][0][TOKEN] for state in states]
    assert max(inside) > 10 * 2 * 8 * 10


def test_workers_left_open_are_none(tmp_path: Path, tokenizer_file: str) -> None:
    files = some_files(tmp_path / "text", "jsonl")
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path, workers=None))
    assert next(corpus.batches(4)).dtype == torch.int64


def test_another_tokenizer_than_recorded_is_refused(tmp_path: Path, tokenizer_file: str) -> None:
    config = small_config(some_files(tmp_path / "text", "jsonl"), tokenizer_file, tmp_path, tokenizer_sha256="0" * 64)
    with pytest.raises(DataError, match="would not mean the same"):
        open_corpus(config)


def test_a_tokenizer_is_trained_on_training_documents_alone_and_kept(tmp_path: Path) -> None:
    files = some_files(tmp_path / "text", "jsonl")
    config = small_config(files, None, tmp_path / "cache", vocab_size=300)  # type: ignore[arg-type]
    first = open_corpus(config)
    assert first.config.vocab_size == first.tokenizer.vocab_size == 300
    assert open_corpus(first.config).tokenizer.sha256 == first.config.tokenizer_sha256
    assert len(list((tmp_path / "cache" / "tokenizers").glob("[!.]*"))) == 1
    assert open_corpus(dataclasses.replace(config, vocab_size=290)).tokenizer.sha256 != first.tokenizer.sha256
    open_corpus(dataclasses.replace(config, holdout=0.5))  # other training documents
    assert len(list((tmp_path / "cache" / "tokenizers").glob("[!.]*"))) == 3


def test_files_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "directory.jsonl").mkdir()
    for path in ("absent.jsonl", "*.jsonl"):
        with pytest.raises(DataError, match="no such file. Quote a glob"):
            open_corpus(DataConfig(source="json", path=str(tmp_path / path), cache_dir=str(tmp_path)))


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', '{"text": null}\n\n'])
def test_text_without_documents_is_an_error(content: str, tmp_path: Path, tokenizer_file: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    config = DataConfig(source="json", path=f"{tmp_path}/*.jsonl", cache_dir=str(tmp_path), tokenizer=tokenizer_file)
    with pytest.raises(DataError, match="fewer than one sequence"):
        open_corpus(config)


def test_text_that_is_all_held_out_is_an_error_not_an_endless_loop(tmp_path: Path, tokenizer_file: str) -> None:
    files = write_files(tmp_path / "text", "jsonl", [some_documents(9)])
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path, holdout=1 - 1e-12))
    with pytest.raises(DataError, match="no documents to train on"):
        next(corpus.batches(4))


def test_a_state_of_other_text_or_another_tokenizer_or_lanes_is_refused(tmp_path: Path, tokenizer_file: str) -> None:
    config = small_config(some_files(tmp_path / "text", "jsonl"), tokenizer_file, tmp_path / "cache")
    corpus = open_corpus(config)
    _, state = train(starting(corpus, 4), 2)
    other_text = small_config(some_files(tmp_path / "other", "jsonl", seed=1), tokenizer_file, tmp_path / "cache")
    other_tokenizer = dataclasses.replace(config, tokenizer=None, vocab_size=280)
    for other in (other_text, other_tokenizer):
        with pytest.raises(DataError, match="the text or its tokenizer is not what the run was reading"):
            open_corpus(other).batches(4, state)
        with pytest.raises(DataError, match="not what the run was reading"):
            open_corpus(other).check(state, 4)
    open_corpus(dataclasses.replace(config, prepared="never")).check(state, 4)
    corpus.check(None, 4)
    with pytest.raises(DataError, match="holds 4 lanes of 8"):
        open_corpus(dataclasses.replace(config, lanes=8)).batches(4, state)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, tokenizer_file: str) -> None:
    files = some_files(tmp_path / "text", "jsonl")
    corpus = open_corpus(small_config(files, tokenizer_file, tmp_path))
    path = tmp_path / "text" / "00.jsonl"
    path.write_bytes(path.read_bytes().replace(b"row", b"rov"))
    with pytest.raises(DataError, match=r"00\.jsonl has changed since the run began"):
        train(starting(corpus, 4), 20)


def test_text_that_only_datasets_reads_is_known_by_its_content(tmp_path: Path, tokenizer_file: str) -> None:
    corpora = []
    for seed in range(2):
        files = some_files(tmp_path / str(seed) / "mine", "hub of csv", seed=seed)
        corpora.append(open_corpus(small_config(files, tokenizer_file, tmp_path / "cache")))
    assert corpora[0].identity != corpora[1].identity
    assert corpora[0].validation.sha256 != corpora[1].validation.sha256


def test_files_moved_elsewhere_are_the_same_text(tmp_path: Path, tokenizer_file: str) -> None:
    corpora = []
    for place in ("here", "there"):
        files = some_files(tmp_path / place, "jsonl")
        corpora.append(open_corpus(small_config(files, tokenizer_file, tmp_path / f"cache of {place}")))
    _, state = train(starting(corpora[0], 4), 3)
    assert corpora[0].identity == corpora[1].identity
    assert train(starting(corpora[1], 4), 3, state)[1]["following"] == 24


def test_the_order_of_a_published_text_stays_what_it_was(tmp_path: Path) -> None:
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *"abcdefghijĠ"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    documents = [" ".join("abcdefghij"[int(digit)] for digit in str(7**number)) for number in range(120)]
    files = write_files(tmp_path / "text", "jsonl", [documents[:70], documents[70:]])
    config = small_config(files, str(tmp_path / "tokenizer.json"), tmp_path / "cache", seed=0)
    _, state = train(starting(open_corpus(config), 8), 100)
    assert order_fingerprint(state) == "b8e5c127613949d288a5c8e2e6806d2d7032089acf3955f388579ab63108ef75"
    assert open_corpus(config).validation.sha256 == "a7ce70d663753a9acc919020d7bc74a72c53a63155330d147aa46002b2f5f16c"


@pytest.mark.parametrize("name", ["wiki", "python_docs"])
def test_embedded_corpora_stream_from_parquet(
    name: str, tmp_path: Path, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("os.py", "a/module.py", "a/test/module.py", "broken.py"):
        (tmp_path / "library" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "library" / path).write_text(f'def f():\n    """What {path} says, in more than 40 characters."""\n')
    (tmp_path / "library" / "broken.py").write_text("def f(:")
    monkeypatch.setattr("os.__file__", str(tmp_path / "library" / "os.py"))
    config = DataConfig(
        path=name, cache_dir=str(tmp_path), seq_len=64, validation_tokens=1024, tokenizer=tokenizer_file
    )
    corpus = open_corpus(config)
    paths = sorted((tmp_path / "corpora" / name).glob("*.parquet"))
    assert len(paths) == 4 and len(corpus.texts[0].reader.source.shards) == 4
    batch = next(corpus.batches(4))
    assert batch.shape == (4, 65) and batch.dtype == torch.int64 and batch.max() < corpus.tokenizer.vocab_size
    texts = [text for path in paths for text in pq.read_table(path)["text"].to_pylist()]
    said = sorted(text for text in texts if "in more than 40 characters" in text)
    assert said == [f"What {path} says, in more than 40 characters.\n" for path in ("a/module.py", "os.py")] * (
        name == "python_docs"
    )


def test_without_its_package_the_wiki_falls_back_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mhc_train.data import sources

    monkeypatch.setattr(sources, "available", lambda name: False)
    assert sources.resolve_source(DataConfig()).path == "python_docs"
    assert "mhc-train[corpus]" in capsys.readouterr().err
