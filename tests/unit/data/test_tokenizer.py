"""The tokenizer: any text round-trips, long documents are cut without a trace, and a copy behaves as the first."""

import pickle
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors

from mhc_train.data import tokenizer as module
from mhc_train.data.tokenizer import END_OF_TEXT, LoadedTokenizer, cut, first_bytes, load_tokenizer, trained_tokenizer
from mhc_train.errors import DataError

HOSTILE = f"a{END_OF_TEXT}b \x00 ünï 漢字 🙂\r\n\t"
UNITS = (
    "stream", "'s", " don't", "12", "é", "漢字", "🙂", "...", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x1c", "\x0b",
    "\x85", "\xa0", "\u2003", "\u200b", "\u2028", "\u180e", "\ufeff", "\u3000", "e\u0301", "²", ",", "_", "-", '"',
)  # fmt: skip
odd_text = st.lists(
    st.one_of(st.sampled_from(UNITS), st.characters(exclude_categories=["Cs"])), max_size=6
).map("".join)  # fmt: skip
with_tokenizer = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)


@pytest.fixture(scope="module")
def joining(tmp_path_factory: pytest.TempPathFactory) -> LoadedTokenizer:
    """A tokenizer that joins whatever it may: runs of white space, signs and characters of all kinds."""
    draw = random.Random(0)
    documents = ["".join(draw.choices(UNITS, k=9)) + 3 * draw.choice(UNITS) for _ in range(3000)]
    return trained_tokenizer(documents, 3000, "joining", tmp_path_factory.mktemp("joining"))


@with_tokenizer
@given(st.lists(odd_text, max_size=9).map(" end".join), st.integers(1, 12))
def test_parts_of_a_document_make_the_tokens_of_the_whole(joining: LoadedTokenizer, text: str, longest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_PART", longest)
        patch.setattr(module, "NEAR", 60)  # there is a word in so many
        tokens, lengths = joining.encode([text, text])
    plain = [*joining.tokenizer.encode(text, add_special_tokens=False).ids, joining.end_of_text]
    assert tokens.tolist() == plain * 2 and lengths.tolist() == [len(plain)] * 2
    assert joining.decode(plain) == text


@pytest.mark.parametrize("pattern", module.ENDS_OF_WORDS)
def test_wherever_a_word_is_said_to_end_no_token_goes_on(pattern: re.Pattern, joining: LoadedTokenizer) -> None:
    draw = random.Random(1)
    for text in ("".join(draw.choices(UNITS, k=40)) for _ in range(150)):
        whole = joining.tokenizer.encode(text, add_special_tokens=False).ids
        for match in pattern.finditer(text):
            parts = (text[: match.start()], text[match.start() :])
            ids = [joining.tokenizer.encode(part, add_special_tokens=False).ids for part in parts]
            assert ids[0] + ids[1] == whole, parts


@given(odd_text, st.integers(1, 30), st.integers(1, 9))
def test_parts_are_the_document_and_none_is_much_longer_than_it_may_be(unit: str, longest: int, near: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_PART", longest)
        patch.setattr(module, "NEAR", near)
        parts = cut(unit * 7)
    assert "".join(parts) == unit * 7 and all(0 < len(part) <= longest + near for part in parts[1:])
    assert all(len(part) >= longest for part in parts[:-1])


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ("one two three four five", ["one two three", " four five"]),
        ("aaaaaaaaaa  bbbbbbbbbbb", ["aaaaaaaaaa", "  bbbbbbbbbbb"]),
        ("aaaaaaaaaaa\nbbbbbbbbbb c", ["aaaaaaaaaaa", "\nbbbbbbbbbb c"]),
        ("aaaaaaaaaaa, aaaaaaaa", ["aaaaaaaaaaa,", " aaaaaaaa"]),
        ("aaaaaaaaaaa,aaaaaaaaa", ["aaaaaaaaaaa", ",aaaaaaaaa"]),
        ("x" * 35, ["x" * 10, "x" * 10, "x" * 15]),
        ("x" * 15, ["x" * 15]),
        ("", [""]),
    ],
)
def test_a_long_document_is_cut_at_the_end_of_a_word_if_one_is_near(
    document: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_PART", 10)
    monkeypatch.setattr(module, "NEAR", 5)
    assert cut(document) == parts


def test_a_document_cannot_end_itself_and_any_text_round_trips(tokenizer: LoadedTokenizer) -> None:
    ids, lengths = tokenizer.encode([HOSTILE, "", "b"])
    assert (ids == tokenizer.end_of_text).sum() == 3 and lengths[1] == 1
    assert ids[lengths.cumsum() - 1].tolist() == [tokenizer.end_of_text] * 3
    assert tokenizer.decode(ids[: lengths[0]].tolist()) == HOSTILE


def test_a_pickled_tokenizer_is_the_same_and_cuts_pads_and_ends_nothing(tokenizer: LoadedTokenizer) -> None:
    given = Tokenizer.from_str(tokenizer.json)
    given.enable_truncation(3)
    given.enable_padding(length=50)
    given.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", None, [(END_OF_TEXT, tokenizer.end_of_text)]
    )
    loaded = load_tokenizer(given.to_str(), "given")
    for copy in (loaded, pickle.loads(pickle.dumps(loaded)), pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(
            copy.encode([HOSTILE, "word " * 20])[0], tokenizer.encode([HOSTILE, "word " * 20])[0]
        )
    assert pickle.loads(pickle.dumps(loaded)).sha256 == loaded.sha256 != tokenizer.sha256


def test_no_documents_make_no_tokens(tokenizer: LoadedTokenizer) -> None:
    tokens, lengths = tokenizer.encode([])
    assert len(tokens) == len(lengths) == 0 and tokens.dtype == tokenizer.token_type


def of_size(size: int) -> LoadedTokenizer:
    words = {f"w{number}": number for number in range(size - 1)} | {END_OF_TEXT: size - 1}
    return load_tokenizer(Tokenizer(models.WordLevel(words, unk_token="w0")).to_str(), "given")


@pytest.mark.parametrize(("size", "kind"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_take_two_bytes_while_they_fit(size: int, kind: str) -> None:
    tokenizer = of_size(size)
    tokens, _ = tokenizer.encode(["w7"])
    assert tokens.dtype == tokenizer.token_type == kind and tokens.tolist() == [7, size - 1]


def test_training_is_kept_by_what_it_was_trained_on(tmp_path: Path) -> None:
    first = trained_tokenizer(["some text to learn from"] * 9, 300, "a", tmp_path)
    assert trained_tokenizer(iter(()), 300, "a", tmp_path).sha256 == first.sha256  # from the cache
    assert trained_tokenizer(["quite another text"] * 9, 300, "b", tmp_path).sha256 != first.sha256
    assert trained_tokenizer(["some text to learn from"] * 9, 270, "a", tmp_path).vocab_size == 270


def test_no_more_is_read_than_is_trained_on() -> None:
    documents = iter(["12345", "é", "more", "never"])
    assert list(first_bytes(documents, 8)) == ["12345", "é", "more"] and next(documents) == "never"
    assert list(first_bytes(iter(["12345", "é", "more"]), 7)) == ["12345", "é"]


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="given is not a tokenizer.json"):
        load_tokenizer("{}", "given")
    with pytest.raises(DataError, match="given has no <|endoftext|> token"):
        load_tokenizer(Tokenizer(models.BPE()).to_str(), "given")
    with pytest.raises(DataError, match="cannot be read"):
        module.read_tokenizer(tmp_path / "absent.json")
