"""What stands beside the page: the document against its schema, and its numbers as tables."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit, write_lines, write_run
from jsonschema import Draft202012Validator

from mhc_train.report.arms import SPIKE, describe
from mhc_train.report.collect import Arm, read_run
from mhc_train.report.comparison import Setting, compare_runs
from mhc_train.report.render import write_report

Document = dict[str, Any]
SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "report.schema.json").read_text())


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    root = tmp_path_factory.mktemp("runs")
    paths = [write_run(root, kind, seed, gain=1.0 + seed) for kind in ("residual", "hc") for seed in (0, 1)]
    paths.append(write_run(root, "mhc", measurements=0, samples=[]))
    return compare_runs(paths, Setting(lost=({"overrides": ["connection=ihc"], "error": "killed"},)))


@pytest.fixture(scope="module")
def written(document: Document, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(document, tmp_path_factory.mktemp("report")).parent


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_schema_is_one_and_describes_every_key_of_the_document() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for part in (SCHEMA, SCHEMA["$defs"]["arm"], SCHEMA["$defs"]["difference"]):
        assert all("description" in key or "$ref" in key for key in part["properties"].values())


def test_the_document_is_what_the_schema_says(written: Path) -> None:
    stored = json.loads((written / "report.json").read_text())
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(stored)] == []
    for holder, part in ((stored, SCHEMA), (stored["arms"][0], SCHEMA["$defs"]["arm"])):
        assert set(holder) <= set(part["properties"])
    del stored["arms"][0]["val_loss_sd"]
    assert not Draft202012Validator(SCHEMA).is_valid(stored)


def test_curves_are_a_row_a_number(document: Document, written: Path) -> None:
    found = rows(written / "curves.csv")
    hc = [row for row in found if row["arm"] == "hc" and row["seed"] == "1"]
    losses = [(int(row["step"]), int(row["tokens"]), float(row["value"])) for row in hc if row["metric"] == "val_loss"]
    lines = [
        json.loads(line)
        for line in (Path(document["arms"][1]["runs"][1]) / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert losses == [(line["step"], line["tokens"], line["val_loss"]) for line in lines]
    gains = [row for row in hc if row["metric"] == "composite_forward_gain"]
    assert [(row["step"], row["tokens"]) for row in gains] == [("0", ""), ("10", "")]
    assert [float(row["value"]) for row in gains] == pytest.approx([2.0**4] * 2)


def test_layers_are_those_of_the_last_measurement(written: Path) -> None:
    found = rows(written / "layers.csv")
    assert {row["arm"] for row in found} == {"residual", "hc"}
    assert {row["seed"] for row in found} == {"0"}
    of_hc = [row for row in found if row["arm"] == "hc" and row["measure"] == "composite_forward.log_mass"]
    assert {row["statistic"] for row in of_hc} == {"median", "max"}
    assert {row["sublayer"] for row in of_hc} == {"0", "1", "2", "3"}
    # One stream has no differences.
    kept = [row["value"] for row in found if row["arm"] == "residual" and row["measure"].endswith("difference_gain")]
    assert set(kept) == {"nan"}


def test_nothing_is_written_where_a_page_cannot_be_made(document: Document, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_report({key: value for key, value in document.items() if key != "arms"}, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- an arm's part


def test_an_arm_is_told_over_its_seeds(document: Document) -> None:
    hc = document["arms"][1]
    dissipation = next(row for row in hc["laws"] if row["law"] == "dissipation")
    assert (dissipation["verdict"], dissipation["seed"]) == ("fail", 1)
    assert dissipation["verdicts"] == {"0": "ok", "1": "fail"}
    assert [course["seed"] for course in hc["courses"]] == [0, 1]
    assert hc["courses"][1]["points"][-1]["forward_gain"] == pytest.approx(2.0**4)
    assert hc["val_loss_sd"] == 0.0  # equal losses were written
    assert document["arms"][2]["val_loss_sd"] is None


def test_what_is_not_shown_is_not_carried(document: Document) -> None:
    last = document["arms"][1]["last"]
    assert "dobrushin" not in last["sublayers"][0] and "mean_map" not in last["composite"]["forward"][0]
    assert "mean_map" in last["composite"]["forward"][-1]


def test_time_spikes_norms_and_skips_are_read_from_the_lines(tmp_path: Path) -> None:
    path = write_run(tmp_path, "hc")
    edit(path / "status.json", steps=3)
    lines = [
        {"step": 0, "tokens": 0, "val_loss": 8.0},
        {"step": 1, "tokens": 100, "tokens_per_second": 50.0, "grad_norm": 1.0, "loss_spike": SPIKE + 1},
        {"step": 2, "tokens": 400, "tokens_per_second": 100.0, "grad_norm": 5.0, "loss_spike": 1.0, "skipped_steps": 2},
        {"step": 3, "tokens": 500, "tokens_per_second": 20.0, "grad_norm": 2.0, "val_loss": 7.0, "skipped_steps": 3},
    ]
    write_lines(path / "metrics.jsonl", lines)
    arm = Arm("hc", [read_run(path)])
    told = describe(arm, arm)
    assert told["seconds"] == pytest.approx(2 + 3 + 5)
    assert told["spikes"] == {"steps": 1, "worst": SPIKE + 1, "threshold": SPIKE}
    assert told["grad_norm"] == {"median": 2.0, "max": 5.0}
    assert told["skipped"] == 3


def test_an_arm_of_which_no_run_finished_has_no_numbers(tmp_path: Path) -> None:
    good, bad = (read_run(write_run(tmp_path, kind)) for kind in ("residual", "hc"))
    bad.status.update(status="failed", error="the loss is not finite")
    told = describe(Arm("hc", [], [bad]), Arm("residual", [good]))
    assert told["failed"] == [{"seed": 0, "run": str(bad.path), "step": 20, "error": "the loss is not finite"}]
    assert told["params"] == 1_350_000
    for key in ("val_loss", "seconds", "last", "tokens", "grad_norm", "peak_memory"):
        assert told[key] is None
    assert told["curves"] == told["laws"] == told["samples"] == []
