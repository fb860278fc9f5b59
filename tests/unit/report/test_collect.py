"""Runs become arms: failed ones without their numbers, replicates once, damaged files in one clear message."""

from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit
from fake_runs import write_run as write_any_run

from mhc_train.errors import CheckpointError, ConfigError
from mhc_train.report.collect import group_arms, read_run
from mhc_train.report.comparison import Setting, compare_runs


def write_run(root: Path, kind: str = "mhc", seed: int = 0, **changes: Any) -> Path:
    return write_any_run(root, kind, seed, measurements=0, **changes)


def write_failed(root: Path, kind: str = "mhc", seed: int = 0) -> Path:
    path = write_run(root, kind, seed, losses=(8.3, 2.0), status={"steps": 20, "error": "Step 17: diverged"})
    edit(path / "status.json", status="failed", tokens=None, peak_memory=None)
    return path


def test_a_failed_run_has_no_final_value(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, seed=0), write_run(tmp_path, seed=1), write_failed(tmp_path, seed=2)]
    (arm,) = group_arms([read_run(path) for path in paths])
    assert [record.seed for record in arm.records] == [0, 1] and [record.seed for record in arm.failed] == [2]
    assert arm.failed[0].final("val_loss") is None and arm.failed[0].curve("val_loss")
    assert arm.mean("val_loss") == 6.5 and arm.by_seed("val_loss") == {0: 6.5, 1: 6.5}


def test_an_arm_that_failed_altogether_is_still_there(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, "residual", seed) for seed in (0, 1)] + [
        write_failed(tmp_path, "hc", s) for s in (0, 1)
    ]
    for against in ("residual", "hc"):
        document = compare_runs(paths, Setting(against=against))
        assert [arm["name"] for arm in document["arms"]] == ["residual", "hc"] and document["comparable"]
        (row,) = document["differences"]
        assert row["verdict"] == "not settled: 2 of 2 runs of hc failed"
        assert document["budgets"][0]["losses"] == {"residual": 6.5, "hc": None}
        assert document["crossings"][0]["state"] == "unknown"


def test_a_last_value_that_is_not_finite_is_none(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path))
    record.metrics[-1]["val_loss"] = None
    assert record.final("val_loss") is None and group_arms([record])[0].mean("val_loss") is None


def test_a_finished_run_takes_the_place_of_a_failed_one(tmp_path: Path) -> None:
    (arm,) = group_arms([read_run(write_failed(tmp_path)), read_run(write_run(tmp_path))])
    assert len(arm.records) == 1 and arm.failed == []


def test_one_replicate_twice_is_refused(tmp_path: Path) -> None:
    paths = [write_run(tmp_path), write_run(tmp_path, config={"data": {"seed": 5}})]
    with pytest.raises(ConfigError, match="both mhc with seed 0") as caught:
        compare_runs(paths)
    assert all(str(path) in str(caught.value) for path in paths)


def test_one_run_given_twice_counts_once(tmp_path: Path) -> None:
    path, other = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1)
    (arm,) = compare_runs([path, other, path / "."])["arms"]
    assert arm["runs"] == [str(path), str(other)]


@pytest.mark.parametrize("status", ["running", "stopped"])
def test_a_training_that_has_not_ended_is_refused(tmp_path: Path, status: str) -> None:
    path = write_run(tmp_path, status={"status": status})
    with pytest.raises(CheckpointError, match=f"is {status}, neither done nor failed"):
        read_run(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", '{"status": "do'),
        ("status.json", '{"status": "done", "seed": 0}'),
        ("status.json", "[]"),
        ("config.yaml", "seed: [0\n"),
        ("config.yaml", "- 1\n"),
        ("environment.json", "\udcff"),
        ("metrics.jsonl", '{"step": 0, "tokens": 0}\n{"step": 10, "tok'),
        ("metrics.jsonl", "[]\n[]\n"),
        ("metrics.jsonl", ""),
        ("diagnostics/measurements.jsonl", "{}\n"),
        ("samples.json", "{"),
    ],
)
def test_damaged_files_are_one_clear_message(tmp_path: Path, name: str, content: str) -> None:
    path = write_run(tmp_path)
    (path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match="from a copy, or leave this run out") as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_metrics_that_are_gone(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    (path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="ends at step None of 20"):
        read_run(path)


def names(*paths: Path) -> list[str]:
    return [arm.name for arm in group_arms([read_run(path) for path in paths])]


def test_a_key_that_an_older_version_lacks_is_null(tmp_path: Path) -> None:
    old, new = write_run(tmp_path, seed=0), write_run(tmp_path, seed=1, config={"optim": {"newer": None}})
    (arm,) = compare_runs([old, new])["arms"]
    assert arm["name"] == "mhc" and arm["seeds"] == [0, 1]
    document = compare_runs([old, write_run(tmp_path, "residual", config={"optim": {"newer": None}})])
    assert document["comparable"]


def test_keys_are_in_full_where_two_have_the_same_end(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{"model": {"norm_eps": 1e-5}}, {"connection": {"norm_eps": 1e-5}}]
    paths = [write_run(tmp_path, config=change) for change in [{}, *changes, {"optim": {"lr": 0.5}}]]
    found = names(*paths)
    assert len(set(found)) == 4
    assert "model.norm_eps=1e-05" in found[1] and "connection.norm_eps=1e-05" in found[2] and "lr=0.5" in found[3]


def test_no_two_arms_have_the_same_name(tmp_path: Path) -> None:
    configs: list[dict[str, Any]] = [
        {"connection": {"label": "mhc lr=0.5"}},
        {},
        {"optim": {"lr": 0.5}},
        {"connection": {"label": "mhc lr=0.5 (2)"}},
    ]
    found = names(*(write_run(tmp_path, config=config) for config in configs))
    assert found[0] == "mhc lr=0.5" and found[2] == "mhc lr=0.5 (2)" and found[3] == "mhc lr=0.5 (2) (2)"


def test_seeds_are_in_order_however_they_were_given(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, seed=seed) for seed in (3, 1, 2)]
    (arm,) = compare_runs(paths)["arms"]
    assert arm["seeds"] == [1, 2, 3] and arm["runs"] == [str(paths[place]) for place in (1, 2, 0)]
