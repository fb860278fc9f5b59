"""Text that nobody would write: read for what it is, refused with one clear message, or passed over and counted."""

import dataclasses
import gzip
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_files import COMPRESS, some_documents
from tiny import TINY, run_command

from mhc_train.data import State, loader, open_corpus, skipped_documents
from mhc_train.data.holdout import held_out
from mhc_train.data.prepare import prepare
from mhc_train.data.readers import Part
from mhc_train.data.tokenizer import LONGEST_PART, cut, trained_tokenizer
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

HOLDOUT = 0.2
Write = Callable[..., DataConfig]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    trained_tokenizer(some_documents(50), 300, "tests", directory)
    return str(next(directory.glob("tokenizers/*.json")))


@pytest.fixture
def write(tmp_path: Path, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write files into a directory of their own; returns how they are read, little at a time."""
    monkeypatch.setattr(loader, "LEAST_TOKENS", 64)

    def written(files: Files, **changes: Any) -> DataConfig:
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        source = {"parquet": "parquet", "txt": "text"}.get(next(iter(files)).split(".")[1], "json")
        base = DataConfig(
            source=source, path=str(directory / "*"), tokenizer=tokenizer_file, cache_dir=str(tmp_path / "cache"),
            seq_len=16, lanes=4, shuffle_block=8, holdout=HOLDOUT, validation_tokens=64, workers=0,
        )  # fmt: skip
        return dataclasses.replace(base, **changes)

    return written


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def parquet(values: list[Any] | pa.Array, rows_a_group: int = 10, column: str = "text", **options: Any) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"other": range(len(values)), column: values}), stream, rows_a_group, **options)
    return stream.getvalue().to_pybytes()


def as_text(values: list[bytes | None]) -> pa.Array:
    """A column that says it is text, whatever the bytes are."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def read(config: DataConfig, batches: int = 200, state: State | None = None) -> tuple[list[Any], list[State]]:
    """Batches, and the state after each."""
    stream = open_corpus(config).batches(2, state)
    found = [(next(stream).tolist(), json.loads(json.dumps(stream.state()))) for _ in range(batches)]
    stream.close()
    tokens, states = zip(*found, strict=True)
    return list(tokens), list(states)


def skipping(config: DataConfig) -> DataConfig:
    return dataclasses.replace(config, on_error="skip")


def documents(config: DataConfig) -> list[str]:
    """The training documents of one source in stored order, decoded from their tokens."""
    corpus = open_corpus(config)
    source, found = corpus.plan.readers[0], []
    for shard in range(source.shards):
        for block in source.blocks(Part(shard), 7, None):
            for piece in block.documents(np.arange(len(block))):
                spans = np.split(piece.tokens, piece.lengths.cumsum()[:-1]) if len(piece.lengths) else []
                found += [corpus.tokenizer.decode(tokens.tolist()) for tokens in spans]
    return found


def training(texts: list[str]) -> list[str]:
    """Those that are trained on."""
    return [text for text in texts if text and not held_out(text.encode(), HOLDOUT)]


def refusal(config: DataConfig, batches: int = 200) -> str:
    """What reading ends with: one line, the same whether or not a worker would have to pass it on."""
    with pytest.raises(DataError) as raised:
        for _ in islice(open_corpus(config).batches(2), batches):
            pass
    message = str(raised.value)
    assert "\n" not in message
    return message


def resumes_and_prepares_the_same(config: DataConfig, batches: int = 200, prepares: bool = True) -> list[State]:
    """Text, text gone on with after a stop, and prepared tokens give the same tokens and count the same."""
    tokens, states = read(config, batches)
    for stop in range(5, batches, batches // 5):
        rest, after = read(config, batches - stop, states[stop - 1])
        assert rest == tokens[stop:] and after == states[stop:]
    if prepares:
        prepare(config, tokens=True)
        assert read(dataclasses.replace(config, prepared="always"), batches) == (tokens, states)
    return states


def epochs(state: State) -> list[int]:
    return [row[0] for lane in state["lanes"].values() for row in lane["positions"]]


def counts_each_once_an_epoch(states: list[State], bad: int) -> None:
    assert min(epochs(states[-1])) >= 1  # or nothing is shown
    for state in states:
        assert bad * min(epochs(state)) <= skipped_documents(state) <= bad * (max(epochs(state)) + 1)


BAD_LINES = {
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
    "half a character": b'{"text": "\xe6\xbc"}',
    "a surrogate": b'{"text": "\xed\xa0\x80"}',
    "an escaped surrogate": rb'{"text": "\ud800 alone"}',
    "a NUL": b'{"text": "\x00"}',
    "cut short": b'{"text": "cut sho',
    "two objects": b'{"text": "one"} {"text": "two"}',
    "nonsense": b"what is this?",
    "an array": b'["text"]',
    "a string": b'"text"',
    "a number": b"12",
    "null": b"null",
    "a number as text": b'{"text": 12}',
    "an array as text": b'{"text": ["a", "b"]}',
    "an object as text": b'{"text": {"a": "b"}}',
    "no such column": b'{"body": "something"}',
    "no column": b"{}",
    "a column of two lines": rb'{"a\nb": "something"}',
    "a column of no character": rb'{"\ud800": "something"}',
    "a number too long": b'{"text": "a", "number": ' + b"9" * 5000 + b"}",
    "too deep": b'{"text": ' + b"[" * 9000 + b"]" * 9000 + b"}",
}


def with_lines(texts: list[str], bad: list[bytes]) -> bytes:
    """Lines with a bad one after every second."""
    good = lines(texts).splitlines(keepends=True)
    following = iter(bad)
    return b"".join(
        line + (b"".join(other + b"\n" for other in islice(following, 1)) if number % 2 else b"")
        for number, line in enumerate(good)
    )


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_one_clear_error(name: str, write: Write) -> None:
    good = some_documents(60)
    config = write({"a.jsonl": lines(good), "b.jsonl": with_lines(good, [b"", b"", BAD_LINES[name]])})
    message = refusal(config)
    assert message.startswith("b.jsonl, record ") and "data.on_error=skip" in message and len(message) < 500


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_bad_lines_are_passed_over_as_if_they_were_empty_ones_of_the_same_length(suffix: str, write: Write) -> None:
    good = [some_documents(42, seed) for seed in range(2)]
    longest = max(map(len, BAD_LINES.values()))
    bad = [line.ljust(longest) for line in BAD_LINES.values()]
    names = [f"{name}.jsonl{suffix}" for name in "ab"]
    compress = COMPRESS.get(suffix, bytes)

    def files(replaced: list[bytes]) -> Files:
        contents = (with_lines(texts, replaced) for texts in good)
        return dict(zip(names, map(compress, contents), strict=True))

    config = skipping(write(files(bad)))
    states = resumes_and_prepares_the_same(config)
    assert read(config)[0] == read(write(files([b'{"text": ""}'.ljust(longest)] * len(bad))))[0]
    counts_each_once_an_epoch(states, 2 * len(bad))
    assert sorted(documents(config)) == sorted(training(good[0] + good[1]))


def test_bad_rows_are_passed_over_as_if_they_were_empty(write: Write) -> None:
    good = [text.encode() for text in some_documents(80)]
    bad = [b"\xff\xfe", b"\xed\xa0\x80", b"cut \xe6\xbc"]
    empty: list[bytes | None] = [b"", None, b""]

    def rows(others: list[Any]) -> pa.Array:
        return as_text([row for number, text in enumerate(good) for row in (text, others[number % 3])])

    config = write({"a.parquet": parquet(rows(bad)), "b.parquet": parquet(rows(empty))})
    message = refusal(config)
    assert message.startswith("a.parquet, record 2 from record 1 on: invalid UTF-8 (") and "on_error=skip" in message
    states = resumes_and_prepares_the_same(skipping(config))
    empties = write({"a.parquet": parquet(rows(empty)), "b.parquet": parquet(rows(empty))})
    assert read(skipping(config))[0] == read(empties)[0]
    counts_each_once_an_epoch(states, 80)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_paragraphs_are_passed_over_as_if_they_were_held_out(suffix: str, write: Write) -> None:
    good = some_documents(80)
    compress = COMPRESS.get(suffix, bytes)
    numbers = (number for number in range(10**6) if held_out(f"{number:06d}\n".encode(), HOLDOUT))
    held = [f"{number:06d}".encode() for number in islice(numbers, 80)]

    def files(others: list[bytes]) -> Files:
        paragraphs = [part for text, other in zip(good, others, strict=True) for part in (text.encode(), other)]
        return {f"a.txt{suffix}": compress(b"\n\n".join(paragraphs) + b"\n")}

    config = write(files([b"bad \xff\xff"[:6]] * 80))
    message = refusal(config)
    assert message.startswith(f"a.txt{suffix}, record 2 from ") and "on_error=skip" in message
    states = resumes_and_prepares_the_same(skipping(config))
    assert read(skipping(config))[0] == read(write(files(held)))[0]
    counts_each_once_an_epoch(states, 80)


def test_what_is_passed_over_is_said_once_a_file(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{name}.jsonl": with_lines(some_documents(60), [b"what?"] * 5) for name in "ab"}
    config = write(files)
    read(skipping(config))
    said = [line for line in capsys.readouterr().err.splitlines() if "Passed over" in line]
    assert sorted(line[:20] for line in said) == ["a.jsonl, record 3 fr", "b.jsonl, record 3 fr"]


def test_documents_of_nothing_but_white_space_and_controls_are_text(write: Write) -> None:
    strange = [
        " ",
        "\n",
        "\t\r\n ",
        "\u3000",
        "\u2028",
        "\x00",
        "\x00\x01\x7f",
        "\ufeff",
        "\uffff",
        "\U0010ffff",
        " a ",
        "\r",
    ]
    texts = [*strange, *some_documents(60), "", *strange]
    expected = training(texts)
    for files in (
        {"a.jsonl": lines(texts)},
        {"a.jsonl.gz": gzip.compress(lines(texts))},
        {"a.parquet": parquet(texts)},
    ):
        config = write(files)
        assert documents(config) == expected
        resumes_and_prepares_the_same(config, 40)


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(write: Write) -> None:
    good = some_documents(60)
    plain = documents(write({"a.jsonl": lines(good)}))
    windows = b"\xef\xbb\xbf" + lines(good).replace(b"\n", b"\r\n")
    for files in ({"a.jsonl": windows}, {"a.jsonl.gz": gzip.compress(windows)}):
        assert documents(write(files)) == plain == training(good)


def test_windows_line_ends_part_paragraphs_too(write: Write) -> None:
    good = [text.replace(" ", "\r\n", 1) + "\r\n" for text in some_documents(60)]
    assert documents(write({"a.txt": "\r\n".join(good).encode()})) == training(good)


@pytest.mark.parametrize("lead", [b"\n", b"\r\n", b"\n\r\n", b"\r\n\n", b"\n\n\n\n"])
def test_blank_lines_before_the_first_paragraph_lose_nothing(lead: bytes, write: Write) -> None:
    config = write({"a.txt": lead + b"ab\n\ncd\n", "b.txt": "\n\n".join(some_documents(60)).encode()})
    source = open_corpus(config).texts[0]
    for parts in range(1, 17):
        chunks = (chunk for number in range(parts) for chunk in source.reader.chunks(Part(0, number, parts)))
        assert [record for chunk in chunks for record in chunk.records] == [b"ab\n", b"cd\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_one_long_document_is_read_like_others(name: str, write: Write) -> None:
    long = "once upon a time, " * 60_000
    texts = [*some_documents(40), long, *some_documents(40, 1)]
    plain = "\n\n".join(texts).encode() if name == "a.txt" else lines(texts)
    content = parquet(texts) if name == "a.parquet" else COMPRESS.get(Path(name).suffix, bytes)(plain)
    end = "\n" if name == "a.txt" else ""
    expected = [text + end for text in texts[:-1]] + texts[-1:]
    assert documents(write({name: content}, holdout=0.1)) == [
        text for text in expected if not held_out(text.encode(), 0.1)
    ]


@pytest.mark.parametrize("text", ["once upon a time ", "first\nsecond\n", "two  spaces  ", "漢字かな、"])
def test_a_document_of_50_mb_is_tokenised_in_small_parts(text: str) -> None:
    document = text * (50_000_000 // len(text.encode()))
    parts = cut(document)
    whole, longest = "".join(parts) == document, max(map(len, parts))
    assert whole and longest < LONGEST_PART + 100


def corrupted(content: bytes, place: float = 0.5) -> bytes:
    start = int(len(content) * place)
    return content[:start] + bytes(255 - byte for byte in content[start : start + 40]) + content[start + 40 :]


def corrupted_page(content: bytes, group: int) -> bytes:
    """A parquet file with nonsense in a data page of one row group's last column."""
    column = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(group).column(1)
    return corrupted(content, (column.data_page_offset + column.total_compressed_size / 2) / len(content))


GOOD, BROKEN, AFTER = some_documents(40), some_documents(2000, 1), some_documents(40, 2)
WHOLE = {".parquet": parquet(BROKEN)} | {f".jsonl{suffix}": COMPRESS[suffix](lines(BROKEN)) for suffix in COMPRESS}
BREAKS = {
    "an empty parquet": (".parquet", b""),
    "text in a parquet": (".parquet", lines(GOOD)),
    "half a parquet": (".parquet", WHOLE[".parquet"][:20_000]),
    "a parquet with a bad end": (".parquet", corrupted(WHOLE[".parquet"], 0.999)),
    "a parquet with a bad page": (".parquet", corrupted_page(parquet(BROKEN, 300, compression="zstd"), 5)),
    "a parquet whose check sums fail": (
        ".parquet",
        parquet(BROKEN, compression="none", use_dictionary=False, write_page_checksum=True).replace(
            b"1-939 ", b"1-393 "
        ),
    ),
    "a parquet without the column": (".parquet", parquet(BROKEN, column="body")),
    "a parquet of numbers": (".parquet", parquet(list(range(99)))),
    "a parquet of bytes": (".parquet", parquet([text.encode() for text in GOOD])),
    "a parquet of nothing": (".parquet", parquet([None] * 9)),
    "a parquet of lists": (".parquet", parquet([[text] for text in GOOD])),
    "a parquet with the column twice": (".parquet", b"twice"),
}
for suffix in COMPRESS:
    BREAKS[f"plain text in {suffix}"] = (f".jsonl{suffix}", lines(GOOD))
    BREAKS[f"half a {suffix}"] = (f".jsonl{suffix}", WHOLE[f".jsonl{suffix}"][: len(WHOLE[f".jsonl{suffix}"]) // 2])
    BREAKS[f"all but the end of a {suffix}"] = (f".jsonl{suffix}", WHOLE[f".jsonl{suffix}"][:-3])
    BREAKS[f"a bad {suffix}"] = (f".jsonl{suffix}", corrupted(WHOLE[f".jsonl{suffix}"]))
    BREAKS[f"a bad second stream in {suffix}"] = (
        f".jsonl{suffix}",
        WHOLE[f".jsonl{suffix}"] + corrupted(WHOLE[f".jsonl{suffix}"], 0),
    )


CUT_IN_THE_MIDDLE = [
    *["a parquet with a bad page", "a parquet whose check sums fail"],
    *[f"{what} {suffix}" for what in ("half a", "a bad second stream in") for suffix in (".gz", ".zst")],
]
"""Text before the break is lost where it is decompressed together with it: up to a block of the format's."""


def two_columns_of_a_name() -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.array(GOOD), pa.array(GOOD)], names=["text", "text"]), stream)
    return stream.getvalue().to_pybytes()


def broken_files(name: str) -> Files:
    """A sound file, a broken one, and another sound one."""
    suffix, content = BREAKS[name]
    content = two_columns_of_a_name() if content == b"twice" else content
    sound = [
        parquet(texts) if suffix == ".parquet" else COMPRESS[Path(suffix).suffix](lines(texts))
        for texts in (GOOD, AFTER)
    ]
    return {f"a{suffix}": sound[0], f"b{suffix}": content, f"c{suffix}": sound[1]}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_one_clear_error(name: str, write: Write) -> None:
    config = write(broken_files(name))
    with pytest.raises(DataError) as raised:
        documents(config)
    message, file = str(raised.value), Path(config.path).with_name(f"b{BREAKS[name][0]}")
    assert "\n" not in message and len(message) < 500
    assert message.endswith("or type data.on_error=skip to pass over what cannot be read and count it.")
    # Of nonsense inside of a stream, lines come first; only at its end is its check sum.
    nonsense = name.startswith("a bad .") and message.startswith(f"{file.name}, record ")
    assert nonsense or message.startswith(f"{file} cannot be read: ")


@pytest.mark.parametrize("name", ["a.jsonl.xz", "a.txt.lz4", "a.jsonl.zip", "a.tar"])
def test_other_compression_is_refused_by_name(name: str, write: Write) -> None:
    with pytest.raises(DataError, match=rf"{name} cannot be read: of compressed files, \.gz, \.zst and \.bz2 can"):
        open_corpus(write({name: b"anything"}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a parquet without the column", "there is no column text; there is other, body"),
        ("a parquet of numbers", "the column text holds int64, not text"),
        ("a parquet of bytes", "the column text holds binary, not text"),
        ("a parquet of nothing", "the column text holds null, not text"),
        ("a parquet of lists", "the column text holds list"),
    ],
)
def test_the_column_that_is_there_is_named(name: str, said: str, write: Write) -> None:
    with pytest.raises(DataError, match=said):
        documents(write(broken_files(name)))


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_file_is_read_up_to_its_break(name: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = skipping(write(broken_files(name), lanes=2, shuffle_block=50))
    found, before, after = documents(config), training(GOOD), training(AFTER)
    assert f"/b{BREAKS[name][0]} cannot be read on: " in capsys.readouterr().err
    between = found[len(before) : len(found) - len(after)]
    assert found == [*before, *between, *after]
    if not name.startswith("a bad ."):
        assert between == training(BROKEN)[: len(between)]
    assert len(between) > 100 or name not in CUT_IN_THE_MIDDLE
    resumes_and_prepares_the_same(config, 60, prepares=False)
    with pytest.raises(DataError, match=f"b{BREAKS[name][0]} breaks off: tokens can be kept of whole files only"):
        prepare(config, tokens=True)


@pytest.mark.parametrize("name", ["a parquet with a bad page", "half a .gz"])
def test_what_is_read_of_a_broken_file_does_not_depend_on_where_reading_begins(name: str, write: Write) -> None:
    config = skipping(write(broken_files(name), lanes=1, shuffle_block=64))
    reader = open_corpus(config).texts[0].reader
    chunks = [chunk for chunk in reader.chunks(Part(1), 64) if chunk.keys]
    assert chunks
    for number in range(0, len(chunks), 3):
        again = [chunk for chunk in reader.chunks(Part(1), 64, chunks[number].cursor) if chunk.keys]
        assert again == chunks[number:]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("e.jsonl", b""), ("e.txt", b""), ("e.parquet", None)],
        *[(f"e.jsonl{suffix}", compress(b"")) for suffix, compress in COMPRESS.items()],
        *[(f"e.jsonl{suffix}", b"") for suffix in COMPRESS],
    ],
)
def test_a_file_without_records_changes_nothing_but_the_order_of_files(
    name: str, content: bytes | None, write: Write
) -> None:
    kind = name.split(".", 1)[1]
    plain = lines(GOOD) if kind != "txt" else "\n\n".join(GOOD).encode()
    sound = parquet(GOOD) if kind == "parquet" else COMPRESS.get(Path(name).suffix, bytes)(plain)
    empty = parquet(pa.array([], pa.string())) if content is None else content
    config = write({name: empty, f"a.{kind}": sound, f"z.{kind}": empty})
    assert sorted(documents(config)) == sorted(documents(write({f"a.{kind}": sound})))
    assert skipped_documents(resumes_and_prepares_the_same(config, 100)[-1]) == 0


@pytest.mark.parametrize("name", ["e.jsonl", "e.txt", "e.jsonl.gz", "e.parquet"])
def test_nothing_but_empty_documents_is_an_error_and_no_endless_loop(name: str, write: Write) -> None:
    content = parquet(["", None] * 9) if name == "e.parquet" else b"\n" * 99
    empty = write({name: COMPRESS.get(Path(name).suffix, bytes)(content)})
    with pytest.raises(DataError, match="0 validation tokens"):
        open_corpus(empty)
    end = "\n" if name == "e.txt" else ""
    held = next(text for text in some_documents(99) if held_out(f"{text}{end}".encode(), HOLDOUT))
    text_held_out = parquet([held] * 99) if name == "e.parquet" else b""
    plain = (f"{held}\n\n" * 99).encode() if name == "e.txt" else lines([held] * 99)
    only = write({name: text_held_out or COMPRESS.get(Path(name).suffix, bytes)(plain)})
    with pytest.raises(DataError, match="no documents to train on"):
        next(open_corpus(only).batches(2))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz"])
@pytest.mark.parametrize("change", ["same size", "other size", "gone"])
def test_a_file_that_changes_under_a_reader_is_noticed(change: str, kind: str, write: Write) -> None:
    content = parquet(GOOD) if kind == "parquet" else COMPRESS.get(f".{kind.split('.')[-1]}", bytes)(lines(GOOD))
    config = write({f"a.{kind}": content})
    stream = open_corpus(config).batches(2)
    next(stream)
    file = Path(config.path).with_name(f"a.{kind}")
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(corrupted(content) if change == "same size" else content + content)
    with pytest.raises(DataError, match=f"a.{kind} has changed since" if change != "gone" else f"a.{kind} cannot be"):
        for _ in range(200):
            next(stream)


def swap(directory: Path) -> None:
    (directory / "a.jsonl").rename(directory / "c.jsonl")
    (directory / "b.jsonl").rename(directory / "a.jsonl")
    (directory / "c.jsonl").rename(directory / "b.jsonl")


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda directory: (directory / "b.jsonl").write_bytes(lines(AFTER[::-1])),
    "added": lambda directory: (directory / "c.jsonl").write_bytes(lines(BROKEN[:9])),
    "removed": lambda directory: (directory / "b.jsonl").unlink(),
    "renamed": lambda directory: (directory / "b.jsonl").rename(directory / "c.jsonl"),
    "swapped": swap,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_happened_to_files_between_a_run_and_its_continuation_is_noticed(change: str, write: Write) -> None:
    config = write({"a.jsonl": lines(GOOD), "b.jsonl": lines(AFTER)})
    _, states = read(config, 9)
    CHANGES[change](Path(config.path).parent)
    with pytest.raises(DataError, match=r"changed, added, removed or renamed\. Put them back"):
        read(config, 9, states[-1])


def test_files_may_be_moved_and_copied(write: Write, tmp_path: Path) -> None:
    config = write({"a.jsonl": lines(GOOD), "b.jsonl": lines(AFTER)})
    tokens, states = read(config, 60)
    shutil.copytree(Path(config.path).parent, tmp_path / "copied")
    shutil.rmtree(Path(config.path).parent)
    moved = dataclasses.replace(config, path=str(tmp_path / "copied" / "*"))
    assert read(moved, 30, states[29]) == (tokens[30:], states[30:])


def test_another_tokenizer_cannot_go_on(write: Write, tmp_path: Path) -> None:
    config = write({"a.jsonl": lines(GOOD)})
    _, states = read(config, 9)
    trained_tokenizer(some_documents(50, 9), 290, "others", tmp_path / "other")
    other = dataclasses.replace(config, tokenizer=str(next((tmp_path / "other").glob("*/*.json"))))
    with pytest.raises(DataError, match="the text or its tokenizer is not what the run was reading"):
        read(other, 9, states[-1])
    recorded = open_corpus(config).config.tokenizer_sha256
    with pytest.raises(DataError, match="tokens would not mean the same"):
        open_corpus(dataclasses.replace(other, tokenizer_sha256=recorded))


def test_directories_among_the_files_are_no_files(write: Write) -> None:
    config = write({"a.jsonl": lines(GOOD)})
    expected = read(config, 20)[0]
    (Path(config.path).parent / "directory.jsonl").mkdir()
    assert read(config, 20)[0] == expected


@contextmanager
def ends_soon() -> Iterator[None]:
    """Fail rather than hang."""

    def fail(*_: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["a link to nothing", "a pipe", "a forbidden file"])
def test_what_is_no_readable_file_is_named(kind: str, write: Write) -> None:
    config = write({"a.jsonl": lines(GOOD)})
    path = Path(config.path).with_name("b.jsonl")
    if kind == "a link to nothing":
        path.symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.touch(mode=0o000)
        if os.access(path, os.R_OK):
            pytest.skip("nothing is forbidden to this user")
    with ends_soon(), pytest.raises(DataError, match=r"b\.jsonl cannot be read"):
        open_corpus(config)


def command(monkeypatch: pytest.MonkeyPatch, config: DataConfig, verb: str, *more: str) -> int:
    """The exit code of a command on these files, which are read little at a time."""
    own = [f"data={config.source}", f"data.path={config.path}", f"data.cache_dir={config.cache_dir}", "data.workers=0"]
    return run_command(monkeypatch, *verb.split(), *own, *TINY, "data.lanes=2", *more)


@pytest.mark.parametrize("verb", ["fit", "data prepare", "data inspect"])
@pytest.mark.parametrize("name", ["a bad line", "half a .gz", "a parquet of numbers", "half a parquet"])
def test_every_command_ends_with_3_and_one_line(
    name: str, verb: str, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad_line = {"a.jsonl": with_lines(GOOD, [BAD_LINES["invalid UTF-8"]])}
    config = write(bad_line if name == "a bad line" else broken_files(name))
    assert command(monkeypatch, config, verb) == 3
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("error: ") and "data.on_error=skip" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_what_was_passed_over_stands_in_the_status(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"a.jsonl": with_lines(some_documents(30), [b"what?"] * 10)})
    runs = tmp_path / "runs"
    assert command(monkeypatch, config, "fit", "data.on_error=skip", f"runs_dir={runs}") == 0
    status = json.loads(next(runs.glob("*/status.json")).read_text())
    said = f"{status['skipped_documents']} documents could not be read and were passed over"
    assert status["skipped_documents"] >= 10 and said in capsys.readouterr().err
    assert command(monkeypatch, config, "data inspect --json", "data.on_error=skip") == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert source["first_documents"]["unreadable"] == 10 and source["first_documents"]["records"] == 40


def test_a_run_that_a_bad_record_stopped_goes_on_without_it(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = some_documents(200)
    config = write({"a.jsonl": lines(good[:130]) + b"what?\n" + lines(good[130:])})  # not met before the first step
    runs, tokenizer = [tmp_path / name for name in ("stopped", "skipping")], f"data.tokenizer={config.tokenizer}"
    own = ["data.validation_tokens=64", "data.holdout=0.6", "train.steps=12", tokenizer, "diagnostics.every=0"]
    assert command(monkeypatch, config, "fit", *own, f"runs_dir={runs[0]}") == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "a.jsonl, record " in said and "is saved: `mhc-train fit --resume" in said and "data.on_error=skip" in said
    stopped = next(runs[0].iterdir())
    assert run_command(monkeypatch, "fit", "--resume", str(stopped), "data.on_error=skip") == 0
    assert command(monkeypatch, config, "fit", *own, f"runs_dir={runs[1]}", "data.on_error=skip") == 0
    status = [json.loads((run / "status.json").read_text()) for run in (stopped, next(runs[1].iterdir()))]
    assert status[0]["order_fingerprint"] == status[1]["order_fingerprint"]
    assert status[0]["skipped_documents"] == status[1]["skipped_documents"] >= 1


def test_changed_text_ends_a_continuation_with_3_and_moved_text_does_not(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write({"a.jsonl": lines(GOOD), "b.jsonl": lines(AFTER)})
    own = ["train.steps=4", f"runs_dir={tmp_path / 'runs'}"]
    assert command(monkeypatch, config, "fit", *own) == 0
    run, directory = str(next((tmp_path / "runs").iterdir())), Path(config.path).parent
    directory.rename(tmp_path / "moved")
    assert run_command(monkeypatch, "fit", "--resume", run, "train.steps=8") == 3
    assert "no such file" in capsys.readouterr().err
    moved = f"data.path={tmp_path / 'moved'}/*"
    assert run_command(monkeypatch, "fit", "--resume", run, "train.steps=8", moved) == 0
    CHANGES["added"](tmp_path / "moved")
    assert run_command(monkeypatch, "fit", "--resume", run, "train.steps=12", moved) == 3
    said = capsys.readouterr().err
    assert "changed, added, removed or renamed" in said.splitlines()[-1] and "Traceback" not in said
