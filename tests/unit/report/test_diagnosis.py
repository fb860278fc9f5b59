"""The page of a diagnosis: true to its document, silent on what was not measured, accessible, and small."""

import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_diagnoses import diagnosis, exactly, untrained
from pages import Page, without_script

from mhc_train.report.charts import diagnosis as charts
from mhc_train.report.charts.depth import Subject
from mhc_train.report.charts.ledgers import BACKWARD, FORWARD, ledgers
from mhc_train.report.charts.spans import span_map
from mhc_train.report.depths import to_html as depths_to_html
from mhc_train.report.diagnosis import to_html, write_diagnosis
from mhc_train.report.readings import short_names
from mhc_train.report.words import MINUS

Document = dict[str, Any]
LAWS = "Laws of the residual path"
HOSTILE = "</svg><script>alert(1)</script> & $x$ {{ 7 * 7 }}"


def hostile() -> Document:
    return diagnosis(HOSTILE) | {"connection": HOSTILE, "basis": HOSTILE}


CASES = {
    "whole": [diagnosis(biases=True, verdicts={"mass": "fail", "energy": "not promised"})],
    "pair": [diagnosis("runs/a", verdicts={"mass": "warn"}), diagnosis("runs/b", gain=1.5, verdicts={"mass": "fail"})],
    "maps alone": [diagnosis("org/model", signals=False, estimates=False)],
    "one stream": [diagnosis(streams=1, contraction=0.0)],
    "one sublayer": [diagnosis(sublayers=1)],
    "hostile": [hostile()],
}


@cache
def html(name: str) -> str:
    """A case's page, drawn once for all tests that only look."""
    return to_html(CASES[name])


def description(svg: str) -> str:
    return ElementTree.fromstring(svg).findtext("desc") or ""


@pytest.mark.parametrize("name", CASES)
def test_every_page_stands_alone_and_can_be_read_without_seeing_it(name: str) -> None:
    text = without_script(html(name))
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "image"} & {tag for tag, _ in page.elements}
    assert "src" not in {key for _, attributes in page.elements for key in attributes}
    assert "default-src 'none'" in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.values("href")} <= set(ids)
    assert {part for value in page.values("aria-labelledby") for part in value.split()} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(page.all("svg")) == len(page.all("desc")) == text.count('role="img"')
    assert not re.search(r"\b(None|nan|inf|Undefined|True|False)\b", page.text)


def test_the_page_is_written_and_the_same_every_time(tmp_path: Path) -> None:
    path = write_diagnosis(CASES["pair"], tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html" and path.read_text() == html("pair")


def test_a_complete_document_has_every_section() -> None:
    links = [anchor["href"] for anchor in Page(html("whole")).all("a")]
    sections = "laws amplification conservation collapse energy mixer matrices information ablations biases"
    assert links == [f"#{name}" for name in ["main", *sections.split()]]


def test_what_was_not_measured_has_no_section() -> None:
    ids = Page(html("maps alone")).values("id")
    assert {"laws", "amplification", "conservation", "collapse", "matrices"} <= set(ids)
    assert not {"energy", "mixer", "information", "ablations", "biases"} & set(ids)


def test_one_stream_has_neither_gains_nor_matrices() -> None:
    ids = Page(html("one stream")).values("id")
    assert "energy" in ids and not {"amplification", "collapse", "matrices"} & set(ids)


def test_basis_and_convention_stand_at_the_top() -> None:
    header = Page(html("maps alone")).text.partition("What was measured")[0]
    assert "rows receive, columns send" in header and "sampled inputs of unit size" in header


def test_a_single_diagnosis_says_all_of_a_law_in_a_row() -> None:
    page = Page(html("whole"))
    verdict, worst, evidence, meaning, advice = page.row(LAWS, "mass")
    assert (verdict, worst) == ("\u2717fail", "layers.2.feedforward")
    assert evidence == "column error 1.000; declared to 0.001 while logits span at most 4"
    assert (meaning, advice) == ("what mass means", "what to try about mass")
    assert page.row(LAWS, "dissipation")[-1] == ""  # obeyed: nothing to try
    assert page.row(LAWS, "energy")[0] == "not promised"
    assert "ok to 0.001, warns to 0.01" in page.text


def test_narrow_screens_show_the_columns_name_before_each_cell_of_a_law() -> None:
    assert "warns to 0.01" in html("whole") and "@media (max-width: 40rem)" in html("whole")
    columns = ["verdict", "worst at", "evidence", "what it means", "what to try"]
    assert Page(html("whole")).values("data-column") == len(diagnosis()["laws"]) * 2 * columns  # biases have theirs


def test_a_law_that_is_not_declared_is_not_called_unmeasured() -> None:
    other = diagnosis("runs/b")
    other["laws"] = [law for law in other["laws"] if law["law"] != "energy"]
    page = Page(to_html([diagnosis("runs/a"), other]))
    assert page.row(LAWS, "energy") == ["\u2713ok", "not declared"]


def test_spans_say_what_their_numbers_stand_for() -> None:
    (chart,) = charts.spans(Subject("a", 0, diagnosis(sublayers=20)), "forward_gain")
    assert "Sublayer 0 is layers.0.attention, 1 is layers.0.feedforward and so on." in chart.caption
    words = ["".join(element.itertext()) for element in ElementTree.fromstring(chart.svg).iter("text")]
    ticks = [int(word) for word in words if re.fullmatch("[0-9]+", word)]
    assert ticks == 2 * [0, 3, 6, 9, 12, 15, 18]


def test_errors_have_no_axis_below_zero() -> None:
    (errors,) = charts.profiles([Subject("a", 0, diagnosis())], "row-error")
    (gains,) = charts.profiles([Subject("a", 0, diagnosis())], "spectral-norm")
    for chart, lowest in ((errors, "0.0000"), (gains, "0.9")):
        words = ["".join(element.itertext()) for element in ElementTree.fromstring(chart.svg).iter("text")]
        heights = [word for word in words if "." in word]
        assert heights[0].startswith(lowest) and not any(word.startswith("\u2212") for word in heights)


def test_error_bars_may_reach_below_zero() -> None:
    document = diagnosis()
    for row in document["ablations"]:
        row["standard_error"] = 1.0
    chart = charts.ablations(Subject("a", 0, document))
    assert chart is not None and "\u22121.0" in "".join(ElementTree.fromstring(chart.svg).itertext())


def test_untrained_depths_are_tabled_and_say_where_a_gain_ends() -> None:
    documents = [untrained("residual", {2: 1.0, 64: 1.0}, None, streams=1), untrained("hc", {2: 1e-7, 64: None})]
    page = Page(depths_to_html(documents))
    table = "Of the whole composite, by sublayers and connection"
    assert page.row(table, "2: hc") == ["1.000e\u22127", "1.000e\u22127", "0.5000"]
    assert page.row(table, "64: hc") == ["not finite", "not finite", "0.5000"]
    assert page.row(table, "2: residual")[-1] == "one stream" and page.row(table, "2: 1.1 I")[0] == "1.210"
    assert "largest over tokens. hc is no longer finite from 64 sublayers on." in page.text
    assert "residual is no longer" not in page.text


def test_several_diagnoses_stand_side_by_side_with_what_to_try() -> None:
    page = Page(html("pair"))
    assert page.tables[LAWS][0][1:] == ["a", "b"]
    assert page.row(LAWS, "mass") == ["!warn", "\u2717fail"]
    assert page.row("What to try", "mass") == ["a and b", "what to try about mass"]
    assert page.row("The residual path in numbers", "composite forward gain") == ["1.000", f"{1.5**6:.2f}"]


def test_biases_alone_have_numbers_of_their_own() -> None:
    page = Page(html("whole"))
    assert "Biases alone: " + LAWS in page.tables
    assert "chart-biases-collapse-title" in page.values("id")


def test_hostile_text_stays_text() -> None:
    assert "<script" not in without_script(html("hostile")) and "{{ 7 * 7 }}" in Page(html("hostile")).text


def test_deep_and_wide_pages_stay_small() -> None:
    assert len(to_html([diagnosis(streams=8, sublayers=128, gain=1.02)])) < 2_000_000


def test_profiles_of_one_model_draw_each_statistic() -> None:
    subject = Subject("a", 0, diagnosis(gain=1.5))
    (chart,) = charts.profiles([subject], "composite-forward")
    text = description(chart.svg)
    for line in ("median token", "99th percentile", "largest token", "of token-mean maps"):
        assert f"{line}: 1.5 at the first point, {1.5**6:.4g} at the last" in text


def test_profiles_of_several_models_draw_a_line_each() -> None:
    subjects = [Subject("a", 0, diagnosis()), Subject("b", 1, diagnosis(contraction=0.5))]
    (chart,) = charts.profiles(subjects, "collapse")
    assert f"a: 0.75 at the first point, {0.75**6:.4g} at the last" in description(chart.svg)
    assert f"b: 0.5 at the first point, {0.5**6:.4g} at the last" in description(chart.svg)


def test_a_profile_that_only_one_model_has_is_drawn_of_that_one() -> None:
    subjects = [Subject("a", 0, diagnosis(signals=False)), Subject("b", 1, diagnosis())]
    (chart,) = charts.profiles(subjects, "logit-range")
    assert "a:" not in description(chart.svg) and "b: 6 at the first point" in description(chart.svg)


def test_numbers_that_are_not_finite_are_gaps_that_are_named() -> None:
    document = diagnosis()
    document["sublayers"][2]["spectral_norm"] = exactly(None)
    (chart,) = charts.profiles([Subject("a", 0, document)], "spectral-norm")
    assert "median token is not finite at 1 of the points" in chart.caption


def test_ledgers_are_shares_that_add_up() -> None:
    document = diagnosis()
    forward, backward = ledgers(Subject("a", 0, document))
    first = document["sublayers"][0]
    for chart, terms, total in ((forward, FORWARD, "energy_out"), (backward, BACKWARD, "gradient_out")):
        shares = [first[term]["mean"] / first[total]["mean"] for term, _ in terms]
        assert sum(shares) == pytest.approx(1)
        for share, (_, name) in zip(shares, terms, strict=True):
            assert f"{name}: {share:.4g} at the first point".replace("-", MINUS) in description(chart.svg)


def test_matrices_are_those_of_figure_8() -> None:
    drawn = charts.matrices(Subject("a", 0, diagnosis(sublayers=8)))
    single = ["layers.0.attention", "layers.1.feedforward", "layers.3.feedforward"]
    halves = ["composite of the first half", "composite of the second half", "whole composite"]
    assert [chart.title for chart in drawn] == single + halves
    assert "Row sums: 1.000 1.000 1.000 1.000. Column sums: 1.000" in description(drawn[-1].svg)


def test_triangles_name_their_extremes_and_what_is_not_finite() -> None:
    values = [[2.0, 8.0, None], [None, 0.5, 1.0], [None, None, 1.0]]
    chart = span_map("key", "Gain", "how to read it", "", values)
    assert chart is not None
    text = description(chart.svg)
    assert "Largest 8.000 from sublayer 0 to 1; smallest 0.5000 from sublayer 1 to 1; whole depth not finite" in text
    assert "Not finite at 1 spans" in text
    words = {"".join(element.itertext()) for element in ElementTree.fromstring(chart.svg).iter("text")}
    # The furthest from 1 is 8 times: six classes of a factor of 1.5 reach it.
    assert {"not finite", "1 (within 1 %)", f"up to {1.5**6:.0f}", f"down to {1.5**-2:.2f}"} <= words


def test_estimates_have_error_bars_and_are_called_so() -> None:
    drawn = charts.information([Subject("a", 0, diagnosis())])
    assert [chart.title.endswith("(estimate)") for chart in drawn] == [True, True]
    assert f"a: 1 at the first point, {0.95**5:.4g} at the last" in description(drawn[0].svg)


def test_ablations_are_drawn_by_kind_and_tabled_at_once() -> None:
    chart = charts.ablations(Subject("a", 0, diagnosis()))
    assert chart is not None and "identity: " in description(chart.svg) and "uniform: " in description(chart.svg)
    table = "Rise of the loss with all sublayers ablated at once"
    assert Page(html("whole")).row(table, "identity") == ["+0.0100 nats"]


def test_ablations_of_one_sequence_have_no_standard_error() -> None:
    document = diagnosis()
    for row in document["ablations"]:
        row |= {"standard_error": None, "loss_difference": -1e-7}
    page = Page(to_html([document]))
    assert page.row("Rise of the loss with all sublayers ablated at once", "identity") == ["+0.0000 nats"]
    assert "no standard error of one sequence" in page.text and "standard error not finite" not in page.text


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/x/checkpoints/step-00000010"], ["x"]),
        (["runs/x/checkpoints/step-00000010", "runs/y"], ["x", "y"]),
        (["runs/x/checkpoints/step-1", "runs/x/checkpoints/step-2"], ["step-1", "step-2"]),
        (["a/model", "b/model"], ["a/model", "b/model"]),
        (["a/model", "a/model"], ["a/model (1)", "a/model (2)"]),
    ],
)
def test_names_are_as_long_as_they_must_be(paths: list[str], names: list[str]) -> None:
    assert short_names([{"checkpoint": path} for path in paths]) == names
