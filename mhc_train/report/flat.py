"""The numbers of a comparison as tables in long form, for spreadsheets and plotting programs: a row a number."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mhc_train.report.readings import Document

Row = Sequence[Any]
STATISTICS = ("median", "max")
"""Over tokens. All of them, of tens of models, would be tens of megabytes: report.json has them."""


def curves_csv(document: Document) -> str:
    """Every number that was logged: over tokens the losses, norms and speeds, over steps the composites.

    `step` is empty where the tokens are no whole number of batches, `tokens` of the composites, which have steps only.
    """
    return _csv(("arm", "seed", "step", "tokens", "metric", "value"), _curves(document))


def layers_csv(document: Document) -> str:
    """Median and maximum over tokens of each arm's last measurement (of its first seed), by sublayer."""
    return _csv(("arm", "seed", "sublayer", "name", "measure", "statistic", "value"), _layers(document))


def _curves(document: Document) -> Iterator[Row]:
    for arm in document["arms"]:
        for run in arm["curves"]:
            for metric in (key for key in run if key != "seed"):
                yield from (
                    (arm["name"], run["seed"], _step(arm, tokens), tokens, metric, value)
                    for tokens, value in run[metric]
                )
        for course in arm["courses"]:
            for point in course["points"]:
                yield from (
                    (arm["name"], course["seed"], point["step"], "", f"composite_{metric}", _written(point[metric]))
                    for metric in point
                    if metric != "step"
                )


def _step(arm: Document, tokens: int) -> int | str:
    """The step after so many tokens, since every batch has as many."""
    step, rest = divmod(tokens * arm["steps"], arm["tokens"]) if arm["tokens"] else (0, tokens)
    return "" if rest else int(step)


def _layers(document: Document) -> Iterator[Row]:
    for arm in document["arms"]:
        if arm["last"]:
            composite = arm["last"]["composite"]
            parts = (("", arm["last"]["sublayers"]), *((f"composite_{way}.", composite[way]) for way in composite))
            for prefix, rows in parts:
                yield from ((arm["name"], arm["seeds"][0], *cells) for row in rows for cells in _sublayer(row, prefix))


def _sublayer(row: Document, prefix: str) -> Iterator[Row]:
    for measure, values in row.items():
        if isinstance(values, dict) and "median" in values:
            yield from (
                (row["index"], row["name"], f"{prefix}{measure}", statistic, _written(values[statistic]))
                for statistic in STATISTICS
            )


def _written(value: Any) -> Any:
    """A number that is not finite, which the document has as null, in the words that programs read."""
    return "nan" if value is None else value


def _csv(header: Row, rows: Iterable[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
