"""Runs are comparable only if everything but the arm is the same, and the reason is named where it is not."""

from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit
from fake_runs import write_run as write_any_run

from mhc_train.report.comparison import compare_runs


def write_run(root: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    return write_any_run(root, kind, seed, measurements=0, **changes)


def state(document: dict[str, Any], name: str) -> str:
    (row,) = [row for row in document["requirements"] if row["name"] == name]
    return str(row["state"])


def test_runs_that_differ_in_their_connection_alone_are_comparable(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, kind) for kind in ("residual", "hc", "mhc")])
    assert document["comparable"]
    assert document["reasons"] == []
    assert {row["state"] for row in document["requirements"]} == {"same"}


STATUS = {
    "validation set": "validation_sha256",
    "tokenizer": "tokenizer_sha256",
    "token budget": "tokens",
    "training tokens in order": "order_fingerprint",
    "backbone weights at the start": "backbone_fingerprint",
    "precision": "precision",
}


@pytest.mark.parametrize(("requirement", "key"), STATUS.items())
def test_a_difference_in_the_facts_is_named(tmp_path: Path, requirement: str, key: str) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", status={key: "another"})]
    document = compare_runs(paths)
    assert not document["comparable"]
    assert len(document["reasons"]) == 1
    assert document["reasons"][0].startswith(f"{requirement} different: ")
    assert state(document, requirement) == "different"


@pytest.mark.parametrize(("requirement", "key"), STATUS.items())
def test_an_unknown_fact_is_no_agreement(tmp_path: Path, requirement: str, key: str) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc")]
    for path in paths:
        edit(path / "status.json", **{key: None})
    document = compare_runs(paths)
    assert not document["comparable"]
    assert state(document, requirement) == "unknown"


@pytest.mark.parametrize(
    ("requirement", "config"),
    [
        ("model", {"model": {"dim": 256}}),
        ("optimizer", {"optim": {"lr": 1e-4}}),
        ("batch", {"train": {"batch_tokens": 8192}}),
    ],
)
def test_a_difference_in_the_configuration_is_named(tmp_path: Path, requirement: str, config: dict[str, Any]) -> None:
    document = compare_runs([write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", config=config)])
    assert [reason.partition(" different")[0] for reason in document["reasons"]] == [requirement]


@pytest.mark.parametrize(
    ("requirement", "environment"),
    [("code", {"git": {"commit": "f" * 40, "clean": True}}), ("hardware", {"threads": 8})],
)
def test_code_and_hardware_are_shown_but_do_not_decide(
    tmp_path: Path, requirement: str, environment: dict[str, Any]
) -> None:
    document = compare_runs([write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", environment=environment)])
    assert document["comparable"]
    assert state(document, requirement) == "different"


def test_code_with_uncommitted_changes_is_unknown(tmp_path: Path) -> None:
    dirty = {"git": {"commit": "f" * 40, "clean": False}}
    paths = [write_run(tmp_path, kind, environment=dirty) for kind in ("residual", "mhc")]
    document = compare_runs(paths)
    assert document["comparable"] and state(document, "code") == "unknown"


def test_the_backbone_may_differ_between_seeds_but_not_within_one(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, kind, seed) for kind in ("residual", "mhc") for seed in (0, 1)]
    assert compare_runs(paths)["comparable"]
    edit(paths[-1] / "status.json", backbone_fingerprint="another")
    assert state(compare_runs(paths), "backbone weights at the start") == "different"


def test_arms_with_other_seeds_cannot_be_paired(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "residual", 0), write_run(tmp_path, "mhc", 1)])
    assert state(document, "seeds") == "different"
