"""Diagnoses on a terminal: whole at any width, one beside another, and without torch."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from fake_diagnoses import diagnosis

from mhc_train.report import terminal
from mhc_train.report.terminal import print_diagnoses

Document = dict[str, Any]
ELLIPSIS = "\u2026"


def printed(capsys: pytest.CaptureFixture[str], *documents: Document) -> list[str]:
    print_diagnoses(list(documents))
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split("\n")


def row(lines: list[str], *words: str) -> str:
    return next(line for line in lines if all(word in line for word in words))


def terminal_of(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output, which is captured already, says that it is so wide a terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_nothing_is_cut_at_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, count: int
) -> None:
    terminal_of(width, monkeypatch)
    documents = [diagnosis(f"runs/{place}", sublayers=96, verdicts={"mass": "fail"}) for place in range(count)]
    lines = printed(capsys, *documents)
    assert max(map(len, lines)) <= width
    assert not any(ELLIPSIS in line for line in lines)


def test_wider_terminals_show_more_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for columns in (80, 160):
        terminal_of(columns, monkeypatch)
        heads.append(row(printed(capsys, diagnosis()), "fwd gain", "bwd gain"))
    assert "logit range" not in heads[0] and "logit range" in heads[1]


def test_one_diagnosis_says_what_it_found_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, diagnosis(gain=1.5, verdicts={"mass": "fail", "energy": "not promised"}))
    assert "mHC, n = 4, 4096 tokens (its own validation tokens)" in lines[0]
    assert row(lines, "mass", "layers.2.feedforward").split()[1:3] == ["\u2717", "fail"]
    assert "not promised" in row(lines, "energy", "promised")
    assert row(lines, "what to try").endswith("\u2717 fail: mass: what to try about mass")
    assert sum("what to try" in line for line in lines) == 1
    assert "11.391" in row(lines, "composite fwd gain")
    assert "0.0100 \u00b1 0.0040" in row(lines, "all", "identity")


def test_differences_between_diagnoses_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, diagnosis("runs/a"), diagnosis("runs/b", gain=1.5, verdicts={"mass": "warn"}))
    assert lines[0].startswith("#1: runs/a") and lines[1].startswith("#2: runs/b")
    assert "\u2260" in row(lines, "mass", "ok") and "! warn" in row(lines, "mass", "ok")
    assert "\u2260" not in row(lines, "dissipation", "ok")
    assert "\u2260" in row(lines, "composite forward gain") and "\u2260" not in row(lines, "effective streams")


def test_what_was_not_measured_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(printed(capsys, diagnosis(signals=False, estimates=False)))
    assert "composite fwd gain" in text
    for absent in ("stream energy", "logit range", "Ablations", "energy gain"):
        assert absent not in text


def test_a_measure_that_one_of_several_lacks_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, diagnosis("a"), diagnosis("b", signals=False))
    assert row(lines, "logit range", "#2").split()[-3:] == ["-", "-", "-"]
    assert "not measured" in row(lines, "effective streams")


def test_sparklines_rise_and_fall_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, diagnosis(gain=2.0, sublayers=8))
    rising, falling = row(lines, "composite fwd gain"), row(lines, "composite bwd gain")
    assert terminal.BLOCKS in rising and terminal.BLOCKS[::-1] in falling
    assert "log" in rising.split() and {"2.000", "256.000"} <= set(rising.split())


def test_flat_profiles_are_flat_and_gaps_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    document = diagnosis(sublayers=4)
    document["composite"]["forward"][2]["forward_gain"]["max"] = None
    low = terminal.BLOCKS[0]
    assert f" {low}{low}{terminal.BROKEN}{low} " in row(printed(capsys, document), "composite fwd gain")


def test_many_sublayers_share_a_character_and_the_worst_counts(capsys: pytest.CaptureFixture[str]) -> None:
    document = diagnosis(sublayers=600)
    document["sublayers"][299]["logit_range"]["max"] = 1e9
    assert row(printed(capsys, document), "logit range", "max").count(terminal.BLOCKS[-1]) == 1


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnoses([diagnosis(verdicts={"mass": "fail"})])
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\u2500" not in text


def test_torch_and_drawing_libraries_stay_away() -> None:
    code = "import mhc_train.report.terminal, sys; print({'torch', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"
