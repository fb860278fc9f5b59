"""Writes one or several diagnoses as one HTML page that stands alone; it shows only what their documents hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhc_train.files import write_text
from mhc_train.report.charts import Chart, look
from mhc_train.report.charts import diagnosis as charts
from mhc_train.report.charts.depth import Subject
from mhc_train.report.charts.ledgers import ledgers
from mhc_train.report.page import Cell, Table, environment
from mhc_train.report.readings import Document, advised, evidence, numbered, short_names
from mhc_train.report.summary import path
from mhc_train.report.tables import laws_table, path_numbers
from mhc_train.report.words import (
    REPLACEMENTS,
    SYMBOLS,
    counted,
    kind_name,
    law_name,
    listed,
    loss,
    number,
    short,
    signed,
)

Subjects = Sequence[Subject]


@dataclass(frozen=True)
class Section:
    """A part of the page: how to read it, and its tables, charts and matrices; empty, it is left out."""

    id: str
    title: str
    text: str
    tables: list[Table | None] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    matrices: list[tuple[Subject, list[Chart]]] = field(default_factory=list)

    @property
    def filled(self) -> bool:
        """Whether there is anything in it."""
        return any(self.tables) or bool(self.charts) or any(drawn for _, drawn in self.matrices)


def write_diagnosis(documents: list[Document], path: Path) -> Path:
    """Write the page of one or of several diagnoses, side by side, to `path`, and return it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, to_html(documents))
    return path


def to_html(documents: list[Document]) -> str:
    """One self-contained page: no script, nothing loaded from anywhere; equal documents give equal bytes."""
    names = short_names(documents)
    subjects = [
        Subject(name, index, document, len(names) == 1)
        for index, (name, document) in enumerate(zip(names, documents, strict=True))
    ]
    view = {
        "title": f"{'Diagnosis' if len(names) == 1 else 'Diagnoses'} of {listed(names)}",
        "subjects": [(subject.name, _summary(subject.measurement)) for subject in subjects],
        "convention": documents[0]["convention"],
        "measured": _measured(subjects),
        "sections": [section for section in _sections(subjects) if section.filled],
        "colours": [look(index).colour for index in range(len(subjects))],
        "symbols": SYMBOLS,
    }
    return environment(True).get_template("diagnosis.html.j2").render(view)


# ---------------------------------------------------------------- words and tables


def _summary(document: Document) -> list[str]:
    """What was measured, on what, and what came out."""
    streams, depth = document["streams"], len(document["sublayers"])
    many = "a single stream" if streams == 1 else f"{streams} streams"
    scope = f"{document['connection']} with {many} over {depth} sublayers, measured token by token on"
    found = path(document)
    return [f"{scope} {counted(document['tokens'])} tokens ({document['basis']}).", found[0].upper() + found[1:]]


def _measured(subjects: Subjects) -> Table:
    """What each diagnosis is of, and what its numbers rest on."""
    rows = [
        ("checkpoint", lambda document: document["checkpoint"]),
        ("step", lambda document: str(document.get("step", "not known"))),
        ("connection", lambda document: document["connection"]),
        ("basis", lambda document: document["basis"]),
        ("tokens", lambda document: counted(document["tokens"])),
        ("streams", lambda document: str(document["streams"])),
        ("sublayers", lambda document: f"{len(document['sublayers'])}: {numbered(document['sublayers'])}"),
        ("loss on these tokens", lambda document: _loss(document.get("loss"))),
    ]
    cells = [(Cell(name), [Cell(read(subject.measurement)) for subject in subjects]) for name, read in rows]
    return Table("What was measured", [subject.name for subject in subjects], cells, arms=True)


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{loss(value)} nats per token"


def _laws(subjects: Subjects, prefix: str = "") -> list[Table | None]:
    """One model: a row says all of a law. Several: laws by models, then what to try."""
    caption = f"{prefix}Laws of the residual path"
    if len(subjects) > 1:
        measured = [(subject.name, subject.measurement) for subject in subjects]
        return [laws_table(caption, measured), _advice(subjects, prefix)]
    rows = [
        (
            Cell(law_name(row["law"])),
            [
                Cell(row["verdict"], state=row["verdict"].replace(" ", "-")),
                Cell(row["worst"] or ""),
                Cell(evidence(row, False), _limits(row["evidence"])),
                Cell(row["meaning"]),
                Cell(row["advice"] if advised(row) else ""),
            ],
        )
        for row in subjects[0].measurement["laws"]
    ]
    return [Table(caption, ["verdict", "worst at", "evidence", "what it means", "what to try"], rows, stacked=True)]


def _limits(found: dict[str, Any] | None) -> str:
    """The statistic that is judged and its limits; a law that is only graded has none between warning and failing."""
    if not found:
        return ""
    word = "from" if found.get("below") else "to"
    text = f"{found['statistic']} over tokens; ok {word} {short(found['ok'])}"
    return text + (f", warns {word} {short(found['warn'])}" if found["warn"] else "")


def _advice(subjects: Subjects, prefix: str) -> Table | None:
    """What to try about every law that some model does not obey."""
    broken = [(row, subject.name) for subject in subjects for row in subject.measurement["laws"] if advised(row)]
    laws = dict.fromkeys((row["law"], row["advice"]) for row, _ in broken)
    rows = [
        (
            Cell(law_name(law)),
            [
                Cell(listed([name for row, name in broken if (row["law"], row["advice"]) == (law, advice)])),
                Cell(advice),
            ],
        )
        for law, advice in laws
    ]
    return Table(f"{prefix}What to try", ["where", "what"], rows, stacked=True) if rows else None


def _ablations(subjects: Subjects) -> Table | None:
    """What it costs to replace all maps at once."""
    found = {
        (row["kind"], subject.name): row
        for subject in subjects
        for row in subject.measurement.get("ablations", [])
        if row["sublayer"] == "all"
    }
    names = [subject.name for subject in subjects]
    rows = [
        (
            Cell(kind_name(kind), f"H_res becomes {REPLACEMENTS[kind]}" if kind in REPLACEMENTS else ""),
            [_cost(found.get((kind, name))) for name in names],
        )
        for kind in dict.fromkeys(kind for kind, _ in found)
    ]
    return Table("Rise of the loss with all sublayers ablated at once", names, rows, arms=True) if rows else None


def _cost(row: dict[str, Any] | None) -> Cell:
    if row is None:
        return Cell("not measured")
    error = row["standard_error"]
    known = "no standard error of one sequence" if error is None else f"standard error {number(error, 2)}"
    return Cell(f"{signed(row['loss_difference'])} nats", known)


# ---------------------------------------------------------------- sections


def _sections(subjects: Subjects) -> list[Section]:
    """Everything that may stand on the page, in its order."""
    measured = [(subject.name, subject.measurement) for subject in subjects]
    return [
        Section(
            "laws",
            "The laws",
            "A deep residual path should route signal without creating or losing it. Verdicts go by the worst token of "
            "the worst sublayer, because a mean over tokens hides the one that blows up; \u201cnot promised\u201d is a "
            "law that this mixer does not aim at.",
            [*_laws(subjects), path_numbers("The residual path in numbers", measured)],
        ),
        Section(
            "amplification",
            "Amplification",
            "A gain of 1 passes signals on as they are and everything above amplifies; a gain is blind to collapse, so "
            "read it beside the next sections.",
            charts=charts.profiles(
                subjects, "composite-forward", "composite-backward", "sublayer-forward", "sublayer-backward"
            )
            + _spans(subjects, "forward_gain", "backward_gain"),
        ),
        Section(
            "conservation",
            "Conservation",
            "Errors of 0 and gains of 1 conserve: rows that sum to 1 keep the total of gradients, columns that sum "
            "to 1 the total of the streams.",
            charts=charts.profiles(
                subjects,
                "row-error",
                "column-error",
                "log-mass",
                "spectral-norm",
                "energy-gain",
                "gradient-energy-gain",
            ),
        ),
        Section(
            "collapse",
            "Collapse",
            "The opposite failure: a product of doubly stochastic maps cannot amplify, but the deeper it is, the "
            "closer it comes to plain averaging, and streams that are copies leave a mixer nothing to mix.",
            charts=charts.profiles(subjects, "collapse", "effective-rank", "stream-difference", "effective-streams")
            + _spans(subjects, "difference_gain"),
        ),
        Section(
            "energy",
            "Energy",
            "Who pays for the streams' growth: what the mixer carries on, what the sublayer adds, and what the two "
            "do to each other.",
            charts=charts.profiles(subjects, "energy", "gradient-energy", "outlier")
            + [chart for subject in subjects for chart in ledgers(subject)],
        ),
        Section(
            "mixer",
            "The mixer",
            "Whether the mixer has learned and still can: how far its logits spread, how far it has come from its "
            "start, and what gradient reaches it.",
            charts=charts.profiles(subjects, "logit-range", "mixer-drift", "mixer-gradient"),
        ),
        Section(
            "matrices",
            "Mixing matrices",
            "H_res averaged over tokens. Entry (i, j) is what stream i takes from stream j; row sums stand at the "
            "right, column sums below; blue is positive, orange negative, deeper is larger, zero is the "
            "page's background.",
            matrices=[(subject, charts.matrices(subject)) for subject in subjects],
        ),
        Section(
            "information",
            "Information retained",
            "Estimates of what the streams still tell about the embedding: a falling curve is information that the "
            "depth has made harder to reach, with standard errors.",
            charts=charts.information(subjects),
        ),
        Section(
            "ablations",
            "Ablations",
            "What a map is worth: the loss with it replaced minus the loss without; within two standard errors of "
            "zero, the model does not need it.",
            [_ablations(subjects)],
            [chart for subject in subjects if (chart := charts.ablations(subject))],
        ),
        _biases(
            [Subject(s.name, s.index, s.measurement["biases"], s.alone) for s in subjects if "biases" in s.measurement]
        ),
    ]


def _spans(subjects: Subjects, *measures: str) -> list[Chart]:
    return [chart for subject in subjects for chart in charts.spans(subject, *measures)]


def _biases(subjects: Subjects) -> Section:
    """The same of the maps that the biases alone would give."""
    keys = ("composite-forward", "composite-backward", "collapse", "row-error", "column-error", "spectral-norm")
    return Section(
        "biases",
        "The biases alone",
        "The maps that remain when the input says nothing: one matrix a sublayer, exact, without any token; where the "
        "section above differs, it is the input that makes the difference.",
        _laws(subjects, "Biases alone: ") if subjects else [],
        charts.profiles(subjects, *keys, prefix="biases-") if subjects else [],
        [(subject, charts.matrices(subject, "biases-")) for subject in subjects],
    )
