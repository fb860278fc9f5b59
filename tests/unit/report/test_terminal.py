"""Diagnoses on a terminal: whole at any width, one beside another, and without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_diagnoses import diagnosis, untrained

from mhc_train.report import terminal
from mhc_train.report.terminal import print_depths, print_diagnoses
from mhc_train.report.words import REPLACEMENTS

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


@pytest.mark.parametrize("width", [66, 80, 100, 200])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_nothing_is_cut_at_any_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, count: int
) -> None:
    terminal_of(width, monkeypatch)
    documents = [
        diagnosis(f"runs/{place}", sublayers=96, gain=1.0 + place, verdicts={"mass": "fail"}) for place in range(count)
    ]
    lines = printed(capsys, *documents)
    assert max(map(len, lines)) <= width
    assert not any(ELLIPSIS in line for line in lines)


def test_wider_terminals_show_more_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for columns in (80, 160):
        terminal_of(columns, monkeypatch)
        heads.append(row(printed(capsys, diagnosis()), "fwd gain", "bwd gain"))
    assert "logit range" not in heads[0] and "logit range" in heads[1]


def test_long_names_are_wrapped_and_numbers_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal_of(80, monkeypatch)
    document = diagnosis(gain=3.0, sublayers=96)
    for sublayer in document["sublayers"]:
        sublayer["name"] = f"language_model.decoder.{sublayer['name']}.with_a_name_of_many_words_that_fills_a_line"
    lines = printed(capsys, document)
    assert max(map(len, lines)) <= 80 and not any(ELLIPSIS in line for line in lines)
    assert "6.4e+45" in row(lines, "composite fwd gain")


def test_columns_that_do_not_fit_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = diagnosis()
    terminal_of(80, monkeypatch)
    narrow = printed(capsys, document)
    head = row(narrow, "sublayer", "fwd gain")
    shown = sum(title in head for title, *_ in terminal.COLUMNS)
    assert f"{len(terminal.COLUMNS) - shown} more columns fit a wider terminal; --json has all." in narrow
    assert ("from here on" in row(narrow, "Sublayers:")) == ("comp bwd" in head)
    terminal_of(250, monkeypatch)
    assert not any("wider terminal" in line for line in printed(capsys, document))


def test_one_diagnosis_says_what_it_found_and_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, diagnosis(gain=1.5, verdicts={"mass": "fail", "energy": "not promised"}))
    assert "mHC, n = 4, 4096 tokens (its own validation tokens)" in lines[0]
    assert row(lines, "mass", "layers.2.feedforward").split()[1:3] == ["\u2717", "fail"]
    assert "not promised" in row(lines, "energy", "promised")
    assert row(lines, "what to try").endswith("\u2717 fail: mass: what to try about mass")
    assert sum("what to try" in line for line in lines) == 1
    assert "11.391" in row(lines, "composite fwd gain")
    assert "0.0100 \u00b1 0.0040" in row(lines, "all", "identity")
    assert "identity: I; uniform: J/n" in lines


def test_every_ablation_says_what_takes_the_place_of_h_res() -> None:
    from mhc_train.diagnostics.ablation import KINDS

    assert set(REPLACEMENTS) == set(KINDS)


def test_energies_are_those_of_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    energy = [entry["energy_out"]["mean"] / 4 for entry in diagnosis()["sublayers"]]
    assert {f"{min(energy):.3f}", f"{max(energy):.3f}"} <= set(row(printed(capsys, diagnosis()), "energy per").split())


def test_a_law_that_only_one_declares_is_not_declared_by_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    other = diagnosis("b")
    other["laws"] = [law for law in other["laws"] if law["law"] != "energy"]
    assert "not declared" in row(printed(capsys, diagnosis("a"), other), "energy", "ok")


def test_numbers_have_one_style(capsys: pytest.CaptureFixture[str]) -> None:
    small = diagnosis("a", contraction=0.9)
    text = "\n".join(printed(capsys, small, diagnosis("b")))
    assert "e-0" in text and "\u2212" not in text


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


def test_what_is_printed_as_one_number_is_flat(capsys: pytest.CaptureFixture[str]) -> None:
    document = diagnosis(sublayers=4)
    for place, entry in enumerate(document["composite"]["forward"]):
        entry["forward_gain"]["max"] = 1 + 1e-4 * place
    low = terminal.BLOCKS[0]
    assert f" {4 * low} " in row(printed(capsys, document), "composite fwd gain")


def test_many_sublayers_share_a_character_and_the_worst_counts(capsys: pytest.CaptureFixture[str]) -> None:
    document = diagnosis(sublayers=600)
    document["sublayers"][299]["logit_range"]["max"] = 1e9
    assert row(printed(capsys, document), "logit range", "max").count(terminal.BLOCKS[-1]) == 1


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnoses([diagnosis(verdicts={"mass": "fail"})])
    text = capsys.readouterr().out
    assert "\x1b" not in text and "\u2500" not in text


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    code = "from fake_diagnoses import diagnosis\nfrom mhc_train.report.terminal import print_diagnoses\n"
    code += "input()\nprint_diagnoses([diagnosis()])\nimport sys; print('went on', file=sys.stderr)"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": path}, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 0 and said == "went on\n"


@pytest.mark.parametrize("width", [80, None])
def test_untrained_depths_have_a_row_a_connection(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int | None
) -> None:
    if width:
        terminal_of(width, monkeypatch)
    residual = untrained("residual", {2: 1.0, 64: 1.0}, None, streams=1)
    others = [untrained(f"hc{place}", {2: 2.0, 64: None}) for place in range(13)]
    print_depths([residual, *others])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).split("\n")
    cells = [line.split() for line in lines]
    assert ["2", "residual", "1.0000", "1.0000", "one", "stream"] in cells
    assert ["2", "hc12", "2.0000", "2.0000", "0.5000"] in cells
    assert ["64", "hc12", "not", "finite", "not", "finite", "0.5000"] in cells
    assert ["2", "1.1", "I", "1.2100", "1.2100", "1.2100"] in cells
    assert max(map(len, lines)) <= 80 or width is None
    assert (
        cells.index(["64", "residual", "1.0000", "1.0000", "one", "stream"])
        == cells.index(["2", "1.1", "I", *3 * ["1.2100"]]) + 2
    )


def test_torch_and_drawing_libraries_stay_away() -> None:
    code = "import mhc_train.report.terminal, sys; print({'torch', 'matplotlib', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"
