"""Diagnoses on a terminal: verdicts, sparklines over depth, and the numbers of every sublayer, in the width there is.

Nothing here needs torch or a drawing library.
"""

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mhc_train.report.readings import (
    DEPTH_COLUMNS,
    NOT_DECLARED,
    NOT_MEASURED,
    PATH_NUMBERS,
    PER_STREAM,
    Document,
    advised,
    depth_rows,
    path_number,
    short_names,
)
from mhc_train.report.words import REPLACEMENTS, SYMBOLS, Number, kind_name, law_name
from mhc_train.tables import WIDTH_IN_A_PIPE, number, print_table, show

BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
AT_LEAST, AT_MOST = "\u2265", "\u2264"
BROKEN = "\u00d7"
"""Stands in a sparkline for a number that is not finite."""
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
SPARK, LEAST_SPARK = 60, 8
"""Characters of a sparkline: where there are more sublayers, several share one, and the worst of them counts."""
DECADES = 20
"""The factor between largest and smallest from which on a sparkline is logarithmic."""
FLOOR = 1e-12

Entries = list[dict[str, Any]]
Read = Callable[[Document], Entries]


def _sublayers(document: Document) -> Entries:
    return list(document["sublayers"])


def _forward(document: Document) -> Entries:
    return list(document["composite"]["forward"])


def _backward(document: Document) -> Entries:
    return list(document["composite"]["backward"])


PROFILES: tuple[tuple[str, Read, str, str, Callable[..., float]], ...] = (
    ("composite fwd gain", _forward, "forward_gain", "max", max),
    ("composite bwd gain", _backward, "backward_gain", "max", max),
    ("difference gain", _forward, "difference_gain", "median", min),
    ("stream difference", _sublayers, "stream_difference", "median", min),
    ("energy per stream", _sublayers, "energy_out", "mean", max),
    ("logit range", _sublayers, "logit_range", "max", max),
)
"""Sparklines: name, entries, measure, statistic over tokens, and which of several sublayers is the worst."""
COLUMNS: tuple[tuple[str, Read, str, str], ...] = (
    ("fwd gain", _sublayers, "forward_gain", "max"),
    ("bwd gain", _sublayers, "backward_gain", "max"),
    ("col error", _sublayers, "column_error", "max"),
    ("sigma max", _sublayers, "spectral_norm", "max"),
    ("comp fwd", _forward, "forward_gain", "max"),
    ("comp bwd", _backward, "backward_gain", "max"),
    ("difference", _sublayers, "stream_difference", "median"),
    ("row error", _sublayers, "row_error", "max"),
    ("energy gain", _sublayers, "energy_gain", "max"),
    ("grad energy", _sublayers, "gradient_energy_gain", "max"),
    ("logit range", _sublayers, "logit_range", "max"),
    ("drift", _sublayers, "mixer_drift", "median"),
    ("eff streams", _sublayers, "effective_streams", "median"),
)
"""Of the table of sublayers, the most telling first: as many are shown as fit."""


def print_diagnoses(documents: list[Document]) -> None:
    """Print one diagnosis, or several side by side, on standard output."""
    names = _labels(documents)
    for name, document in zip(names, documents, strict=True):
        _print(_headline(name, document))
    if len(documents) == 1:
        _print_laws(documents[0])
    else:
        _compare_laws(names, documents)
    _print_advice(names, documents)
    _print_profiles(names, documents)
    if len(documents) == 1:
        _print_sublayers(documents[0])
    else:
        _compare_numbers(names, documents)
    _print_ablations(names, documents)


def _labels(documents: list[Document]) -> list[str]:
    """One diagnosis goes by its name; several by numbers, which leave room for what they say."""
    names = short_names(documents)
    return names if len(names) == 1 else [f"#{number}" for number in range(1, 1 + len(names))]


def _headline(name: str, document: Document) -> str:
    label = f"{name}: " if name.startswith("#") else ""
    return (
        f"{label}{document['checkpoint']}: {document['connection']}, n = {document['streams']}, "
        f"{document['tokens']} tokens ({document['basis']}); {document['convention']}"
    )


# ---------------------------------------------------------------- laws


def _print_laws(document: Document) -> None:
    rows = [
        (law_name(row["law"]), _verdict(row), row["worst"] or "-", *_evidence(row["evidence"] or {}))
        for row in document["laws"]
    ]
    titles: Sequence[str] = ("law", "verdict", "worst at", "measured", "value", "ok")
    if _width(titles, rows) <= _room():
        _table("Laws", titles, rows, left=4)
        return
    titles, *short = ((*row[:3], *row[4:]) for row in (titles, *rows))
    _table("Laws", titles, short, left=3)
    _left_out(1)


def _evidence(found: dict[str, Any]) -> tuple[str, str, str]:
    if not found:
        return "-", "-", "-"
    return (
        found["measure"].replace("_", " "),
        number(found["value"], 4),
        f"{AT_LEAST if found.get('below') else AT_MOST} {found['ok']:g}",
    )


def _verdict(row: dict[str, Any]) -> str:
    symbol = SYMBOLS.get(row["verdict"])
    text = f"{symbol} {row['verdict']}" if symbol else row["verdict"]
    colour = COLOURS.get(row["verdict"]) if sys.stdout.isatty() else None
    return f"[{colour}]{text}[/]" if colour else text


def _compare_laws(names: Sequence[str], documents: Sequence[Document]) -> None:
    """A column a diagnosis; laws that do not get the same verdict everywhere are marked."""
    tables = [{row["law"]: row for row in document["laws"]} for document in documents]
    laws = list(dict.fromkeys(law for table in tables for law in table))
    verdicts = [{table[law]["verdict"] if law in table else None for table in tables} for law in laws]
    heads = [(law_name(law), "\u2260" if len(found) > 1 else "") for law, found in zip(laws, verdicts, strict=True)]
    columns = [[_judged(table.get(law)) for law in laws] for table in tables]
    _beside("Laws (\u2260: the verdicts differ)", ("law", ""), heads, names, columns)


def _judged(row: dict[str, Any] | None) -> str:
    if row is None:
        return NOT_DECLARED
    judged = row["evidence"] and row["verdict"] in COLOURS
    return _verdict(row) + (f" {number(row['evidence']['value'])}" if judged else "")


def _print_advice(names: Sequence[str], documents: Sequence[Document]) -> None:
    """What to try, once for all that it is said to; in whole lines, since a table would cut them."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for name, document in zip(names, documents, strict=True):
        for row in filter(advised, document["laws"]):
            said.setdefault((_verdict(row), law_name(row["law"]), row["advice"]), []).append(name)
    if said:
        _print("")
    for (verdict, law, advice), where in said.items():
        places = f" ({', '.join(where)})" if len(documents) > 1 else ""
        _print(f"{verdict}: {law}{places}: ", advice)


# ---------------------------------------------------------------- profiles


def _print_profiles(names: Sequence[str], documents: Sequence[Document]) -> None:
    """A sparkline for each measure and diagnosis; those of one measure share a scale."""
    rows = []
    for title, read, measure, statistic, worst in PROFILES:
        found = [_profile(document, read(document), measure, statistic) for document in documents]
        known = [value for values in found for value in values if value is not None]
        if not known:
            continue
        scale = _Scale(min(known), max(known))
        for name, values in zip(names, found, strict=True):
            label = f"{title}, {statistic}" + (f" {name}" if len(names) > 1 else "")
            finite = [value for value in values if value is not None]
            ends = (number(min(finite)), number(max(finite))) if finite else ("-", "-")
            level = [None if value is None else finite[0] for value in values] if ends[0] == ends[1] else values
            rows.append((label, _Spark(level, scale, worst), *ends, "log" if scale.logarithmic else ""))
    titles = ("measure", "from first to last", "min", "max", "")
    others = _width(titles, [(label, "", *rest) for label, _, *rest in rows]) - len(titles[1])
    room = max(LEAST_SPARK, min(SPARK, _room() - others))
    drawn = [(label, spark.drawn(room), *rest) for label, spark, *rest in rows]
    if drawn:
        _table("Over depth (log: a logarithmic scale)", ("measure", "first to last"[:room], *titles[2:]), drawn, left=2)


def _profile(document: Document, entries: Entries, measure: str, statistic: str) -> list[Number]:
    share = document["streams"] if measure in PER_STREAM else 1
    found = [entry[measure][statistic] for entry in entries if _meant(document, entry, measure)]
    return [None if value is None else value / share for value in found]


def _meant(document: Document, entry: dict[str, Any], measure: str) -> bool:
    """Whether a number was measured; what one stream has none of is no number that is not finite."""
    return measure in entry and (document["streams"] > 1 or entry[measure]["median"] is not None)


class _Scale:
    """From values to the unit interval, by their logarithms where they span decades."""

    def __init__(self, low: float, high: float) -> None:
        # The difference of copies is an exact 0, which has no logarithm.
        self.logarithmic = low >= 0 and high > DECADES * max(low, FLOOR)
        self._low, self._high = self._place(low), self._place(high)

    def __call__(self, value: float) -> float:
        # A change in the fifth digit is no profile.
        span = max(self._high - self._low, 1e-4 * max(abs(self._high), abs(self._low)), FLOOR)
        return (self._place(value) - self._low) / span

    def _place(self, value: float) -> float:
        return math.log10(max(value, FLOOR)) if self.logarithmic else value


@dataclass(frozen=True)
class _Spark:
    """Values over depth, as blocks of eight heights."""

    values: Sequence[Number]
    scale: _Scale
    worst: Callable[..., float]

    def drawn(self, room: int) -> str:
        """In so many characters at most."""
        values, count = self.values, min(len(self.values), room)
        bins = [values[place * len(values) // count : (place + 1) * len(values) // count] for place in range(count)]
        return "".join(map(self._block, bins)) or "-"

    def _block(self, values: Sequence[Any]) -> str:
        if None in values:
            return BROKEN
        return BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * self.scale(self.worst(values))))]


# ---------------------------------------------------------------- numbers


def _print_sublayers(document: Document) -> None:
    """As many columns as fit, the most telling first."""
    rows = [[row["name"]] for row in document["sublayers"]]
    measured = [column for column in COLUMNS if all(column[2] in entry for entry in column[1](document))]
    titles = ["sublayer"]
    for title, read, measure, statistic in measured:
        cells = [number(entry[measure][statistic], 4) for entry in read(document)]
        grown = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
        if _width([*titles, title], grown) > _room():
            break
        titles, rows = [*titles, title], grown
    _table(_reading(titles), titles, rows)
    _left_out(1 + len(measured) - len(titles))


def _reading(titles: Sequence[str]) -> str:
    """What the columns that are shown say."""
    medians = [title for title, _, _, statistic in COLUMNS if title in titles and statistic == "median"]
    note = f", {' and '.join(medians)} of the median one" if medians else ""
    ways = {"comp fwd": "up to here", "comp bwd": "from here on"}
    spans = " or ".join(way for title, way in ways.items() if title in titles)
    return f"Sublayers: at the largest token{note}" + (f"; comp is the composite {spans}" if spans else "")


def _compare_numbers(names: Sequence[str], documents: Sequence[Document]) -> None:
    """What sums up a residual path, a column a diagnosis."""
    rows = [(title, [path_number(document, read, _plain) for document in documents]) for title, _, read in PATH_NUMBERS]
    rows = [(title, cells) for title, cells in rows if set(cells) != {NOT_MEASURED}]
    heads = [(title, "\u2260" if len(set(cells)) > 1 else "") for title, cells in rows]
    columns = [[cells[place] for _, cells in rows] for place in range(len(names))]
    _beside("Numbers (\u2260: they differ)", ("measure", ""), heads, names, columns)


def _plain(value: Number) -> str:
    return "not finite" if value is None else str(value) if isinstance(value, int) else number(value, 4)


def _print_ablations(names: Sequence[str], documents: Sequence[Document]) -> None:
    """The rise of the loss and its standard error, an ablation a row."""
    tables = [{(row["sublayer"], row["kind"]): row for row in document.get("ablations", [])} for document in documents]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    if keys:
        heads = [(sublayer, kind_name(kind)) for sublayer, kind in keys]
        titles = names if len(names) > 1 else ["rise of the loss"]
        columns = [[_cost(table.get(key)) for key in keys] for table in tables]
        _beside("Ablations: nats, with standard error", ("sublayer", "H_res becomes"), heads, titles, columns)
        kinds = dict.fromkeys(kind for _, kind in keys if kind in REPLACEMENTS)
        _print("; ".join(f"{kind_name(kind)}: {REPLACEMENTS[kind]}" for kind in kinds))


def _cost(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    cost = f"{number(row['loss_difference'], 4)} \u00b1 {number(row['standard_error'], 4)}"
    return f"{cost}  {row['verdict']}" if "verdict" in row else cost


# ---------------------------------------------------------------- width


def _room() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH_IN_A_PIPE


def _width(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Characters that a ruled table needs: three between columns, and its edges."""
    columns = zip(titles, *rows, strict=True)
    return sum(3 + max(map(_length, column)) for column in columns)


def _length(cell: str) -> int:
    from rich.text import Text

    return Text.from_markup(cell).cell_len


def _table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """A table after an empty line."""
    _print("")
    print_table(title, titles, rows, left)


def _left_out(columns: int) -> None:
    """Says under a table what a wider terminal would show."""
    if columns:
        fit = "columns fit" if columns > 1 else "column fits"
        _print(f"{columns} more {fit} a wider terminal; --json has all.")


def _print(*parts: str) -> None:
    """A line of text that wraps between words."""
    from rich.text import Text

    text = Text.from_markup(parts[0]) if len(parts) > 1 else Text(parts[0])
    for part in parts[1:]:
        text.append(part)
    show(text, _room(), sys.stdout.isatty())


def _beside(
    title: str,
    texts: tuple[str, str],
    heads: Sequence[tuple[str, str]],
    names: Sequence[str],
    columns: Sequence[Sequence[str]],
) -> None:
    """A column a diagnosis, after two of text; in several tables where they do not fit beside each other."""
    rows = [(*head, *cells) for head, *cells in zip(heads, *columns, strict=True)]
    if len(names) > 1 and _width((*texts, *names), rows) > _room():
        half = len(names) // 2
        _beside(title, texts, heads, names[:half], columns[:half])
        _beside(title, texts, heads, names[half:], columns[half:])
    else:
        _table(title, (*texts, *names), rows, left=2)


# ---------------------------------------------------------------- untrained depths


def print_depths(documents: list[Document]) -> None:
    """Print what untrained paths of several depths do: for every depth a row a connection, and the linear amplifier."""
    first = documents[0]
    noise = f"noise of {first['jitter']:g} on every mixer's logits" if first["jitter"] else "as initialised"
    _print(f"Untrained paths, {noise}; {first['tokens']} tokens ({first['basis']}).")
    rows: list[tuple[str, ...]] = []
    for depth, group in depth_rows(documents, _plain):
        rows += [(), *((str(depth), connection, *cells) for connection, cells in group)]
    titles = ("sublayers", "connection", *(title for title, _, _ in DEPTH_COLUMNS))
    note = "gains at the largest token; kept: of differences, at the median one"
    _table(f"Of the whole composite: {note}", titles, rows[1:], left=2)
