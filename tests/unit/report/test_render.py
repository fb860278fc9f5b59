"""The report's pages: true to the run files, safe with hostile text, accessible, and the same bytes every time."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit, write_lines, write_run
from pages import Page, without_script

from mhc_train.report import charts, tables, words
from mhc_train.report import summary as sentences
from mhc_train.report.comparison import Setting, compare_runs
from mhc_train.report.readings import prominent
from mhc_train.report.render import to_html, to_markdown, write_report

Document = dict[str, Any]
RESULTS, COSTS = "Losses at the end of training", "Size, speed and memory"
DIFFERENCES = "Differences of validation loss with residual, paired by seed"
OTHERS = "Differences of validation loss between the other arms, paired by seed"
LAWS, PATH = (
    "Conservation scorecard: the laws of the residual path at the last measurement",
    "The residual path in numbers, at the last measurement",
)
HOSTILE = "</span><script>alert(1)</script><img src=x onerror=alert(2)> & ```\n# | {{ 7 * 7 }} {% raw %}"


def three(root: Path) -> Document:
    return compare_runs(
        [
            write_run(root, "residual", losses=(8.3, 7.0, 6.54400)),
            write_run(root, "hc", losses=(8.3, 6.9, 6.47820), gain=1.5),
            write_run(root, "mhc", losses=(8.3, 7.1, 6.56040), contraction=0.6),
        ]
    )


def one(root: Path) -> Document:
    return compare_runs([write_run(root, "mhc")])


def unmeasured(root: Path) -> Document:
    return compare_runs([write_run(root, kind, measurements=0, samples=[]) for kind in ("residual", "mhc")])


def six(root: Path) -> Document:
    configs = [{"connection": {"gate_init": 0.01 * number}} for number in range(1, 5)]
    variants = [write_run(root, "mhc", config=config) for config in configs]
    return compare_runs([write_run(root, "residual"), write_run(root, "hc", gain=2.0, sublayers=8), *variants])


def seeds(root: Path) -> Document:
    losses = {"residual": (3.0, 3.1, 3.2), "mhc": (2.9, 2.99, 3.11)}
    return compare_runs(
        [write_run(root, kind, seed, (8.0, 7.0, finals[seed])) for kind, finals in losses.items() for seed in range(3)]
    )


def incomparable(root: Path) -> Document:
    return compare_runs([write_run(root, "residual"), write_run(root, "mhc", losses=(8.0, 7.0, 6.0, 5.0))])


def not_finite(root: Path) -> Document:
    """Every number of the residual path, and every loss but the first, became null."""
    document = compare_runs([write_run(root, "residual"), write_run(root, "hc")])
    arm = document["arms"][1]
    for key in ("last", "courses"):
        arm[key] = json.loads(re.sub(r"-?\d+\.\d+(e-?\d+)?", "null", json.dumps(arm[key])))
    arm |= dict.fromkeys(("train_loss", "val_loss", "val_bpb", "tokens_per_second", "relative_step_time"))
    arm["val_loss_by_seed"] = {"0": None}
    return document


def hostile(root: Path) -> Document:
    samples = [{"prompt": HOSTILE, "continuation": HOSTILE}]
    document = compare_runs([write_run(root, kind, samples=samples, overrides=(HOSTILE,)) for kind in ("hc", "mhc")])
    document["data"]["attribution"] = document["environment"]["command"] = HOSTILE
    renamed = json.dumps(document).replace('"name": "mhc"', f'"name": {json.dumps(HOSTILE)}')
    renamed = renamed.replace('"mhc":', f"{json.dumps(HOSTILE)}:").replace('"b": "mhc"', f'"b": {json.dumps(HOSTILE)}')
    document = json.loads(renamed)
    assert isinstance(document, dict)
    return document


MAKERS = {make.__name__: make for make in (three, one, unmeasured, six, seeds, incomparable, not_finite, hostile)}


@dataclass(frozen=True)
class Case:
    """A document with both its pages, rendered once for all tests that only look."""

    document: Document
    html: str
    markdown: str

    @cached_property
    def page(self) -> Page:
        return Page(self.html)


Cases = Callable[[str], Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    @cache
    def case(name: str) -> Case:
        document = MAKERS[name](tmp_path_factory.mktemp(name))
        return Case(document, to_html(document), to_markdown(document))

    return case


@pytest.fixture(params=MAKERS)
def case(request: pytest.FixtureRequest, cases: Cases) -> Case:
    return cases(request.param)


# ---------------------------------------------------------------- whatever the runs


def test_the_page_is_well_formed_and_loads_nothing(case: Case) -> None:
    text = without_script(case.html)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "image"} & {tag for tag, _ in page.elements}
    assert not [
        name for _, attributes in page.elements for name in attributes if name == "src" or name.startswith("on")
    ]
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    for link in page.values("href"):
        assert link.startswith(("#", "https://arxiv.org/"))


def test_ids_are_unique_and_references_resolve(case: Case) -> None:
    page = case.page
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = {name for value in page.values("aria-labelledby") for name in value.split()}
    wanted |= {link[1:] for link in page.values("href") if link.startswith("#")}
    assert wanted <= set(ids)


def test_the_page_can_be_read_without_seeing_it(case: Case) -> None:
    page = case.page
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in head for head in page.all("th"))
    drawings = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == len(page.all("desc"))


def test_nothing_is_left_unsaid_or_undefined(case: Case) -> None:
    for text in (case.page.text, case.markdown):
        assert not re.search(r"\b(None|nan|inf|Undefined|dict_keys|True|False)\b", text)


def test_markdown_tables_keep_their_columns(case: Case) -> None:
    width = 0
    for line in case.markdown.split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line))
        if not line.startswith("| "):
            width = 0
        elif width:
            assert cells == width, line
        else:
            width = cells


def test_every_arm_is_named_everywhere(case: Case) -> None:
    page = case.page
    names = [" ".join(arm["name"].split()) for arm in case.document["arms"]]
    assert [" ".join(name.split()) for name in page.tables[RESULTS][0][1:]] == names


# ---------------------------------------------------------------- what is written


def test_the_files_are_written_with_the_same_bytes_every_time(cases: Cases, tmp_path: Path) -> None:
    document = cases("three").document
    page = write_report(document, tmp_path / "report")
    assert page == tmp_path / "report" / "report.html"
    assert page.read_text() == cases("three").html
    assert (tmp_path / "report" / "report.md").read_text() == cases("three").markdown
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored == json.loads(json.dumps(document))
    # The stored document is enough to draw the page again.
    assert to_html(stored) == cases("three").html


def test_numbers_are_those_of_the_run_files(cases: Cases) -> None:
    document, page = cases("three").document, cases("three").page
    for column, arm in enumerate(document["arms"]):
        lines = [json.loads(line) for line in (Path(arm["runs"][0]) / "metrics.jsonl").read_text().splitlines()]
        status = json.loads((Path(arm["runs"][0]) / "status.json").read_text())
        assert page.row(RESULTS, "validation loss")[column] == f"{lines[-1]['val_loss']:.4f}"
        assert page.row(RESULTS, "bits per byte")[column] == f"{lines[-1]['val_bpb']:.4f}"
        assert page.row(RESULTS, "training loss")[column] == f"{lines[-1]['train_loss']:.4f}"
        rates = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
        assert float(page.row(COSTS, "tokens per second")[column]) == pytest.approx(sum(rates) / 2, abs=0.5)
        assert page.row(COSTS, "peak memory")[column] == f"{status['peak_memory'] / 2**20:.1f}\u00a0MiB"
    assert page.row(COSTS, "parameters") == ["1\u00a0M", "1.35\u00a0M", "1.35\u00a0M"]
    assert page.row(COSTS, "of them in the residual path") == ["0", "350\u00a0k", "350\u00a0k"]
    assert page.row(PATH, "composite forward gain") == ["1.000", f"{1.5**4:.3f}", "1.000"]
    assert page.row(PATH, "composite difference gain")[2] == f"{0.4**4:.5f}"


def test_markdown_has_the_same_results(cases: Cases) -> None:
    assert "| 6.5440 | 6.4782 | 6.5604 |" in cases("three").markdown


# ---------------------------------------------------------------- what is said


def summary(document: Document) -> str:
    return " ".join(sentences.summary(document))


def path_summary(document: Document) -> dict[str, str]:
    return dict(sentences.path_summary(document))


def test_one_seed_settles_nothing(cases: Cases) -> None:
    document, page = cases("three").document, cases("three").page
    text = summary(document)
    assert (
        "The lowest validation loss is that of hc, 6.4782 nats per token, 0.0658 below that of residual (6.5440)"
        in text
    )
    assert "One seed settles nothing" in text
    assert [row[2] for row in page.tables[DIFFERENCES][1:]] == ["one seed: settles nothing"] * 2
    assert [row[2] for row in page.tables[OTHERS][1:]] == ["one seed: settles nothing"]
    for claim in ("win", "wins", "winner", "better", "best", "outperform"):
        assert not re.search(rf"\b{claim}\b", page.text + cases("three").markdown, re.IGNORECASE)


def test_several_seeds_with_an_interval(cases: Cases) -> None:
    document, page = cases("seeds").document, cases("seeds").page
    text = summary(document)
    assert "mhc is lower than residual: \u22120.1000 nats (\u22123.23\u00a0%), 95 % interval" in text
    assert "settles nothing" not in text
    (row,) = page.tables[DIFFERENCES][1:]
    low, high = document["differences"][0]["interval"]
    assert row[:3] == ["mhc \u2212 residual", "\u22120.1000", "mhc is lower"]
    assert row[3] == f"{low:+.4f} to {high:+.4f}".replace("-", "\u2212")
    assert page.row(RESULTS, "seeds") == ["0, 1 and 2"] * 2
    assert [row[1:] for row in page.tables[RESULTS][3:6]] == [
        ["3.0000", "2.9000"],
        ["3.1000", "2.9900"],
        ["3.2000", "3.1100"],
    ]


def test_an_interval_that_holds_zero_is_no_difference(tmp_path: Path) -> None:
    finals = {"residual": (3.0, 3.1), "mhc": (2.9, 3.19)}
    document = compare_runs(
        [
            write_run(tmp_path, kind, seed, (8.0, loss))
            for kind, each in finals.items()
            for seed, loss in enumerate(each)
        ]
    )
    text = summary(document)
    assert "Between mhc and residual: no difference shown (" in text
    assert re.search(r"\d+ more seeds an arm would be needed to see 0.5 %", text)


def test_runs_that_are_not_comparable_are_not_ranked(cases: Cases) -> None:
    document, page = cases("incomparable").document, cases("incomparable").page
    assert "Not comparable" in page.text and "token budget different" in page.text
    assert "lowest" not in summary(document)
    assert page.tables[DIFFERENCES][1][2] == "not comparable"
    assert "**Not comparable**" in cases("incomparable").markdown


def test_what_must_agree_is_shown_whole(cases: Cases) -> None:
    document = cases("incomparable").document
    rows = cases("incomparable").page.tables["What must agree between runs"][1:]
    assert len(rows) == len(document["requirements"])
    row = next(row for row in rows if row[0] == "token budget")
    assert row[:3] == ["token budget", "\u2717different", "one was trained on more text"]
    (told,) = (each["values"] for each in document["requirements"] if each["name"] == "token budget")
    assert len(told) == 2 and all(value["value"] in row[3] for value in told)


def test_what_limits_the_reading_is_told_of_comparable_runs(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", environment={"threads": 8})])
    limit = "hardware (different: speeds and memory are not comparable)"
    assert limit in Page(to_html(document)).text and limit in to_markdown(document)
    assert "the hardware or its settings were not the same" in summary(document)


def test_a_single_run_is_reported_without_a_comparison(cases: Cases) -> None:
    page = cases("one").page
    assert "nothing is compared" in page.text
    assert DIFFERENCES not in page.tables
    assert "No chart \u201cLoss gap against the reference\u201d: there is only one arm." in page.text


def test_verdicts_are_words_with_the_worst_place(cases: Cases) -> None:
    text, page = cases("three").html, cases("three").page
    assert page.row(LAWS, "dissipation") == ["\u2713ok", "\u2717fail", "\u2713ok"]
    assert page.row(LAWS, "closure forwards") == ["\u2713ok", "!warn", "\u2713ok"]
    assert page.row(LAWS, "no collapse")[0] == "not applicable"
    assert "spectral norm 1.500 at layers.0.attention" in text


def test_amplification_is_told(cases: Cases) -> None:
    text = path_summary(cases("three").document)["hc"]
    assert "gain is 5.062 forwards and 5.062 backwards" in text
    assert "laws (mass, time symmetry, dissipation, majorisation" in text


def test_collapse_behind_a_perfect_gain_is_told(cases: Cases) -> None:
    text = path_summary(cases("three").document)["mhc"]
    assert "gain is 1.000 forwards" in text
    assert (
        "multiplied by at most 0.02560 (median token): the streams collapse, which a gain near 1 does not show" in text
    )


def test_streams_that_are_copies_are_told(cases: Cases) -> None:
    document = copy.deepcopy(cases("one").document)
    document["arms"][0]["last"]["sublayers"][-1]["stream_difference"]["median"] = 1.2e-5
    assert "nearly copies of each other (0.0012 % of their energy" in path_summary(document)["mhc"]


def test_numbers_that_are_not_finite_are_told(cases: Cases) -> None:
    document, page = cases("not_finite").document, cases("not_finite").page
    assert page.row(RESULTS, "validation loss")[1].startswith("not finite")
    assert page.row(PATH, "composite forward gain") == ["1.000", "not finite"]
    assert "1 run ended without a finite validation loss (hc with seed 0)" in summary(document)
    assert "Only residual has a final validation loss" in summary(document)
    assert "gain is not finite forwards" in path_summary(document)["hc"]


def test_unmeasured_paths_are_told(cases: Cases) -> None:
    page = cases("unmeasured").page
    assert LAWS not in page.tables and "samples" not in page.values("id")
    assert "The residual path was not measured in these runs" in page.text


def test_a_run_that_was_not_measured_beside_one_that_was(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "hc", measurements=0), write_run(tmp_path, "mhc")])
    page = Page(to_html(document))
    assert page.row(LAWS, "mass") == ["not measured", "\u2713ok"]
    assert page.row(PATH, "streams") == ["not measured", "4"]


def test_hostile_text_stays_text(cases: Cases) -> None:
    text, page = cases("hostile").html, cases("hostile").page
    assert "<script>alert" not in text and "<img" not in text
    assert "alert(2)" in page.text
    assert "{{ 7 * 7 }}" in page.text  # shown, not evaluated
    fences = [line for line in cases("hostile").markdown.split("\n") if line.startswith("````")]
    assert fences and len(fences) % 2 == 0


def test_commands_survive_the_shell(tmp_path: Path) -> None:
    overrides = ("connection=mhc", "name=it's a name", "data.path=/a b/*.txt")
    document = compare_runs([write_run(tmp_path, "mhc", overrides=overrides)])
    (fit,) = tables.commands(document)
    assert shlex.split(fit["command"]) == ["mhc-train", "fit", *overrides]
    assert shlex.split(tables.report_command(document)) == ["mhc-train", "compare", *document["arms"][0]["runs"]]


def test_a_run_without_overrides_has_no_invented_command(tmp_path: Path) -> None:
    text = Page(to_html(compare_runs([write_run(tmp_path, "mhc", overrides=())]))).text
    assert "has no overrides on record" in text
    assert "mhc-train fit " not in text.partition("How to reproduce")[2].partition("Software and hardware")[0]


def test_a_loss_that_was_never_logged(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc")]
    write_lines(paths[1] / "metrics.jsonl", [{"step": 20, "tokens": 40_960}])
    document = compare_runs(paths)
    assert Page(to_html(document)).row(RESULTS, "validation loss")[1] == words.MISSING


def test_what_failed_or_left_nothing_is_told_first(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, kind, seed) for kind in ("residual", "hc") for seed in (0, 1)]
    edit(paths[3] / "status.json", status="failed", error="the loss is not finite")
    paths.append(write_run(tmp_path, "mhc", status={"status": "failed", "error": "killed"}))
    document = compare_runs(paths, Setting(lost=({"overrides": ["connection=ihc"], "error": "no data"},), concurrent=2))
    told = sentences.summary(document)
    assert told[1] == "2 runs did not finish (hc with seed 1 and mhc with seed 0); no mean has a number of such a run."
    assert told[2] == "1 planned run left nothing to compare."
    assert "2 runs shared the machine" in told[-1]
    for text in (to_html(document), to_markdown(document)):
        assert "the loss is not finite" in text and "no data" in text
    page = Page(to_html(document))
    assert page.row(RESULTS, "validation loss")[2] == "failed"
    assert [row[1:] for row in page.tables[RESULTS][3:5]] == [
        ["6.5000", "6.5000", "failed"],
        ["6.5000", "failed", "no run"],
    ]
    assert told[0].startswith(
        "residual and hc were trained on 41\u00a0k tokens each, with 1 to 2 seeds; no run of mhc fin"
    )
    assert tables.untold(document) == "1 planned run that left nothing and that 2 runs shared the machine"
    runs = [str(path) for path in paths]
    assert shlex.split(tables.report_command(document))[2:] == [*runs, "--against", "residual"]
    assert page.row("Training stability, all seeds", "runs that did not finish") == ["0", "1", "1"]


def test_tuning_is_told_with_its_edges(cases: Cases) -> None:
    losses = {"1e-3": 6.2, "3e-3": 6.0}
    row = {"arm": ["connection=hc"], "key": "optim.lr", "losses": losses, "chosen": "3e-3", "edge": True, "seed": 0}
    document = cases("three").document | {"tuning": [row]}
    assert "for connection=hc the chosen value is at the edge of what was tried" in summary(document)
    table = tables.tuning(document)
    assert table and [cell.text for cell in table.rows[0][1]] == ["1e-3: 6.2000; 3e-3: 6.0000", "3e-3", "0"]
    assert "No tuning is on record" in summary(cases("three").document)


def test_many_arms_stand_in_rows_and_most_of_them_in_the_background(cases: Cases) -> None:
    document = copy.deepcopy(cases("three").document)
    hc = document["arms"][1]
    others = [hc | {"name": f"hc {number}", "val_loss": 7.0 + number} for number in range(17)]
    document["arms"] += others
    assert prominent(document) == {0, 1, 2, 18, 19}
    table = tables.results(document)
    assert table.across and len(table.rows) == 20 and table.columns[0] == "validation loss"
    assert len(dict(charts.heat_maps(document))) == 4
    assert sum(style.quiet for style in charts.looks(document)) == 15


# ---------------------------------------------------------------- numbers and words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not finite"),
        (float("inf"), "not finite"),
        (0.0, "0"),
        (4, "4"),
        (1.0, "1.000"),
        (0.999999, "1.000"),
        (4.077027, "4.077"),
        (3000.4, "3000"),
        (36318.4, "36318"),
        (0.0028813, "0.002881"),
        (1.3434e-7, "1.343e\u22127"),
        (-0.1375, "\u22120.1375"),
        (6.864e6, "6.864e6"),
        (1e-10, "1.000e\u221210"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_memory() -> None:
    assert words.memory(800 * 2**20) == "800.0\u00a0MiB"
    assert words.memory(3 * 2**29) == "1.50\u00a0GiB"


@pytest.mark.parametrize(
    ("items", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (list("abc"), "a, b and c")]
)
def test_lists(items: list[str], text: str) -> None:
    assert words.listed(items) == text
