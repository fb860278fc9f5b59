"""Reading: the parts of a shard share no record and miss none, in every format, and any chunk can be begun at again."""

import io
import lzma
import random
import re
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_files import COMPRESS, KINDS, Files, some_documents, write_files

from mhc_train.data.readers import BadDocumentError, BrokenShardError, Chunk, Part, Shard, read_chunks, size_of, text_of
from mhc_train.data.sources import find_source
from mhc_train.errors import DataError
from mhc_train.schema import DataConfig

SHARDS = [some_documents(23), some_documents(1, seed=1), some_documents(9, seed=2)]
same_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def shards_of(files: Files) -> tuple[Shard, ...]:
    return find_source(DataConfig(source=files.source, path=files.path)).shards


def chunks(shard: Shard, part: Part, size: int = 4, cursor: int | None = None) -> list[Chunk]:
    return list(read_chunks(shard, part, size, cursor))


def texts(shard: Shard, found: list[Chunk]) -> list[str]:
    return [text_of(shard, record)[0] for chunk in found for record in chunk.records]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2, 7, 50])
def test_the_parts_of_a_shard_are_its_records_each_once(kind: str, parts: int, tmp_path: Path) -> None:
    files = write_files(tmp_path, kind, SHARDS)
    shards = shards_of(files)
    assert len(shards) == len(SHARDS)
    for index, shard in enumerate(shards[: 3 if parts < 50 or "csv" not in kind else 1]):
        found = [chunks(shard, Part(index, number, parts)) for number in range(parts)]
        for number, some in enumerate(found):
            assert texts(shard, some) == files.part(index, number, parts)
            assert all(len(chunk.keys) == len(chunk.records) == 4 for chunk in some[:-1])
            assert all(0 < len(chunk.records) <= 4 and chunk.cursor == chunk.keys[0] for chunk in some)
        together = sorted(
            chain.from_iterable(zip(chunk.keys, texts(shard, [chunk]), strict=True) for chunk in chain(*found))
        )
        assert [text for _, text in together] == [text for _, text in files.records[index]]


@pytest.mark.parametrize("kind", KINDS)
def test_reading_begins_again_at_any_chunk(kind: str, tmp_path: Path) -> None:
    (shard,) = shards_of(write_files(tmp_path, kind, SHARDS[:1]))
    for number in range(3):
        straight = chunks(shard, Part(0, number, 3), size=2)
        assert len(straight) > 2
        for count, chunk in enumerate(straight):
            assert chunks(shard, Part(0, number, 3), 2, chunk.cursor) == straight[count:]


@pytest.mark.parametrize("rows_a_group", [1, 4, 23, 1000])
def test_parquet_parts_are_ranges_of_rows_whatever_the_row_groups(rows_a_group: int, tmp_path: Path) -> None:
    documents = some_documents(2100)
    files = write_files(tmp_path, "parquet", [documents], rows_a_group)
    (shard,) = shards_of(files)
    for parts in (1, 3, 8):
        bounds = [2100 * number // parts for number in range(parts + 1)]
        for number in range(parts):
            found = chunks(shard, Part(0, number, parts), 500)
            assert [key for chunk in found for key in chunk.keys] == list(range(bounds[number], bounds[number + 1]))
            assert texts(shard, found) == documents[bounds[number] : bounds[number + 1]]
            again = chunks(shard, Part(0, number, parts), 500, bounds[number] + 7)
            assert texts(shard, again) == documents[bounds[number] + 7 : bounds[number + 1]]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_text_of_every_type_is_read_and_null_is_empty(kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array(["é", None, "", "é"]).cast(kind)}), tmp_path / "a.parquet")
    shard = Shard(str(tmp_path / "a.parquet"), "parquet", "")
    assert texts(shard, chunks(shard, Part(0))) == ["é", "", "", "é"]


def test_only_the_row_groups_and_the_column_that_are_wanted_are_read(tmp_path: Path) -> None:
    blob = [bytes(range(256)) * 400] * 8
    table = pa.table({"other": blob, "text": [f"{number}" * 9000 for number in range(8)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1, use_dictionary=False, compression="none")
    path = tmp_path / "a.parquet"
    content, shard = path.read_bytes(), Shard(str(path), "parquet", "")
    for broken, part in ((4, Part(0, 0, 2)), (3, Part(0, 1, 2))):
        start = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(broken).column(1).data_page_offset
        # Whoever reads that row notices.
        path.write_bytes(content[:start] + b"\xff" * 4 + content[start + 4 :])
        assert len(chunks(shard, part)[0].records) == 4
        with pytest.raises(BrokenShardError):
            chunks(shard, Part(0, 1 - part.number, 2))


def test_bytes_that_are_no_text_are_that_records_alone(tmp_path: Path) -> None:
    column = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    shard = Shard(str(tmp_path / "a.parquet"), "parquet", "")
    (chunk,) = chunks(shard, Part(0))
    assert [text_of(shard, chunk.records[number])[0] for number in (0, 2)] == ["a", "b"]
    with pytest.raises(BadDocumentError, match="invalid UTF-8"):
        text_of(shard, chunk.records[1])


lines = st.lists(st.sampled_from([b"a", b"{}", "é🙂".encode(), b" ", b"\n", b"\n", b"\r\n", b"\r"]), max_size=25).map(
    b"".join
)


def plain_lines(content: bytes) -> list[tuple[int, bytes]]:
    return [(found.start(), found[0]) for found in re.finditer(rb"[^\n]*\n|[^\n]+\Z", content)]


def plain_paragraphs(content: bytes) -> list[tuple[int, bytes]]:
    """A paragraph: lines none of which is a line's end alone."""
    return [(found.start(), found[0]) for found in re.finditer(rb"(?:(?!\r?\n)(?:[^\n]*\n|[^\n]+\Z))+", content)]


@same_directory
@given(lines, st.integers(1, 12), st.integers(1, 5))
def test_lines_wherever_the_bytes_are_cut(tmp_path: Path, content: bytes, parts: int, size: int) -> None:
    check_cuts(tmp_path, content, parts, size, "json", plain_lines(content))


@same_directory
@given(lines, st.integers(1, 12), st.integers(1, 5))
def test_paragraphs_wherever_the_bytes_are_cut(tmp_path: Path, content: bytes, parts: int, size: int) -> None:
    check_cuts(tmp_path, content, parts, size, "text", plain_paragraphs(content))


def check_cuts(
    directory: Path, content: bytes, parts: int, size: int, format: str, records: list[tuple[int, bytes]]
) -> None:
    path = directory / "content"
    path.write_bytes(content)
    shard = Shard(str(path), format, "")
    for number in range(parts):
        start, end = (len(content) * bound // parts for bound in (number, number + 1))
        expected = [(key, record) for key, record in records if start <= key < end]
        found = chunks(shard, Part(0, number, parts), size)
        assert [pair for chunk in found for pair in zip(*chunk, strict=True)] == expected
        for count, chunk in enumerate(found):
            assert chunks(shard, Part(0, number, parts), size, chunk.cursor) == found[count:]


@pytest.mark.parametrize("kind", ["jsonl.xz", "hub of jsonl.xz"])
def test_a_compression_that_cannot_be_read_is_refused_or_left_to_datasets(kind: str, tmp_path: Path) -> None:
    files = write_files(tmp_path, kind.removesuffix(".xz"), [["a"]])
    (path,) = tmp_path.iterdir()
    path.rename(f"{path}.xz").write_bytes(lzma.compress(Path(f"{path}.xz").read_bytes()))
    if files.source == "hub":
        (shard,) = shards_of(files)
        assert shard.format == "rows" and texts(shard, chunks(shard, Part(0))) == ["a"]
    else:
        with pytest.raises(DataError, match=r"xz cannot be read: of compressed files, \.gz, \.zst and \.bz2 can"):
            find_source(DataConfig(source="json", path=f"{path}.xz"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_of_several_members_and_of_nothing_are_read_whole(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    shard = Shard(str(path), "json", "")
    path.write_bytes(COMPRESS[suffix](b'{"text": "a"}\n{"te') + COMPRESS[suffix](b'xt": "b"}\n{"text": "c"}'))
    assert texts(shard, chunks(shard, Part(0))) == ["a", "b", "c"]
    assert texts(shard, chunks(shard, Part(0, 1, 2))) == ["b"]
    path.write_bytes(COMPRESS[suffix](b""))
    assert chunks(shard, Part(0, 1, 3)) == []


def test_what_stands_before_a_break_is_read_whatever_the_size_of_chunks(tmp_path: Path) -> None:
    draw = random.Random(0)
    content = b"".join(b'{"text": "%d %s"}\n' % (number, draw.randbytes(500).hex().encode()) for number in range(3000))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(COMPRESS[".gz"](content)[:-1000])
    shard = Shard(str(path), "json", "")
    counts = set()
    for size in (7, 1000, 1 << 20):
        records: list = []
        with pytest.raises(BrokenShardError):
            for chunk in read_chunks(shard, Part(0), size, None):
                records += chunk.records
        assert records == content.splitlines(keepends=True)[: len(records)]
        counts.add(len(records))
    assert len(counts) == 1 and counts.pop() > 1500


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (b'{"text": "a\\u00e9"}\r\n', "aé"),
        (b'{"other": 1, "text": ""}', ""),
        (b'{"text": null}', ""),
        (b"  \t\r\n", ""),
    ],
)  # fmt: skip
def test_the_text_of_a_json_line(record: bytes, text: str) -> None:
    assert text_of(Shard("a", "json", ""), record) == (text, text.encode())


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (b'{"text": 1}', "column text holds int"),
        (b'{"tex": "a"}', "no column text; there is tex"),
        (b"{}", "no column text; there is none"),
        (b'["text"]', "a JSON list where one object"),
        (b'{"text": "a"', "invalid JSON"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'{"text": "\\ud800"}', "invalid UTF-8"),
    ],
)
def test_a_json_line_without_text_says_what_it_holds(record: bytes, problem: str) -> None:
    with pytest.raises(BadDocumentError, match=problem):
        text_of(Shard("a", "json", ""), record)


def test_another_column_is_read_and_a_missing_one_names_those_that_are_there(tmp_path: Path) -> None:
    files = write_files(tmp_path, "parquet", [["a", "b"]])
    (shard,) = find_source(DataConfig(source="parquet", path=files.path, column="content")).shards
    with pytest.raises(BrokenShardError, match="no column content; there is other, text"):
        chunks(shard, Part(0))
    (shard,) = find_source(DataConfig(source="parquet", path=files.path, column="other")).shards
    with pytest.raises(BrokenShardError, match="column other holds int64, not text"):
        chunks(shard, Part(0))
    assert text_of(Shard("a", "json", "", "body"), b'{"text": "no", "body": "yes"}')[0] == "yes"


def test_sizes_and_places_are_said_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert size_of(str(tmp_path / "a")) == 5
    assert Shard("x/a.jsonl", "json", "").place(40, 2) == "a.jsonl, record 3 from byte 40 on"
    assert Shard("x/a.jsonl.gz", "json", "").place(40, 2) == "a.jsonl.gz, record 3 from record 41 on"
    assert Shard("x/a.parquet", "parquet", "").place(40, 2) == "a.parquet, record 3 from record 41 on"
