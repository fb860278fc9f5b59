"""What `gpu.py` found, for people: a table for every part."""

from collections.abc import Callable, Iterable
from typing import Any


def printed(part: str, found: dict[str, Any]) -> str:
    """One part's lines."""
    return "\n".join(TABLES[part.partition("-")[0]](part, found))


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Aligned columns under a title."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(["", title, *lines])


def correctness(_: str, found: dict[str, Any]) -> Iterable[str]:
    yield f"\nCorrectness, against float64: {found['cases']} cases, {len(found['wrong'])} wrong"
    yield from (f"WRONG: {case}" for case in found["wrong"])


def kernels(_: str, found: dict[str, Any]) -> Iterable[str]:
    copy = found["copy_bytes_per_second"]
    yield table(
        f"Kernels, {found['tokens']} tokens, n = {found['streams']}; a copy moves {copy / 1e12:.3g} TB/s",
        ("operator", "C", "direction", "ms", "+-", "TB/s", "of the copy"),
        [
            (
                row["operator"], row.get("dim", ""), row["direction"], row["ms"], row["spread"],
                f"{row['bytes_per_second'] / 1e12:.3g}" if "bytes_per_second" in row else "-",
                f"{row['share_of_copy']:.0%}" if "share_of_copy" in row else "-",
            )
            for row in found["rows"]
        ],
    )  # fmt: skip


def peers(_: str, found: dict[str, Any]) -> Iterable[str]:
    yield table(
        "One site, maps and all",
        ("part", "C", "direction", "way", "ms", "+-"),
        [
            (row["part"], row["dim"], row["direction"], row["way"], row["ms"], row["spread"])
            for row in found["rows"]
        ],
    )  # fmt: skip
    yield found["note"]
    yield from refused(found)


def steps(part: str, found: dict[str, Any]) -> Iterable[str]:
    yield table(
        f"Training, {part}: {found['layers']} layers of {found['dim']}, {found['rounds']} rounds",
        ("arm", "ms", "+-", "time ratio", "peak GB", "memory ratio", "kernels"),
        [
            (arm, row["ms"], row["spread"], row.get("time_ratio", ""), f"{row['peak_bytes'] / 1e9:.3g}",
             row.get("memory_ratio", ""), row["kernels"])
            for arm, row in found["arms"].items()
        ],
    )  # fmt: skip
    share, usual = found["head_share"], found["head_share_1b"]
    yield f"The head has {share:.1%} of the operations of the products with weights; in model=1b, {usual:.1%}:"
    yield "the larger its part, the smaller are all ratios."
    yield from refused(found)


def refused(found: dict[str, Any]) -> Iterable[str]:
    yield from (f"{name}: not to be had: {why}" for name, why in found["refused"].items())


TABLES: dict[str, Callable[[str, dict[str, Any]], Iterable[str]]] = {
    "correctness": correctness, "kernels": kernels, "peers": peers, "steps": steps,
}  # fmt: skip
"""By the first word of a part's name."""
