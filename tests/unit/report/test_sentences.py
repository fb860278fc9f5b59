"""What a comparison says in words: what went missing, what is ranked and over which seeds, and what that rests on."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit, write_lines, write_run
from pages import Page

from mhc_train.report import tables
from mhc_train.report.comparison import Setting, compare_runs
from mhc_train.report.render import to_html, to_markdown
from mhc_train.report.summary import at_equal_budgets, crossings, difference_lines, summary

Document = dict[str, Any]
NOISE = (0.0, 0.05, -0.04, 0.02, -0.03)


def runs(
    root: Path, means: dict[str, float], seeds: dict[str, tuple[int, ...]] | None = None, **keys: Any
) -> list[Path]:
    """Every arm with its seeds, 0 to 2 if nothing else is said; unmeasured, so that they are quick."""
    return [
        write_run(root, kind, seed, (8.0, 7.0, mean + NOISE[seed]), measurements=0, samples=[], **keys)
        for kind, mean in means.items()
        for seed in (seeds or {}).get(kind, (0, 1, 2))
    ]


def lose(path: Path) -> None:
    """Make the final validation loss not finite."""
    *lines, last = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    write_lines(path / "metrics.jsonl", [*lines, last | {"val_loss": None}])


def test_a_loss_that_is_missing_does_not_silence_the_others(tmp_path: Path) -> None:
    paths = runs(tmp_path, {"residual": 6.0, "mhc": 6.2})
    lose(paths[4])
    document = compare_runs(paths)
    told = " ".join(summary(document))
    assert "1 run ended without a finite validation loss (mhc with seed 1)" in told
    assert "The lowest mean validation loss over the 2 common seeds is that of residual, 5.9800" in told
    assert "mhc is higher than residual: +0.2000 nats" in told
    rows = {head.text: [cell.text for cell in cells] for head, cells in reversed(tables.results(document).rows)}
    assert rows["validation loss"] == ["6.0033", "6.1800 (2 of 3 seeds)"]
    assert rows["standard deviation"][1] == "0.0283"


def test_means_over_other_seeds_are_not_held_against_each_other(tmp_path: Path) -> None:
    document = compare_runs(runs(tmp_path, {"residual": 6.0, "hc": 6.1}, {"residual": (0, 1, 2, 3)}))
    told = " ".join(summary(document))
    assert "with 3 to 4 seeds" in told
    assert "over the 3 common seeds is that of residual, 6.0033 nats per token, 0.1000 below" in told
    table = tables.budgets(document)
    assert table and table.rows[0][1][1].detail.startswith("+0.1000 over 3 common seeds; ")
    (head, _), *_ = tables.results(document).rows
    assert head.detail == "nats per token, mean over the seeds of each arm"


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ((3, 4), "No two arms have a seed in common"),
        ((0,), "One seed settles nothing"),
        ((0, 3), "One seed settles nothing"),
    ],
)
def test_too_few_common_seeds_rank_nothing(tmp_path: Path, seeds: tuple[int, ...], words: str) -> None:
    told = " ".join(summary(compare_runs(runs(tmp_path, {"residual": 6.0, "hc": 6.1}, {"hc": seeds}))))
    assert words in told and "lowest" not in told
    assert ("One seed" in told) == words.startswith("One")


def test_many_arms_are_corrected_for_what_was_tested_(tmp_path: Path) -> None:
    means = {"residual": 6.0, "hc": 6.5, "mhc": 6.0, "ihc": 6.0, "ohc": 6.0}
    document = compare_runs(runs(tmp_path, means, {"ohc": (0,)}))
    told = " ".join(summary(document))
    assert "Corrected for 3 differences, hc is higher than residual." in told
    assert "For mhc and ihc no difference" in told and "For ohc nothing is settled" in told


def test_power_is_of_a_pair_that_is_named(tmp_path: Path) -> None:
    paths = runs(tmp_path, {"residual": 6.0})
    for kind, noise in (("hc", 0.3), ("mhc", 0.05)):
        paths += [
            write_run(tmp_path, kind, seed, (8.0, 7.0, 6.0 + noise * (seed - 1)), measurements=0) for seed in range(3)
        ]
    told = " ".join(summary(compare_runs(paths)))
    assert "For hc against residual, the noisiest of these, the present seeds show a difference of " in told


def test_every_arm_has_a_line_for_the_terminal(tmp_path: Path) -> None:
    paths = runs(tmp_path, {"residual": 6.0, "hc": 6.1, "mhc": 6.0}, {"mhc": (0,)})
    first, second = difference_lines(compare_runs(paths))
    assert first.startswith("hc - residual: +0.1000 nats (+1.67\u00a0%), 95 % interval +0.1")
    assert first.endswith(": hc is higher") and "over 3 seeds, corrected p < 0.0001" in first
    assert second == "mhc - residual: +0.0000 nats (+0\u00a0%): one seed: settles nothing"


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"threads": 8}, "were not the same"), (None, "whether on the same hardware is not known")],
)
def test_step_times_are_told_by_what_is_known_of_the_hardware(
    tmp_path: Path, environment: dict[str, Any] | None, words: str
) -> None:
    paths = runs(tmp_path, {"residual": 6.0})[:1]
    paths += runs(tmp_path, {"hc": 6.0}, {"hc": (0,)}, environment=environment)
    if environment is None:
        (paths[1] / "environment.json").unlink()
    assert words in summary(compare_runs(paths))[-1]


def test_a_reference_of_which_no_run_finished_has_a_page(tmp_path: Path) -> None:
    paths = runs(tmp_path, {"residual": 6.0, "hc": 6.1, "mhc": 6.2})
    for path in paths[:3]:
        edit(path / "status.json", status="failed", error="killed")
    document = compare_runs(paths)
    assert document["noise"]["relative"] is None
    assert "nats, 4 degrees of freedom" in Page(to_html(document)).text
    assert "the reference is residual" in summary(document)[0] and "no run of residual finished" in summary(document)[0]


def test_what_agrees_but_for_what_was_varied_and_within_a_seed_only(tmp_path: Path) -> None:
    paths = runs(tmp_path, {"residual": 6.0}) + runs(tmp_path, {"hc": 6.1}, config={"optim": {"lr": 0.5}})
    document = compare_runs(paths, Setting(varied=("optim.lr",), detect=0.01))
    told = tables.agreement(document)
    assert "optimizer (but for optim.lr)" in told["decided"] and "backbone" not in told["decided"]
    assert told["within"] == "training tokens in order and backbone weights at the start"
    assert tables.report_command(document).endswith(" --against residual --vary optim.lr --detect 1%")
    assert "within each seed" in to_markdown(document)


def test_markdown_is_short_on_what_keeps_its_law_and_says_the_seed(tmp_path: Path) -> None:
    document = compare_runs(
        [write_run(tmp_path, kind, seed, gain=1.5) for kind in ("residual", "hc") for seed in (0, 1)]
    )
    text = to_markdown(document)
    (dissipation,) = (line for line in text.splitlines() if line.startswith("| dissipation "))
    assert dissipation.endswith(" | fail (spectral norm 1.500 at layers.0.attention) |")
    (finite,) = (line for line in text.splitlines() if line.startswith("| finite "))
    assert finite.endswith(") | ok | ok |")
    assert "The residual path in words and numbers is of each arm's first seed" in text
    assert "- At equal 41" in text and "Do the loss curves change places?" in text


def test_equal_budgets_and_crossings_are_said_in_short() -> None:
    rows = [{"a": "r", "b": name, "verdict": verdict} for name, verdict in (("x", "no common seed"), ("y", "lower"))]
    pairs = [("x", "unknown", "Not known."), ("y", "unknown", "Not known."), ("z", "none", "")]
    document = {
        "reference": "r",
        "budgets": [{"budget": "flops", "amount": 2e12, "differences": rows}],
        "crossings": [{"a": "r", "b": b, "state": state, "text": text} for b, state, text in pairs],
    }
    assert at_equal_budgets(document) == ["equal 2\u00a0T FLOPs: y lower; no common seed for x"]
    assert crossings(document) == [
        "Not known.",
        "The mean difference from r keeps its sign at all common validations for z.",
    ]
