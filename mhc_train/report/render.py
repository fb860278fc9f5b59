"""Writes a comparison as report.html, report.md and report.json, all of them from the one document of `compare_runs`.

Nothing is computed here that a reader could not compute from the run files, and no date or random number goes in: the
same runs give the same bytes.
"""

import math
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mhc_train.files import write_json, write_text
from mhc_train.report import charts
from mhc_train.report.charts import Chart, Number, Omitted, counted

MISSING = "not finite or not logged"
MINUS = "\u2212"
COLLAPSED, QUIET = 0.1, 1.1
"""A composite that keeps less than a tenth of differences while its gain is at most 1.1 looks better than it is."""
FEW = 4
"""Arms that a sentence can name one by one."""
COPIES = 1e-3
"""Share of the energy in differences between streams below which they are called copies."""
SYMBOLS = {"ok": "\u2713", "same": "\u2713", "warn": "!", "unknown": "?", "fail": "\u2717", "different": "\u2717"}


@dataclass(frozen=True)
class Cell:
    """A table cell: what it says, in smaller type what supports it, and a state that gives it a colour."""

    text: str
    detail: str = ""
    state: str = ""


@dataclass(frozen=True)
class Table:
    """A table with row headers, for both page templates."""

    caption: str
    columns: list[str]
    rows: list[tuple[Cell, list[Cell]]]
    arms: bool = False
    """Whether the columns are the arms, which have colours."""


@dataclass(frozen=True)
class Group:
    """Charts that are read together, and those that were left out."""

    drawn: list[Chart] = field(default_factory=list)
    omitted: list[Omitted] = field(default_factory=list)


def write_report(document: dict[str, Any], directory: Path) -> Path:
    """Write report.html, report.md and report.json into `directory`; returns the path of the HTML page.

    Raises:
        StorageError: a file cannot be written.
    """
    write_json(directory / "report.json", document)
    write_text(directory / "report.md", to_markdown(document))
    page = directory / "report.html"
    write_text(page, to_html(document))
    return page


def to_html(document: dict[str, Any]) -> str:
    """One self-contained page: no script, nothing loaded from anywhere."""
    return _environment(True).get_template("report.html.j2").render(_view(document) | _drawings(document))


def to_markdown(document: dict[str, Any]) -> str:
    """The same numbers without the charts, for places that show plain text."""
    text = _environment(False).get_template("report.md.j2").render(_view(document))
    return re.sub(r"\n{3,}", "\n\n", text)


def _environment(escape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": markdown_text, "fence": fenced, "svg": Markup}
    return environment


def _view(document: dict[str, Any]) -> dict[str, Any]:
    """Everything that both pages show, in words and tables."""
    names = [arm["name"] for arm in document["arms"]]
    return {
        "document": document,
        "title": f"Report on {names[0]}" if len(names) == 1 else f"Comparison of {_named(names)}",
        "summary": summary(document),
        "path_summary": path_summary(document["arms"]),
        "several": sum(len(arm["runs"]) for arm in document["arms"]) > 1,
        "requirements": _requirements(document),
        "agreement": _agreement(document["requirements"]),
        "results": _results(document),
        "differences": _differences(document),
        "laws": _laws(document),
        "path": _path_numbers(document),
        "samples": _samples(document["arms"]),
        "config_differences": _config_differences(document),
        "config_shared": _keys("Keys that all arms share", document["configuration"]["shared"]),
        "data": _keys("Data", {key: value for key, value in document["data"].items() if key != "attribution"}),
        "environment": _keys("Software and hardware of the first run", _environment_rows(document["environment"])),
        "commands": _commands(document),
        "symbols": SYMBOLS,
    }


def _drawings(document: dict[str, Any]) -> dict[str, Any]:
    def over_depth(*keys: str) -> list[Chart | Omitted]:
        return [charts.over_depth(document, key) for key in keys]

    over_training = [charts.gain_over_training(document, way) for way in ("forward", "backward")]
    gains = over_depth("composite-forward", "composite-backward", "sublayer-forward", "sublayer-backward")
    return {
        "losses": _group([charts.loss(document), charts.loss_difference(document), charts.gradient_norm(document)]),
        "gains": _group(gains + over_training),
        "collapse": _group(over_depth("collapse", "stream-difference")),
        "energies": _group(over_depth("energy", "energy-gain", "gradient-energy-gain")),
        "maps": charts.heat_maps(document),
        "colours": [charts.look(index).colour for index in range(len(document["arms"]))],
    }


def _group(drawings: list[Chart | Omitted]) -> Group:
    return Group(
        [drawing for drawing in drawings if isinstance(drawing, Chart)],
        [drawing for drawing in drawings if isinstance(drawing, Omitted)],
    )


# ---------------------------------------------------------------- summary


def summary(document: dict[str, Any]) -> list[str]:
    """What was trained, who has the lowest loss and how far to trust that, and what it cost, sentence by sentence."""
    return [_scope(document), *_loss(document), *_cost(document)]


def _scope(document: dict[str, Any]) -> str:
    arms, seeds = document["arms"], document["seeds"]
    names = _named([arm["name"] for arm in arms])
    tokens = sorted({arm["tokens"] for arm in arms if arm["tokens"] is not None})
    amount = f" on {listed(list(map(counted, tokens)))} tokens" if tokens else ""
    each = " each" if len(arms) > 1 and len(tokens) == 1 else ""
    many = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return f"{names} {'was' if len(arms) == 1 else 'were'} trained{amount}{each}, with {many}."


def _loss(document: dict[str, Any]) -> list[str]:
    arms = document["arms"]
    without = [arm["name"] for arm in arms if arm["val_loss"] is None]
    missing = [f"{listed(without)} {_has(without)} no final validation loss ({MISSING})."] if without else []
    ranked = sorted((arm for arm in arms if arm["val_loss"] is not None), key=lambda arm: arm["val_loss"])
    if len(arms) == 1:
        return missing or [f"Its validation loss is {loss(arms[0]['val_loss'])} nats per token."]
    if not document["comparable"]:
        return [
            *missing,
            f"The runs are not comparable ({'; '.join(document['reasons'])}), so their losses are not ranked.",
        ]
    if len(ranked) < 2:
        return missing
    best, other = ranked[0], ranked[1] if ranked[0] is arms[0] else next(arm for arm in arms if arm in ranked)
    gap = other["val_loss"] - best["val_loss"]
    lead = f"The lowest validation loss is that of {best['name']}, {loss(best['val_loss'])} nats per token, "
    lead += f"{gap:.4f} below that of {other['name']} ({loss(other['val_loss'])})."
    rivals = [other] if other is ranked[1] else [other, ranked[1]]
    return [*missing, lead, *_certainty(document, best["name"], [rival["name"] for rival in rivals])]


def _certainty(document: dict[str, Any], best: str, rivals: list[str]) -> list[str]:
    """How far the lead may be trusted: against the first arm, and against the runner-up where that is another."""
    rows = [row for rival in rivals for row in document["differences"] if {row["a"], row["b"]} == {best, rival}]
    if all(len(row["seeds"]) < 2 for row in rows):
        return ["One seed settles nothing: another seed could reverse the order."]
    return [_shown(row, best) for row in rows]


def _shown(row: dict[str, Any], best: str) -> str:
    rival = row["a"] if row["b"] == best else row["b"]
    if row["interval"] is None:
        return f"Against {rival}: {row['verdict']}."
    low, high = row["interval"] if row["b"] == best else (-row["interval"][1], -row["interval"][0])
    interval = f"the 95 % interval over {len(row['seeds'])} seeds, {signed(low)} to {signed(high)},"
    if row["verdict"] == "no difference shown":
        return f"Against {rival} no difference is shown: {interval} holds zero."
    return f"Against {rival} {interval} leaves zero out."


def _cost(document: dict[str, Any]) -> list[str]:
    first, *others = document["arms"]
    timed = sorted((arm for arm in others if arm["relative_step_time"] is not None), key=_step_time)
    if not timed:
        return []
    shown = timed if len(timed) < FEW else [timed[0], timed[-1]]
    times = listed([f"{_step_time(arm):.2f} times as long in {arm['name']}" for arm in shown])
    between = "" if shown is timed else "between "
    same = any(row["name"] == "hardware" and row["state"] == "same" for row in document["requirements"])
    caveat = "timed in separate runs" if same else "but the hardware or its settings were not the same"
    return [f"Compared with {first['name']}, a training step took {between}{times} ({caveat})."]


def _step_time(arm: dict[str, Any]) -> float:
    return float(arm["relative_step_time"])


def path_summary(arms: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every arm's name and a few sentences on its residual path: gains, broken laws, what has become of the streams."""
    return [(arm["name"], _path(arm["measurements"][-1] if arm["measurements"] else None)) for arm in arms]


def _path(measurement: dict[str, Any] | None) -> str:
    if measurement is None:
        return "the residual path was not measured."
    if measurement["streams"] == 1:
        return "a single stream, which nothing mixes; the gain is 1 by construction."
    composite = measurement["composite"]
    forward, backward = (charts.largest(composite[way], f"{way}_gain") for way in ("forward", "backward"))
    gains = f"the composite gain is {number(forward)} forwards and {number(backward)} backwards at the worst token"
    return " ".join([f"{gains}; it {_broken(measurement['laws'])}.", *_streams(measurement, forward)])


def _streams(measurement: dict[str, Any], gain: Number) -> list[str]:
    """What gains do not show: whether differences between streams survive, and whether there are any."""
    kept = measurement["composite"]["forward"][-1]["difference_gain"]["median"]
    share = measurement["sublayers"][-1]["stream_difference"]["median"]
    sentences = []
    if kept is not None:
        text = (
            f"A difference between streams leaves the last sublayer multiplied by at most {number(kept)} (median token)"
        )
        hidden = gain is not None and gain <= QUIET and kept < COLLAPSED
        sentences.append(text + (": the streams collapse, which a gain near 1 does not show." if hidden else "."))
    if share is not None and share < COPIES:
        text = f"The streams are nearly copies of each other ({number(100 * share, 2)} % of their energy lies in"
        sentences.append(f"{text} differences), so that a mixer has little to work on.")
    return sentences


def _broken(laws: list[dict[str, Any]]) -> str:
    failed = [law_name(row["law"]) for row in laws if row["verdict"] == "fail"]
    warned = [law_name(row["law"]) for row in laws if row["verdict"] == "warn"]
    text = (
        f"fails {len(failed)} of {len(laws)} laws ({listed(failed)})" if failed else f"fails none of {len(laws)} laws"
    )
    return text + (f" and has a warning for {listed(warned)}" if warned else "")


# ---------------------------------------------------------------- tables


def _requirements(document: dict[str, Any]) -> Table:
    rows = [
        (
            Cell(row["name"]),
            [
                Cell(row["state"], state=row["state"]),
                Cell("" if row["state"] == "same" else row["matters"]),
                Cell("losses" if row["decisive"] else "reading only"),
            ],
        )
        for row in document["requirements"]
    ]
    return Table("What must agree between runs", ["state", "if it differs", "bears on"], rows)


def _agreement(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was found the same of all that decides about losses, and what limits the reading without deciding."""
    limits = [f"{row['name']} ({row['state']}: {row['matters']})" for row in rows if row["state"] != "same"]
    return {"decided": listed([row["name"] for row in rows if row["decisive"]]), "limits": listed(limits)}


def _results(document: dict[str, Any]) -> Table:
    arms = document["arms"]
    counts = [arm["peak_memory_counted"] for arm in arms]
    counted_memory = str(counts[0]) if len(set(counts)) == 1 else "see the run's status.json"
    rows = [
        _row("validation loss", "nats per token, mean over seeds", arms, lambda arm: loss(arm["val_loss"])),
        _row("bits per byte", "validation, mean over seeds", arms, lambda arm: loss(arm["val_bpb"])),
        _row("training loss", "last logged, mean over seeds", arms, lambda arm: loss(arm["train_loss"])),
        _row("seeds", "", arms, lambda arm: listed(list(map(str, arm["seeds"])))),
        _row("steps", "", arms, lambda arm: str(arm["steps"])),
        _row("training tokens", "", arms, lambda arm: _count(arm["tokens"])),
        _row("parameters", "", arms, lambda arm: counted(arm["params"])),
        _row("of them in the residual path", "", arms, lambda arm: counted(arm["parameters"].get("path", 0))),
        _row("FLOPs per token", "forward and backward", arms, lambda arm: counted(arm["flops_per_token"])),
        _row("tokens per second", "median of logged steps", arms, lambda arm: _rate(arm["tokens_per_second"])),
        _row("step time", f"relative to {arms[0]['name']}", arms, lambda arm: _times(arm["relative_step_time"])),
        _row("peak memory", counted_memory, arms, lambda arm: memory(arm["peak_memory"])),
    ]
    if any(len(arm["seeds"]) > 1 for arm in arms):
        rows[1:1] = [_by_seed(arms, seed) for seed in document["seeds"]]
    return Table("Loss, size, speed and memory", [arm["name"] for arm in arms], rows, arms=True)


def _row(
    name: str, detail: str, arms: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]
) -> tuple[Cell, list[Cell]]:
    return Cell(name, detail), [Cell(cell(arm)) for arm in arms]


def _by_seed(arms: list[dict[str, Any]], seed: int) -> tuple[Cell, list[Cell]]:
    values = [arm["val_loss_by_seed"] for arm in arms]
    cells = [Cell(loss(table[str(seed)]) if str(seed) in table else "no run") for table in values]
    return Cell("validation loss", f"seed {seed}"), cells


def _differences(document: dict[str, Any]) -> Table:
    rows = [
        (
            Cell(f"{row['b']} {MINUS} {row['a']}"),
            [
                Cell(signed(row["mean"])),
                Cell(_verdict(row) if document["comparable"] else "not comparable"),
                Cell(" to ".join(map(signed, row["interval"])) if row["interval"] else "none"),
                Cell("none" if row["p_value"] is None else number(row["p_value"], 2)),
                Cell(str(len(row["seeds"]))),
            ],
        )
        for row in document["differences"]
    ]
    columns = ["mean", "verdict", "95 % interval", "p", "seeds"]
    return Table("Differences of validation loss, paired by seed", columns, rows)


def _verdict(row: dict[str, Any]) -> str:
    return f"{row['b']} is {row['verdict']}" if row["verdict"] in ("lower", "higher") else row["verdict"]


def _laws(document: dict[str, Any]) -> Table | None:
    """Laws by arms, at the last measurement."""
    judged = {arm["name"]: arm["measurements"][-1]["laws"] for arm in document["arms"] if arm["measurements"]}
    if not judged:
        return None
    order = dict.fromkeys(row["law"] for laws in judged.values() for row in laws)
    meanings = {row["law"]: row["meaning"] for laws in judged.values() for row in laws}
    rows = [
        (Cell(law_name(law), meanings[law]), [_law_cell(judged.get(arm["name"], []), law) for arm in document["arms"]])
        for law in order
    ]
    return Table(
        "Laws of the residual path at the last measurement", [arm["name"] for arm in document["arms"]], rows, True
    )


def _law_cell(laws: list[dict[str, Any]], law: str) -> Cell:
    row = next((row for row in laws if row["law"] == law), None)
    if row is None:
        return Cell("not measured")
    evidence, declared = row["evidence"], row["declared"]
    parts = []
    if evidence:
        parts.append(f"{evidence['measure'].replace('_', ' ')} {number(evidence['value'])} at {row['worst']}")
    elif row["verdict"] == "fail":
        parts.append("not finite anywhere")
    if declared:
        parts.append(_declared(declared))
    return Cell(row["verdict"], "; ".join(parts), row["verdict"].replace(" ", "-"))  # fmt: skip


def _declared(declared: dict[str, Any]) -> str:
    tolerance, span = declared["tolerance"], declared["logit_range"]
    text = f"declared to {number(tolerance, 1)}" if tolerance else "declared exact"
    return text if span is None else f"{text} while logits span at most {number(span, 1)}"


def _path_numbers(document: dict[str, Any]) -> Table | None:
    arms = document["arms"]
    if not any(arm["measurements"] for arm in arms):
        return None
    rows = [(Cell(name, detail), [Cell(_measured(arm, read)) for arm in arms]) for name, detail, read in PATH_NUMBERS]
    return Table("The residual path in numbers, at the last measurement", [arm["name"] for arm in arms], rows, True)


def _measured(arm: dict[str, Any], read: Callable[[dict[str, Any]], Number]) -> str:
    if not arm["measurements"]:
        return "not measured"
    measurement = arm["measurements"][-1]
    value = read(measurement)
    # One stream has no differences and no cosine: that is no numerical failure.
    return "one stream" if value is None and measurement["streams"] == 1 else number(value)


def _composite(way: str, measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: charts.largest(measurement["composite"][way], measure)


def _sublayers(measure: str) -> Callable[[dict[str, Any]], Number]:
    return lambda measurement: charts.largest(measurement["sublayers"], measure)


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
    ("share of energy in stream differences", "before the last sublayer, median token", _last("stream_difference")),
    ("effective streams", "before the last sublayer, median token", _last("effective_streams")),
    ("cosine between streams", "before the last sublayer, median token", _last("stream_cosine")),
)  # fmt: skip


def _config_differences(document: dict[str, Any]) -> Table:
    names = [arm["name"] for arm in document["arms"]]
    rows = [
        (Cell(key), [Cell(_value(values[name])) for name in names])
        for key, values in document["configuration"]["different"].items()
    ]
    return Table("Keys that differ between arms", names, rows, arms=True)


def _keys(caption: str, values: dict[str, Any]) -> Table:
    return Table(caption, ["value"], [(Cell(key), [Cell(_value(value))]) for key, value in values.items()])


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return "none" if value is None else str(value)


def _environment_rows(environment: dict[str, Any]) -> dict[str, Any]:
    git = environment.get("git")
    state = None if not git else f"{git['commit']} ({'clean' if git['clean'] else 'with uncommitted changes'})"
    return {key: value for key, value in environment.items() if key != "git"} | {"git": state}


def _samples(arms: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """For every prompt, what each arm made of it."""
    count = max((len(arm["samples"]) for arm in arms), default=0)
    return [
        [{"arm": arm["name"]} | arm["samples"][number] for arm in arms if number < len(arm["samples"])]
        for number in range(count)
    ]


def _commands(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What to type to make the runs again; None where no overrides were recorded."""
    fits = [
        {"arm": arm["name"], "run": run, "command": f"mhc-train fit {shlex.join(overrides)}" if overrides else None}
        for arm in document["arms"]
        for run, overrides in zip(arm["runs"], arm["overrides"], strict=True)
    ]
    runs = [fit["run"] for fit in fits]
    return [*fits, {"arm": None, "run": None, "command": f"mhc-train compare {shlex.join(runs)}"}]


# ---------------------------------------------------------------- words and numbers


def number(value: Number, digits: int = 4) -> str:
    """A measurement to so many significant digits; null, which is what JSON has for them, is "not finite"."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0 or isinstance(value, int):
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.{digits - 1}e}").replace("-", MINUS).replace("e+", "e")
    rounded = float(f"{value:.{digits - 1}e}")  # 0.99999 is 1.000, not 1.0000
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:.{decimals}f}".replace("-", MINUS)


def loss(value: Number) -> str:
    """A loss or bits per byte, to four decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: Number) -> str:
    """A difference of losses, with its sign."""
    return "none" if value is None else f"{value:+.4f}".replace("-", MINUS)


def memory(size: int) -> str:
    """Bytes as MiB, or GiB from one GiB on."""
    return f"{size / 2**30:.2f}\u00a0GiB" if size >= 2**30 else f"{size / 2**20:.1f}\u00a0MiB"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def _named(names: list[str]) -> str:
    return listed(names) if len(names) <= FEW else f"{len(names)} arms"


def law_name(law: str) -> str:
    """A law's identifier in words."""
    direction = {"closure_forward": "closure forwards", "closure_backward": "closure backwards"}
    return direction.get(law, law.replace("_", " "))


def markdown_text(text: Any) -> str:
    """Text that shows as it is in a Markdown table or paragraph."""
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", " ".join(str(text).split())).replace("<", "&lt;").replace(">", "&gt;")


def fenced(text: str) -> str:
    """A fenced block that no text inside can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _has(names: Iterable[str]) -> str:
    return "has" if len(list(names)) == 1 else "have"


def _count(value: Number) -> str:
    return MISSING if value is None else counted(value)


def _rate(value: Number) -> str:
    return MISSING if value is None else f"{value:.0f}"


def _times(value: Number) -> str:
    return MISSING if value is None else f"{value:.2f}\u00a0\u00d7"
