"""What a benchmark of connections has measured, as tables, Markdown and a picture."""

import io
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhc_train.files import write_json, write_text
from mhc_train.report.charts import STYLE
from mhc_train.report.charts.drawing import COLOURS

Document = dict[str, Any]
"""What `mhc_train.bench` makes."""
Rows = list[list[str]]

ARMS = (
    "connection",
    "step",
    "of the baseline's",
    "quartiles",
    "by traffic",
    "CPU time",
    "tokens/s",
    "memory",
    "of its",
)
OPERATORS = ("connection", "operator", "pass", "time", "least traffic over it", "of a copy's speed")
NAMES = {"read": "read", "write": "write", "cross": "crossing"}
MAPS = "A read and a crossing make the sublayer's maps, too: gates and the mixer, from the features."
GROWTH = (
    "its growth from just before the model was built to the most of all steps. Where the whole process counts, its "
    "allocator's reserves do."
)
BUSY = "it counts where other work shares a CPU"
UNMEASURED = "No operators: they are timed between two sublayers that both have several streams and the connection."
WIDE = 0.15
"""Distance between the quartiles of a ratio, as a share of it, beyond which it says little."""
PARTS = "Of a step, fewer micro-batches than it has were measured, and its update once; it is told whole."
LABEL = 20
"""Letters of a line beside an axis."""
BAR = 0.36
"""Height of a bar, of a row of 1."""


def arm_rows(document: Document) -> Rows:
    """A row an arm, the baseline first."""
    return [_arm_row(arm) for arm in document["arms"]]


def operator_rows(document: Document) -> Rows:
    """A row an operator and direction of every arm that has several streams."""
    return [
        [
            arm["name"],
            NAMES[found["operator"]],
            found["direction"],
            _milliseconds(found["seconds"]),
            f"{found['bytes_per_second'] / 1e9:.1f} GB/s",
            f"{found['copy_share']:.0%}",
        ]
        for arm in document["arms"]
        for found in arm["operators"]
    ]


def remarks(document: Document) -> list[str]:
    """What the tables leave open: what was not measured and why, what was measured and how."""
    arms = document["arms"]
    kernels = dict.fromkeys(arm["kernels"] for arm in arms if arm["kernels"] and arm["streams"] != 1)
    copies = [arm["copy_bytes_per_second"] for arm in arms if arm["copy_bytes_per_second"]]
    copy = f" A copy moves {max(copies) / 1e9:.1f} GB/s here." if copies else ""
    parts = any(arm["micro_batches_measured"] != arm["micro_batches"] and arm["turns"] for arm in arms)
    return [
        *(f"{arm['name']}: {arm['error']}." for arm in arms if arm["error"]),
        *(f"{arm['name']}, operators: {arm['operators_error']}." for arm in arms if arm["operators_error"]),
        *_unsettled(arms),
        f"{document['model']}. {document['rounds']} rounds in which all take turns; ratios are of the same round. "
        f"Device: {document['device']}.",
        f"CPU time: the same ratio of what the processes had of the cores; {BUSY}.",
        *(f"Kernels {path}." for path in kernels),
        f"By traffic: what the least bytes that a connection moves would add at a copy's speed; on a CPU, arithmetic "
        f"takes most of the time.{copy}",
        *([MAPS] if any(arm["operators"] for arm in arms) else [UNMEASURED]),
        *([f"Memory: {document['memory_counted']}; {GROWTH}"] if document["memory_counted"] else []),
        *([PARTS] if parts else []),
    ]


def _unsettled(arms: Sequence[dict[str, Any]]) -> list[str]:
    """Ratios whose quartiles are far apart, and arms whose quartiles reach into those of the next dearer one."""
    ratios = {arm["name"]: arm["relative_step_time"] for arm in arms[1:] if arm["relative_step_time"]}
    wide = [name for name, ratio in ratios.items() if ratio["high"] - ratio["low"] > WIDE * ratio["median"]]
    dearer = itertools.pairwise(sorted(ratios, key=lambda name: ratios[name]["median"]))
    alike = [f"{one} and {other}" for one, other in dearer if ratios[one]["high"] >= ratios[other]["low"]]
    said = []
    if wide:
        said.append(
            f"Not settled: {', '.join(wide)}. The quartiles are far apart: the machine is busy, or there were too few "
            "rounds. Type a larger --seconds."
        )
    return [*said, *([f"Not told apart, by their quartiles: {'; '.join(alike)}."] if alike else [])]


def markdown(document: Document) -> str:
    """The tables for a document or a pull request."""
    tables = [_markdown_table(ARMS, arm_rows(document)), _markdown_table(OPERATORS, operator_rows(document))]
    notes = "\n".join(f"- {line}" for line in remarks(document))
    return "\n\n".join(["# What connections cost", *filter(None, tables), notes]) + "\n"


def write(document: Document, directory: Path) -> list[Path]:
    """Leave `bench.json`, `bench.md` and `bench.svg` in a directory; returns their paths.

    Raises:
        StorageError: they cannot be written.
    """
    paths = [directory / f"bench.{kind}" for kind in ("json", "md", "svg")]
    write_json(paths[0], document)
    write_text(paths[1], markdown(document))
    write_text(paths[2], picture(document))
    return paths


def picture(document: Document) -> str:
    """Step time and memory of every arm over the baseline's, with quartiles; and how near operators come to a copy."""
    measured = [arm for arm in document["arms"] if arm["relative_step_time"]]
    operators = [(arm["name"], arm["operators"]) for arm in measured if arm["operators"]]
    with matplotlib.rc_context(STYLE):
        lines = max((_wrapped(arm["name"]).count("\n") + 1 for arm in measured), default=1)
        height = 1.8 + max(0.42, 0.2 * lines) * max(len(measured), 2)
        figure = Figure(figsize=(9.6, height), layout="constrained", facecolor="white")
        figure.suptitle(f"{document['model']}\n{document['device']}; {document['rounds']} rounds", fontsize="medium")
        left, right = figure.subplots(1, 2)
        _draw_arms(left, measured, document["baseline"])
        _draw_operators(right, operators)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()


def _draw_arms(axes: Axes, arms: Sequence[dict[str, Any]], baseline: str) -> None:
    """Two bars an arm; what is beyond 1 is what it costs."""
    places = range(len(arms))
    times = [arm["relative_step_time"] for arm in arms]
    spread = [[t["median"] - t["low"] for t in times], [t["high"] - t["median"] for t in times]]
    axes.barh(
        [place - BAR / 2 for place in places], [t["median"] for t in times], BAR, xerr=spread, color=COLOURS[0],
        label="step time", error_kw={"elinewidth": 1.2, "capsize": 2},
    )  # fmt: skip
    memories = [arm["relative_memory"] or 0.0 for arm in arms]
    axes.barh([place + BAR / 2 for place in places], memories, BAR, color=COLOURS[1], label="peak memory")
    axes.set_axisbelow(True)
    axes.axvline(1, linewidth=1, color="black")
    axes.set_yticks(list(places), [_wrapped(arm["name"]) for arm in arms])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"times the {baseline}'s")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _draw_operators(axes: Axes, arms: Sequence[tuple[str, list[dict[str, Any]]]]) -> None:
    """Six marks an arm: how near each operator comes, forwards and backwards, to the speed of a copy."""
    for place, (_, operators) in enumerate(arms):
        for found in operators:
            index = list(NAMES).index(found["operator"])
            filled = found["direction"] == "forward"
            axes.plot(
                100 * found["copy_share"], place, "osD"[index], color=COLOURS[index + 2],
                fillstyle="full" if filled else "none", label=f"{NAMES[found['operator']]}, {found['direction']}",
                clip_on=False,
            )  # fmt: skip
    axes.set_yticks(range(len(arms)), [_wrapped(name) for name, _ in arms])
    axes.set_ylim(max(len(arms), 1) - 0.5, -0.5)
    axes.set_xlim(0, None)
    axes.set_xlabel("least traffic over time, % of a copy's speed")
    handles, names = axes.get_legend_handles_labels()
    known = dict(zip(names, handles, strict=True))
    if known:
        axes.legend(known.values(), known.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)


def _wrapped(name: str) -> str:
    """Beside an axis, which a long line would leave no room for."""
    return textwrap.fill(name, LABEL, break_long_words=False)


def _arm_row(arm: dict[str, Any]) -> list[str]:
    if not arm["step_seconds"]:
        return [arm["name"], "not measured", *["-"] * (len(ARMS) - 2)]
    time, cpu = arm["relative_step_time"], arm["relative_cpu_time"]
    return [
        arm["name"],
        _milliseconds(arm["step_seconds"]["median"]),
        _ratio(time and time["median"]),
        f"{time['low']:.2f} to {time['high']:.2f}" if time else "-",
        _ratio(None if arm["predicted_overhead"] is None else 1 + arm["predicted_overhead"]),
        _ratio(cpu and cpu["median"]),
        f"{arm['tokens_per_second']:,.0f}",
        "-" if arm["peak_memory"] is None else f"{arm['peak_memory'] / 2**20:,.0f} MiB",
        _ratio(arm["relative_memory"]),
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 2}f} ms"


def _markdown_table(columns: Sequence[str], rows: Rows) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines) if rows else ""
