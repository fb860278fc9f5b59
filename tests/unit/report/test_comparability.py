"""Runs are comparable only if everything but the arm is the same, and the reason is named where it is not."""

from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit
from fake_runs import write_run as write_any_run

from mhc_train.errors import ConfigError
from mhc_train.report.comparison import Setting, compare_runs


def write_run(root: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    return write_any_run(root, kind, seed, measurements=0, **changes)


def requirement_row(document: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in document["requirements"] if row["name"] == name]
    return dict(row)


def state(document: dict[str, Any], name: str) -> str:
    return str(requirement_row(document, name)["state"])


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
    assert document["reasons"][0].startswith(f"{requirement} different: ")
    # Of trainings of unequal length the order of tokens cannot be compared either.
    assert len(document["reasons"]) == (2 if key == "tokens" else 1)
    row = requirement_row(document, requirement)
    assert row["state"] == "different"
    assert [value["runs"] for value in row["values"]] == [["residual seed 0"], ["mhc seed 0"]]
    assert row["values"][1]["value"] == "another"


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


def test_the_order_of_tokens_may_differ_between_seeds_but_not_within_one(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, kind, seed, config={"data": {"seed": seed}}, status={"order_fingerprint": f"order {seed}"})
        for kind in ("residual", "mhc")
        for seed in (0, 1)
    ]
    document = compare_runs(paths)
    assert document["comparable"] and len(document["arms"]) == 2
    assert "data.seed" not in document["configuration"]["different"]
    edit(paths[-1] / "status.json", order_fingerprint="another")
    row = requirement_row(compare_runs(paths), "training tokens in order")
    assert row["state"] == "different"
    assert [value["runs"] for value in row["values"]] == [["residual seed 1"], ["mhc seed 1"]]


def test_unequal_budgets_are_said_to_be_comparable_at_equal_tokens(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", losses=(8.3, 7.0, 6.5, 6.2))]
    document = compare_runs(paths)
    assert not document["comparable"] and "at equal tokens" in document["reasons"][0]
    assert state(document, "training tokens in order") == "unknown"
    tokens = document["budgets"][0]
    assert tokens["amount"] == 40_960 and tokens["losses"] == {"residual": 6.5, "mhc": 6.5}


def test_keys_that_differ_are_named_and_hashes_are_short(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, kind, config={"model": {"dim": dim}}, status={"tokenizer_sha256": letter * 64})
        for kind, dim, letter in (("residual", 128, "a"), ("mhc", 256, "b"))
    ]
    document = compare_runs(paths)
    assert [value["value"] for value in requirement_row(document, "model")["values"]] == [
        "model.dim=128",
        "model.dim=256",
    ]
    assert requirement_row(document, "tokenizer")["values"][0]["value"] == "a" * 12


@pytest.mark.parametrize(("varied", "comparable"), [(("optim.lr",), True), (("optim",), True), (("optim.eps",), False)])
def test_what_was_varied_on_purpose_is_no_difference(tmp_path: Path, varied: tuple[str, ...], comparable: bool) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc", config={"optim": {"lr": 1e-4}})]
    document = compare_runs(paths, Setting(varied=varied))
    assert document["comparable"] == comparable and document["varied"] == list(varied)


def test_models_that_differ_on_purpose_need_not_start_alike(tmp_path: Path) -> None:
    larger = {"config": {"model": {"layers": 8}}, "status": {"backbone_fingerprint": "larger"}}
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "residual", **larger)]
    assert not compare_runs(paths)["comparable"]
    document = compare_runs(paths, Setting(varied=("model.layers",)))
    assert document["comparable"] and state(document, "backbone weights at the start") == "different"


def test_the_reference_is_the_first_arm_or_the_one_that_was_named(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, kind) for kind in ("residual", "hc", "mhc")]
    assert compare_runs(paths)["reference"] == "residual"
    document = compare_runs(paths, Setting(against="hc"))
    assert document["reference"] == "hc" and [arm["name"] for arm in document["arms"]] == ["residual", "hc", "mhc"]
    assert [(row["a"], row["b"], row["family"]) for row in document["differences"]] == [
        ("hc", "residual", "reference"),
        ("hc", "mhc", "reference"),
        ("residual", "mhc", "others"),
    ]
    with pytest.raises(ConfigError, match="no such arm. The arms are residual, hc, mhc"):
        compare_runs(paths, Setting(against="HC"))


def test_arms_with_other_seeds_cannot_be_paired(tmp_path: Path) -> None:
    document = compare_runs([write_run(tmp_path, "residual", 0), write_run(tmp_path, "mhc", 1)])
    assert state(document, "seeds") == "different"


def test_runs_of_different_experiments_have_no_verdict_but_those_of_unequal_length_at_equal_tokens(
    tmp_path: Path,
) -> None:
    def verdicts(**other: Any) -> tuple[str, str]:
        root = tmp_path / str(len(list(tmp_path.glob("*"))))
        root.mkdir()
        runs = [write_run(root, "residual", seed, losses=(8.0, 7.0, 6.0 + 0.001 * seed)) for seed in range(3)]
        runs += [write_run(root, "mhc", seed, losses=(8.0, 6.5, 5.0 + 0.002 * seed), **other) for seed in range(3)]
        document = compare_runs(runs)
        return document["differences"][0]["verdict"], document["budgets"][0]["differences"][0]["verdict"]

    assert verdicts() == ("lower", "lower")
    assert verdicts(status={"validation_sha256": "another"}) == ("not comparable", "not comparable")
    longer = {"tokens": 99_999, "order_fingerprint": "of a longer one"}
    assert verdicts(status=longer) == ("not comparable", "lower")
    # At equal length another order is no matter of length; nor is one that nobody knows, nor other data.
    assert verdicts(status={"order_fingerprint": "another"}) == ("not comparable", "not comparable")
    assert verdicts(status=longer | {"order_fingerprint": None}) == ("not comparable", "not comparable")
    for data in ({"seed": 7}, {"seq_len": 512}):
        assert verdicts(status=longer, config={"data": data}) == ("not comparable", "not comparable")


def test_what_is_unknown_is_not_called_different(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "residual"), write_run(tmp_path, "mhc")]
    edit(paths[0] / "status.json", precision=None)
    assert compare_runs(paths)["reasons"] == ["precision unknown: not recorded of 1 of 2 runs"]
    edit(paths[1] / "status.json", precision=None)
    assert compare_runs(paths)["reasons"] == ["precision unknown: not recorded of any run"]
    for path in paths:
        edit(path / "status.json", status="failed")
    assert compare_runs(paths)["reasons"][0] == (
        "token budget unknown: recorded at the end of a training, and none has finished"
    )


def test_runs_that_are_not_comparable_change_no_places(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, kind, seed) for kind in ("residual", "mhc") for seed in range(2)]
    assert compare_runs(paths)["crossings"][0]["state"] == "none"
    edit(paths[-1] / "status.json", validation_sha256="another", tokenizer_sha256="another")
    (row,) = compare_runs(paths)["crossings"]
    assert row["state"] == "unknown"
    assert row["text"] == "Not known: the runs are not comparable: validation set different; tokenizer different."
