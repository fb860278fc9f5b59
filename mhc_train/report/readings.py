"""What the reports read off measurements' documents in more than one place."""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from mhc_train.report.words import Number, number

Document = dict[str, Any]
Row = tuple[str, list[str]]
"""A name, and its cells."""
NOT_MEASURED, NOT_DECLARED = "not measured", "not declared"
PER_STREAM = ("energy_out", "gradient_out")
"""What is shown divided by the number of streams, so that one stream and several can be compared."""
VERDICTS = ("not applicable", "not promised", "ok", "warn", "fail")
"""From the least to the most serious."""
AMPLIFIER = "1.1 I"
MANY = 12
"""Arms beyond which a chart shows only some in full strength."""
DEPTH_COLUMNS = (
    ("fwd gain", "forward_gain", "max"),
    ("bwd gain", "backward_gain", "max"),
    ("kept", "difference_gain", "median"),
)
"""Of an untrained path: title, measure of the whole composite, statistic over tokens."""


def largest(entries: list[dict[str, Any]], measure: str) -> Number:
    """The largest value over entries and tokens; None where one is not finite, since that is the largest."""
    values = [entry[measure]["max"] for entry in entries]
    return None if None in values else max(values)


def worst_gain(arm: Document, way: str) -> Number:
    """The largest composite gain of any seed's last measurement; None where one is not finite, or none was measured."""
    gains = [course["points"][-1][f"{way}_gain"] for course in arm["courses"] if course["points"]]
    return None if None in gains else max(gains, default=None)


def final_losses(arm: Document) -> dict[str, float]:
    """The final validation loss of every seed that has one; keys are seeds as text, as JSON has them."""
    return {seed: loss for seed, loss in arm["val_loss_by_seed"].items() if loss is not None}


def uneven(document: Document) -> bool:
    """Whether arms have their losses from different seeds, so that a difference of their means is one of seeds too."""
    return len({frozenset(losses) for losses in map(final_losses, document["arms"]) if losses}) > 1


def prominent(document: Document) -> set[int]:
    """The arms that charts show in full strength: all, or of many the reference, lowest and highest losses."""
    arms = document["arms"]
    if len(arms) <= MANY:
        return set(range(len(arms)))
    ranked = sorted((arm["val_loss"], index) for index, arm in enumerate(arms) if arm["val_loss"] is not None)
    reference = next(index for index, arm in enumerate(arms) if arm["name"] == document["reference"])
    return {reference, *(index for _, index in [*ranked[:3], *ranked[-2:]])}


def judged(laws: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The laws with a verdict, that is, without those that do not apply or were never promised."""
    return [row for row in laws if row["verdict"] in ("ok", "warn", "fail")]


def advised(row: dict[str, Any]) -> bool:
    """Whether a verdict asks for something to be done."""
    return row["verdict"] in ("warn", "fail") and bool(row.get("advice"))


def short_names(documents: list[Document]) -> list[str]:
    """For every diagnosis the end of its checkpoint's path, as long as it must be to tell one from another."""
    paths = [
        [part for part in PurePath(document["checkpoint"]).parts if part != "checkpoints"] for document in documents
    ]
    # A step says nothing without its run, and a run needs no step where each has one.
    runs = [parts[:-1] if len(parts) > 1 and parts[-1].startswith("step-") else parts for parts in paths]
    for candidates in (runs, paths):
        for length in range(1, 1 + max(map(len, candidates))):
            names = ["/".join(parts[-length:]) for parts in candidates]
            if len(set(names)) == len(names):
                return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def numbered(rows: list[dict[str, Any]]) -> str:
    """Which numbers the first sublayers have, from which the others follow."""
    first = [f"{row['index']} is {row['name']}" for row in rows[:2]]
    return ", ".join(first) + (" and so on" if len(rows) > len(first) else "")


def evidence(row: dict[str, Any], placed: bool = True) -> str:
    """What a verdict rests on, where if `placed`, and what the mixer declares."""
    found, declared = row["evidence"], row["declared"]
    parts = []
    if found:
        place = f" at {row['worst']}" if placed else ""
        parts.append(f"{found['measure'].replace('_', ' ')} {number(found['value'])}{place}")
    elif row["verdict"] == "fail":
        parts.append("not finite anywhere")
    if declared:
        parts.append(_declared(declared))
    return "; ".join(parts)


def _declared(declared: dict[str, Any]) -> str:
    tolerance, span = declared["tolerance"], declared["logit_range"]
    text = f"declared to {number(tolerance, 1)}" if tolerance else "declared exact"
    return text if span is None else f"{text} while logits span at most {number(span, 1)}"


def path_number(
    measurement: Document | None, read: Callable[[Document], Number], write: Callable[[Number], str] = number
) -> str:
    """One of `PATH_NUMBERS`, in words where there is no number."""
    try:
        value = read(measurement or {})
    except KeyError:  # a diagnosis holds only what was observed
        return NOT_MEASURED
    # One stream has no differences and no cosine: that is no numerical failure.
    return "one stream" if value is None and measurement and measurement["streams"] == 1 else write(value)


def depth_rows(documents: list[Document], write: Callable[[Number], str]) -> list[tuple[int, list[Row]]]:
    """For every depth, `DEPTH_COLUMNS` of each connection's whole composite, and those of the linear amplifier."""
    depths = zip(documents[0]["amplifier"], *(document["depths"] for document in documents), strict=True)
    return [
        (
            amplified["sublayers"],
            [
                (document["connection"], [_depth_number(document, entry[m][s], write) for _, m, s in DEPTH_COLUMNS])
                for document, entry in zip(documents, entries, strict=True)
            ]
            + [(AMPLIFIER, [write(amplified["gain"])] * len(DEPTH_COLUMNS))],
        )
        for amplified, *entries in depths
    ]


def _depth_number(document: Document, value: Number, write: Callable[[Number], str]) -> str:
    return "one stream" if value is None and document["streams"] == 1 else write(value)


def _composite(way: str, measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: largest(measurement["composite"][way], measure)


def _sublayers(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: largest(measurement["sublayers"], measure)


def _whole(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: measurement["composite"]["forward"][-1][measure]["median"]


def _last(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: measurement["sublayers"][-1][measure]["median"]


PATH_NUMBERS: tuple[tuple[str, str, Callable[[dict[str, Any]], Number]], ...] = (
    ("streams", "", lambda measurement: measurement["streams"]),
    ("composite forward gain", "largest over depth and tokens", _composite("forward", "forward_gain")),
    ("composite backward gain", "largest over depth and tokens", _composite("backward", "backward_gain")),
    ("composite log mass", "largest |log column sum|, sees leaks too", _composite("forward", "log_mass")),
    ("composite difference gain", "whole depth, median token; 0 is collapse", _whole("difference_gain")),
    ("composite effective rank", "whole depth, median token", _whole("effective_rank")),
    ("sublayer forward gain", "largest over sublayers and tokens", _sublayers("forward_gain")),
    ("sublayer backward gain", "largest over sublayers and tokens", _sublayers("backward_gain")),
    ("energy gain of mixing", "largest over sublayers and tokens", _sublayers("energy_gain")),
    ("share of energy in stream differences", "after the last sublayer, median token", _last("stream_difference")),
    ("effective streams", "after the last sublayer, median token", _last("effective_streams")),
    ("cosine between streams", "after the last sublayer, median token", _last("stream_cosine")),
)  # fmt: skip
