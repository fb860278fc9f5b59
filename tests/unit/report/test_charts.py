"""The charts: deterministic, self-contained, described in words, true to the numbers, and left out when empty."""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_runs import write_run

import mhc_train.report
from mhc_train.report import charts
from mhc_train.report.charts import Chart, Omitted
from mhc_train.report.charts.curves import thinned
from mhc_train.report.comparison import compare_runs
from mhc_train.report.readings import largest
from mhc_train.report.words import counted

Document = dict[str, Any]
DRAWINGS: dict[str, Callable[[Document], Chart | Omitted]] = {
    "loss": charts.loss,
    "loss-difference": charts.loss_difference,
    "gradient-norm": charts.gradient_norm,
    **{f"training-{key}": partial(charts.over_training, key=key) for key in charts.COURSES},
    **{key: partial(charts.over_depth, key=key) for key in (charts.DEPTH_CHARTS | charts.LEDGER_CHARTS)},
}
OF_ONE_STREAM = ("energy", *charts.LEDGER_CHARTS)
PATH_DRAWINGS = [key for key in DRAWINGS if key not in ("loss", "loss-difference", "gradient-norm")]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Document:
    root = tmp_path_factory.mktemp("runs")
    return compare_runs(
        [
            write_run(root, "residual", losses=(8.3, 7.0, 6.25)),
            write_run(root, "hc", losses=(8.3, 6.9, 6.125), gain=1.5),
            write_run(root, "mhc", losses=(8.3, 7.1, 6.5), contraction=0.5),
        ]
    )


@pytest.fixture
def document(compared: Document) -> Document:
    """A copy that a test may change."""
    return copy.deepcopy(compared)


@pytest.fixture(scope="module")
def gallery(compared: Document) -> list[Chart]:
    """Every chart, drawn once for all tests that only look."""
    return everything(compared)


def drawn(drawing: Chart | Omitted) -> Chart:
    assert isinstance(drawing, Chart), drawing
    return drawing


def everything(document: Document) -> list[Chart]:
    maps = [chart for _, figures in charts.heat_maps(document) for chart in figures]
    return [drawn(draw(document)) for draw in DRAWINGS.values()] + maps


def words(svg: str) -> list[str]:
    """The text that is drawn."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def description(chart: Chart) -> str:
    return ElementTree.fromstring(chart.svg).findtext("desc") or ""


def test_equal_numbers_give_equal_bytes(gallery: list[Chart], document: Document) -> None:
    assert everything(document) == gallery


def test_every_chart_stands_alone_and_fits_any_page(gallery: list[Chart]) -> None:
    for chart in gallery:
        root = ElementTree.fromstring(chart.svg)
        assert root.tag == "svg" and root.get("role") == "img"
        assert root.get("viewBox") and root.get("width") is None
        assert "currentColor" in chart.svg
        for foreign in ("http", "<style", "<script", "<metadata", "<!", charts.INK):
            assert foreign not in chart.svg


def test_every_chart_is_described_in_words(gallery: list[Chart]) -> None:
    for chart in gallery:
        root = ElementTree.fromstring(chart.svg)
        title, desc = root.find("title"), root.find("desc")
        assert title is not None and title.text and desc is not None and len(desc.text or "") > 40
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"


def test_ids_are_unique_and_references_resolve(gallery: list[Chart]) -> None:
    page = "".join(chart.svg for chart in gallery)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_descriptions_hold_the_numbers(document: Document) -> None:
    text = description(drawn(charts.loss(document)))
    assert "residual: 8.3 at 0 tokens, 6.25 at" in text
    assert "hc: 8.3 at 0 tokens, 6.125 at" in text
    text = description(drawn(charts.loss_difference(document)))
    assert "hc: 0 at 0 tokens, \u22120.125 at" in text
    # Four sublayers with a gain of 1.5 each.
    text = description(drawn(charts.over_depth(document, "composite-forward")))
    assert f"hc: 1.5 at the first point, {1.5**4:.4g} at the last" in text
    text = description(drawn(charts.over_depth(document, "collapse")))
    assert f"mhc: 0.5 at the first point, {0.5**4:.4g} at the last" in text


def test_only_arms_that_are_drawn_stand_in_the_legend(document: Document) -> None:
    assert not {"residual"} & set(words(drawn(charts.over_depth(document, "collapse")).svg))
    assert {"residual", "hc", "mhc"} <= set(words(drawn(charts.over_depth(document, "energy")).svg))


def test_energy_is_per_stream(document: Document) -> None:
    mhc = document["arms"][2]["last"]["sublayers"]
    text = description(drawn(charts.over_depth(document, "energy")))
    assert f"mhc: {mhc[0]['energy_out']['mean'] / 4:.4g} at the first point" in text


@pytest.mark.parametrize("key", PATH_DRAWINGS)
def test_unmeasured_runs_have_no_empty_chart(tmp_path: Path, key: str) -> None:
    document = compare_runs([write_run(tmp_path, kind, measurements=0) for kind in ("hc", "mhc")])
    drawing = DRAWINGS[key](document)
    assert isinstance(drawing, Omitted)
    assert "not measured" in drawing.reason
    assert charts.heat_maps(document) == []


@pytest.mark.parametrize("key", [key for key in PATH_DRAWINGS if key not in OF_ONE_STREAM])
def test_single_streams_have_no_empty_chart(tmp_path: Path, key: str) -> None:
    drawing = DRAWINGS[key](compare_runs([write_run(tmp_path, "residual")]))
    assert isinstance(drawing, Omitted)
    assert "single stream" in drawing.reason


def test_a_single_measurement_is_no_curve(tmp_path: Path) -> None:
    drawing = charts.over_training(compare_runs([write_run(tmp_path, "mhc", measurements=1)]), "forward_gain")
    assert isinstance(drawing, Omitted)


def test_runs_without_a_logged_value_are_said_to_have_none(tmp_path: Path) -> None:
    path = write_run(tmp_path, "mhc")
    (path / "metrics.jsonl").write_text('{"step": 20, "tokens": 40960}\n')
    document = compare_runs([path])
    for key in ("loss", "gradient-norm", "loss-difference"):
        assert isinstance(DRAWINGS[key](document), Omitted)


def test_numbers_that_are_not_finite_become_gaps_that_the_caption_names(document: Document) -> None:
    hc = document["arms"][1]["last"]
    for statistic in hc["composite"]["forward"][3]["forward_gain"]:
        hc["composite"]["forward"][3]["forward_gain"][statistic] = None
    chart = drawn(charts.over_depth(document, "composite-forward"))
    assert "hc is not finite at 1 of the points" in chart.caption
    assert "nan" not in chart.svg.lower()
    document["arms"][1]["courses"][0]["points"][1]["forward_gain"] = None
    assert "hc is not finite at 1 of the points" in drawn(charts.over_training(document, "forward_gain")).caption


def test_large_ranges_have_a_logarithmic_axis(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "hc", gain=3.0, sublayers=8)])
    labels = words(drawn(charts.over_depth(document, "composite-forward")).svg)
    assert {"1", "10", "100", "1000"} <= set(labels)


def test_tiny_deviations_are_not_magnified(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "mhc", gain=1.0000001)])
    labels = words(drawn(charts.over_depth(document, "sublayer-forward")).svg)
    assert "1.000" in labels
    assert not any("e" in label and label[0].isdigit() for label in labels)


def test_heat_maps_print_entries_and_sums(document: Document) -> None:
    maps = dict(charts.heat_maps(document))
    assert list(maps) == ["hc", "mhc"]
    first, middle, last, whole = maps["mhc"]
    assert [first.title, middle.title, last.title] == [
        "layers.0.attention",
        "layers.1.attention",
        "layers.1.feedforward",
    ]
    labels = words(first.svg)
    # 0.5 I + 0.5 J / 4.
    assert labels.count(".625") == 4 and labels.count(".125") == 12
    assert labels.count("1.000") == 8
    assert {"row: receiving stream", "column: sending stream"} <= set(labels)
    assert "rows receive, columns send" in description(whole)


def test_heat_maps_keep_rows_and_columns_apart(document: Document) -> None:
    matrix = [[0.9, -0.2], [0.3, None]]
    document["arms"][2]["last"]["sublayers"][0]["mean_maps"]["res"] = matrix
    (_, figures) = charts.heat_maps(document)[1]
    text = description(figures[0])
    assert "top to bottom: .900 \u2212.200; .300 n. f.." in text
    assert "Row sums: .700 n. f.. Column sums: 1.200 n. f.." in text


@pytest.mark.parametrize("name", ['<b>bold</b> & "quoted"', "costs $5 and $6", "_private", "x" * 200])
def test_arm_names_are_only_text(document: Document, name: str) -> None:
    document["arms"][2]["name"] = name
    drawings = [DRAWINGS[key](document) for key in ("loss", "energy")]
    labels = [label.strip("\u200b") for drawing in drawings for label in words(drawn(drawing).svg)]
    assert name in labels or any(label.endswith("\u2026") and name.startswith(label[:-1]) for label in labels)


def test_arms_look_different_and_stay_so() -> None:
    looks = [charts.look(index) for index in range(12)]
    assert len(set(map(repr, looks))) == 12
    assert len({look.colour for look in looks[:6]}) == 6


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> list[dict[str, str]]:
    """The colours of the light, dark and print themes."""
    css = (Path(mhc_train.report.__file__).parent / "templates" / "report.css").read_text()
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{([^}]+)\}", css)]


def test_colours_can_be_seen_on_every_theme() -> None:
    light, dark, print_ = themes()
    assert light["page"] != dark["page"] and print_["page"] == light["page"]
    for theme in (light, dark, print_):
        for colour in charts.COLOURS:
            assert contrast(colour, theme["page"]) >= 3  # WCAG 1.4.11, graphics
        for text in ("text", "muted", "link", "ok", "warn", "fail"):
            assert contrast(theme[text], theme["page"]) >= 4.5  # WCAG 1.4.3, text
        for text in ("text", "muted"):
            assert contrast(theme[text], theme["panel"]) >= 4.5


def test_long_curves_are_thinned_without_losing_a_spike() -> None:
    points = [(float(x), 1.0) for x in range(10_000)]
    points[1234], points[8765] = (1234.0, 99.0), (8765.0, -99.0)
    thin = thinned(points)
    assert len(thin) <= 600
    assert {points[1234], points[8765]} <= set(thin)
    assert thin == sorted(thin)


def test_short_curves_stay_as_they_are() -> None:
    points = [(float(x), float(-x)) for x in range(600)]
    assert thinned(points) == points


def test_a_number_that_is_not_finite_is_the_largest() -> None:
    assert largest([{"gain": {"max": 2.0}}, {"gain": {"max": None}}], "gain") is None
    assert largest([{"gain": {"max": 2.0}}, {"gain": {"max": 3.0}}], "gain") == 3.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (40_000, "40 k"), (1_348_952, "1.35 M"), (2.7e10, "27 G"), (1e12, "1 T")],
)
def test_counts_in_short(value: float, text: str) -> None:
    assert counted(value).replace("\u00a0", " ") == text


def test_several_seeds_are_drawn_each_and_as_their_mean(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "mhc", seed, (8.0, 7.0, 6.0 + seed)) for seed in (0, 1)]
    chart = drawn(charts.loss(compare_runs(paths)))
    assert "mean over seeds" in chart.caption
    assert "6.5 at" in description(chart)


def test_a_chart_without_a_point_to_read_out_is_not_read_out(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "residual", measurements=0)])
    assert "data-readout" in drawn(charts.loss(document)).svg
    document["arms"][0]["curves"][0]["val_loss"] = []
    assert "data-readout" not in drawn(charts.loss(document)).svg
