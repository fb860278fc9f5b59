"""Text in every format that is read, and what stands in which part of it by the plainest means."""

import bz2
import functools
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = (
    "parquet", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "txt", "hub of parquet", "hub of jsonl.gz",
    "hub of csv",
)  # fmt: skip
WORDS = ("stream", "mixer", "Größe", "漢字", "🙂", "row", "column,", "depth", '"token"', "signal", "noise", "path", "é")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": functools.partial(gzip.compress, mtime=0),  # the same bytes every time
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def some_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 30 words, no two alike, the same every time."""
    draw = random.Random(seed)
    return [f"{seed}-{number} {' '.join(draw.choices(WORDS, k=draw.randint(1, 30)))}" for number in range(count)]


@dataclass(frozen=True)
class Files:
    """Shards that were written, and the place and text of every record in them."""

    source: str
    path: str
    records: list[list[tuple[int, str]]]
    extents: list[int]
    strided: bool

    def part(self, shard: int, number: int, parts: int) -> list[str]:
        """The texts of one part of a shard."""
        records, extent = self.records[shard], self.extents[shard]
        if self.strided:
            return [text for _, text in records[number::parts]]
        return [text for key, text in records if extent * number // parts <= key < extent * (number + 1) // parts]

    @property
    def texts(self) -> list[str]:
        """Of all records, in stored order."""
        return [text for shard in self.records for _, text in shard]


def write_files(directory: Path, kind: str, shards: list[list[str]], rows_a_group: int = 7) -> Files:
    """Write documents in a format of `KINDS`, one file a shard."""
    directory.mkdir(parents=True, exist_ok=True)
    suffix = kind.removeprefix("hub of ")
    hub = suffix != kind
    records, extents = [], []
    for number, documents in enumerate(shards):
        path = directory / (f"train-{number:05d}.{suffix}" if hub else f"{number:02d}.{suffix}")
        content, places = CONTENT[suffix.partition(".")[0]](documents, rows_a_group)
        path.write_bytes(COMPRESS[path.suffix](content) if path.suffix in COMPRESS else content)
        records.append(places)
        extents.append(len(documents) if suffix == "parquet" else len(content))
    source = {"parquet": "parquet", "txt": "text"}.get(suffix, "json")
    return Files(
        "hub" if hub else source,
        str(directory if hub else directory / f"*.{suffix}"),
        records,
        extents,
        suffix not in ("parquet", "txt", "jsonl"),
    )


Content = tuple[bytes, list[tuple[int, str]]]


def _parquet(documents: list[str], rows_a_group: int) -> Content:
    stream = pa.BufferOutputStream()
    table = pa.table({"other": list(range(len(documents))), "text": pa.array(documents, pa.string())})
    pq.write_table(table, stream, row_group_size=rows_a_group)
    return stream.getvalue().to_pybytes(), list(enumerate(documents))


def _jsonl(documents: list[str], _: int) -> Content:
    """Some lines end as on Windows, some are blank, the last one does not end, characters take several bytes."""
    content, records = b"", []
    for number, text in enumerate(documents):
        records.append((len(content), text))
        line = json.dumps({"other": number, "text": text}, ensure_ascii=number % 2 == 0)
        content += (text if text.startswith("unreadable") else line).encode()
        content += b"" if number == len(documents) - 1 else b"\r\n" if number % 3 == 0 else b"\n"
        if number % 5 == 4 and number < len(documents) - 1:
            records.append((len(content), ""))
            content += b"\n"
    return content, records


def _txt(documents: list[str], _: int) -> Content:
    """Paragraphs of one or two lines, apart by one or two blank lines of either kind."""
    content, records = b"", []
    for number, text in enumerate(documents):
        paragraph = text.replace(" ", "\r\n", 1) if number % 2 else text
        records.append((len(content), paragraph + "\n"))
        content += (paragraph + "\n").encode() + (b"\n", b"\r\n", b"\n\r\n", b"\r\n\n")[number % 4]
    return content, records


def _csv(documents: list[str], _: int) -> Content:
    rows = ['{},"{}"\n'.format(number, text.replace('"', '""')) for number, text in enumerate(documents)]
    return ("other,text\n" + "".join(rows)).encode(), list(enumerate(documents))


CONTENT: dict[str, Callable[[list[str], int], Content]] = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "txt": _txt,
    "csv": _csv,
}
