"""The reports' pages in a real browser: whole on a phone and a desk, silent, and printable."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import axe_core_python
import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit" / "report"))

from fake_diagnoses import diagnosis  # noqa: E402
from fake_runs import write_run  # noqa: E402

from mhc_train.report.comparison import compare_runs  # noqa: E402
from mhc_train.report.diagnosis import write_diagnosis  # noqa: E402
from mhc_train.report.render import write_report  # noqa: E402

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --virtual-time-budget=5000"
# A headless window is never narrower than 500 pixels; a frame may be.
FRAME = """<!DOCTYPE html><p id="widths">none</p><iframe src="probe.html" style="border:0;width:{width}px;height:900px">
</iframe><script>addEventListener("message", event => widths.textContent = event.data)</script>"""
PROBE = """<script>addEventListener("load", () => {
document.querySelectorAll("details").forEach(details => details.open = true);
const root = document.documentElement;
const text = [...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height);
parent.postMessage(`${innerWidth} ${root.clientWidth} ${root.scrollWidth} ${Math.min(...text)}`, "*") })</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium on PATH")


@pytest.fixture(scope="module", params=["comparison", "diagnosis", "diagnoses"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    if request.param == "diagnosis":
        return write_diagnosis([diagnosis(streams=8, sublayers=32, gain=1.1, biases=True)], root / "page.html")
    if request.param == "diagnoses":
        verdicts = {"mass": "fail", "dissipation": "warn"}
        several = [diagnosis(f"runs/{number}", gain=1 + number, verdicts=verdicts) for number in range(3)]
        return write_diagnosis(several, root / "page.html")
    variants = [{"connection": {"gate_init": 0.1 * number, "iterations": number}} for number in range(1, 4)]
    paths = [write_run(root / "runs", kind, gain=2.0, sublayers=8) for kind in ("residual", "hc")]
    long = [{"prompt": "word " * 40, "continuation": "x" * 400}]
    paths += [write_run(root / "runs", "mhc", config=variant, samples=long) for variant in variants]
    paths += [write_run(root / "runs", "hc", 1, losses=(8.3, 7.0, 6.4), gain=2.1, sublayers=8)]
    return write_report(compare_runs(paths), root / "report")


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def bare(page: Path) -> str:
    """The page without its own policy, which forbids a probe's script."""
    return re.sub(r"<meta http-equiv[^>]+>", "", page.read_text())


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_never_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "probe.html").write_text(bare(page).replace("</body>", f"{PROBE}</body>"))
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    dom = chromium(tmp_path, f"--window-size={width + 100},1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = re.search(r'id="widths">(\d+) (\d+) (\d+) ([\d.]+)<', dom)
    assert found, dom[:500]
    inner, visible, needed = map(int, found.groups()[:3])
    assert inner == width and needed <= visible
    assert float(found[4]) >= 8  # pixels from the top to the bottom of a line of text in a chart


def test_the_page_prints(page: Path, tmp_path: Path) -> None:
    chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}", page.as_uri())
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 3


LOOK = """<script>addEventListener("load", () => {
const charts = [...document.querySelectorAll("svg[role=img]")];
const known = id => document.getElementById(id);
const labelled = charts.filter(c => c.getAttribute("aria-labelledby").split(" ").every(known));
const seen = charts.filter(c => c.getBoundingClientRect().height > 50 && c.querySelectorAll("path").length);
const loaded = performance.getEntriesByType("resource").length;
document.body.dataset.looked = `${charts.length} ${labelled.length} ${seen.length} ${loaded}` })</script>"""


def test_charts_are_there_and_labelled_and_nothing_is_loaded(page: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(bare(page).replace("</body>", f"{LOOK}</body>"))
    dom = chromium(tmp_path, "--window-size=1200,1000", "--dump-dom", (tmp_path / "page.html").as_uri())
    found = re.search(r'data-looked="(\d+) (\d+) (\d+) (\d+)"', dom)
    assert found, dom[:500]
    charts, labelled, seen, loaded = map(int, found.groups())
    assert charts == labelled == seen > 10
    assert loaded == 0


def test_the_console_stays_empty(page: Path, tmp_path: Path) -> None:
    """With the page's own policy: whatever it broke, the browser would say."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in done.stderr


AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
AUDIT = """<script>addEventListener("load", async () => {
document.querySelectorAll("details").forEach(details => details.open = true);
document.querySelectorAll("svg g").forEach(shape => shape.remove()); // an image's inside, to a reader and to the rules
const found = await axe.run({ iframes: false });
const told = found.violations.map(rule => [rule.id, rule.nodes.length, rule.nodes[0].html.slice(0, 200)]);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
parent.postMessage({ dark, width: innerWidth, passes: found.passes.length, told }, "*") })</script>"""
AUDITED = """<!DOCTYPE html><p id="told"></p>{frames}<script>const all = [];
addEventListener("message", event => {{ all.push(event.data); told.textContent = JSON.stringify(all) }})</script>"""


def test_nothing_keeps_anyone_from_reading_the_page(page: Path, tmp_path: Path) -> None:
    """axe-core's rules, on a phone and a desk, in the light and in the dark."""
    (tmp_path / "probe.html").write_text(bare(page).replace("</body>", f"<script>{AXE}</script>{AUDIT}</body>"))
    cases = [("light", 390), ("dark", 390), ("light", 1200), ("dark", 1200)]
    style = "border:0;height:900px"
    frames = [f'<iframe src="probe.html" style="{style};width:{w}px;color-scheme:{s}"></iframe>' for s, w in cases]
    (tmp_path / "frame.html").write_text(AUDITED.format(frames="".join(frames)))
    dom = chromium(tmp_path, "--window-size=1300,1000", "--dump-dom", (tmp_path / "frame.html").as_uri())
    found = json.loads(html.unescape(re.search(r'id="told">(.*?)</p>', dom)[1]))  # type: ignore[index]
    assert {("dark" if audit["dark"] else "light", audit["width"]) for audit in found} == set(cases)
    assert all(audit["passes"] > 20 for audit in found)
    assert [audit["told"] for audit in found if audit["told"]] == []


READ = """<script>addEventListener("load", () => {
const chart = document.querySelector("svg[data-readout]"), box = chart.getBoundingClientRect();
const tip = () => chart.closest("figure").querySelector(".tip");
const live = () => document.querySelector("[aria-live]").textContent;
const told = {}, key = name => chart.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const move = share => chart.dispatchEvent(new PointerEvent("pointermove",
  { clientX: box.left + share * box.width, clientY: box.top + box.height / 2, pointerType: "touch" }));
move(0.98); told.pointer = tip().innerText; told.guides = chart.querySelectorAll(".guide line").length;
key("Escape"); told.hidden = tip().hidden;
chart.focus(); told.focused = document.activeElement === chart;
key("ArrowRight"); told.first = live(); key("ArrowRight"); told.second = live();
key("ArrowLeft"); told.back = live(); key("End"); told.end = live(); key("Escape"); told.silent = live();
document.body.append(Object.assign(document.createElement("p"), { id: "told", textContent: JSON.stringify(told) })) })
</script>"""


def test_charts_can_be_read_by_pointer_finger_and_keyboard(page: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(bare(page).replace("</body>", f"{READ}</body>"))
    dom = chromium(tmp_path, "--window-size=1200,1000", "--dump-dom", (tmp_path / "page.html").as_uri())
    told = json.loads(html.unescape(re.search(r'id="told">(.*?)</p>', dom)[1]))  # type: ignore[index]
    assert told["focused"] and told["hidden"] and told["silent"] == "" and told["guides"] == 1
    assert told["first"] == told["back"] != told["second"] != told["end"]
    for text in (told["pointer"], told["first"], told["end"]):
        assert re.search(r"\d", text)
    if "mhc-train report" in dom:  # the loss of two arms after no tokens and after all
        assert told["first"].startswith("0 tokens: ") and "residual 8.3" in told["first"]
        assert told["end"].startswith("41\u00a0k tokens: ") and "residual 6.5" in told["end"]
        assert "residual" in told["pointer"] and "6.45" in told["pointer"]  # hc: the mean of 6.5 and 6.4
