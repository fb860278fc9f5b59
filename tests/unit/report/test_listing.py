"""`mhc-train runs`: every directory has a row, whatever state it is in, and no lock is made or kept from anyone."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_runs import edit, write, write_lines, write_run
from filelock import FileLock
from tiny import run_command

from mhc_train.errors import CheckpointError
from mhc_train.files import BLOCK, is_locked, json_lines_from_end
from mhc_train.report.listing import Entry, listed


def only(path: Path) -> Entry:
    (entry,) = listed([path])
    return entry


def write_group(root: Path, name: str, *states: str, runs: tuple[Path, ...] = (), **keys: Any) -> Path:
    path = root / name
    path.mkdir()
    names: list[str | None] = [str(run) for run in runs] + [None] * (len(states) - len(runs))
    jobs = [{"state": state, "run": run} for state, run in zip(states, names, strict=True)]
    write(path / "ledger.json", {"jobs": jobs} | keys)
    return path


def tear(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = write_run(tmp_path, "hc", seed=3, losses=(8.0, 7.5, 6.25), gain=1.5, sublayers=3, measurements=2)
    entry = only(tmp_path)
    assert (entry.name, entry.kind, entry.state, entry.begun) == (run.name, "run", "done", "2026-01-01T00:00:00")
    assert (entry.arm, entry.streams, entry.seed, entry.val_loss, entry.measured) == ("hc", 4, 3, 6.25, 10)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (entry.step, entry.tokens, entry.train_loss) == (last["step"], last["tokens"], last["train_loss"])
    assert entry.forward_gain == pytest.approx(1.5**3) and entry.backward_gain == pytest.approx(1.5**3)
    assert entry.problem is entry.go_on is entry.jobs is None


def test_the_status_says_the_connection_where_it_can(tmp_path: Path) -> None:
    run = write_run(tmp_path, "mhc", status={"connection": "mhc_lite", "streams": 2})
    (run / "config.yaml").write_text("nobody reads this")
    assert (only(tmp_path).arm, only(tmp_path).streams) == ("mhc_lite", 2)


def test_what_is_no_number_is_a_broken_file(tmp_path: Path) -> None:
    edit(write_run(tmp_path) / "status.json", seed="first")
    run = write_run(tmp_path)
    write_lines(run / "metrics.jsonl", [{"step": 1, "tokens": 100, "train_loss": "x"}])
    found = {entry.state: entry.problem for entry in listed([run])} | {"all": len(listed([tmp_path]))}
    assert found["all"] == 2 and "metrics.jsonl cannot be read (ValueError: train_loss is 'x'" in str(found["broken"])
    assert [entry.state for entry in listed([tmp_path])] == ["broken"] * 2


def test_running_is_believed_only_while_the_lock_is_held(tmp_path: Path) -> None:
    run = write_run(tmp_path, status={"status": "running"})
    assert only(tmp_path).state == "dead" and not (run / ".lock").exists()
    with FileLock(run / ".lock"):
        assert only(tmp_path).state == "running"
        with pytest.raises(TimeoutError), FileLock(run / ".lock", timeout=0):
            pass
    assert only(tmp_path).state == "dead"
    with FileLock(run / ".lock", timeout=0):  # which was not kept
        pass
    edit(run / "status.json", status=None)
    assert only(tmp_path).state == "starting"


def test_two_looks_at_a_lock_do_not_see_each_other(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_locked(tmp_path / "lock")


@pytest.mark.parametrize("size", [10, BLOCK // 2, 3 * BLOCK])
def test_lines_come_from_the_end_whatever_their_length(tmp_path: Path, size: int) -> None:
    documents = [{"number": number, "text": "ä" * (size + number)} for number in range(7)]
    write_lines(tmp_path / "lines.jsonl", documents)
    assert list(json_lines_from_end(tmp_path / "lines.jsonl")) == documents[::-1]
    with (tmp_path / "lines.jsonl").open("a") as stream:
        stream.write('{"number": 7, "te' + size * "x")  # is being written
    assert list(json_lines_from_end(tmp_path / "lines.jsonl")) == documents[::-1]
    (tmp_path / "lines.jsonl").write_text('{"number"')
    assert list(json_lines_from_end(tmp_path / "lines.jsonl")) == []
    assert list(json_lines_from_end(tmp_path / "nothing.jsonl")) == []


def test_the_last_validation_loss_may_be_long_ago_and_a_gain_not_finite(tmp_path: Path) -> None:
    run = write_run(tmp_path, measurements=1)
    lines = [{"step": step, "tokens": step, "train_loss": 5.0} for step in range(4000)]
    lines[1] |= {"val_loss": 5.5}
    write_lines(run / "metrics.jsonl", lines)
    line = json.loads((run / "diagnostics" / "measurements.jsonl").read_text())
    line["composite"]["forward"][1]["forward_gain"]["max"] = None
    write_lines(run / "diagnostics" / "measurements.jsonl", [line])
    entry = only(tmp_path)
    assert (entry.step, entry.val_loss, entry.measured, entry.forward_gain) == (3999, 5.5, 0, None)
    assert entry.backward_gain == pytest.approx(1.0)


def test_a_broken_directory_is_a_row_that_names_the_file(tmp_path: Path) -> None:
    for number, name in enumerate(("status.json", "metrics.jsonl", "diagnostics/measurements.jsonl", "config.yaml")):
        run = write_run(tmp_path, seed=number)
        if name == "config.yaml":
            (run / name).write_text("connection: [")
        elif name.endswith("jsonl"):
            (run / name).write_text('{"step": 1, "tok\n')
        else:
            tear(run / name)
    tear(write_group(tmp_path, "20270101-000000-sweep-aaaaaa", "done") / "ledger.json")
    (write_group(tmp_path, "20270101-000000-sweep-bbbbbb") / "ledger.json").write_text("[]")
    write_run(tmp_path)
    entries = listed([tmp_path])
    assert sorted((entry.problem or "fine").split()[0] for entry in entries) == [
        "config.yaml", "fine", "ledger.json", "ledger.json", "measurements.jsonl", "metrics.jsonl", "status.json",
    ]  # fmt: skip
    assert {entry.state for entry in entries} == {"broken", "done"}


@pytest.mark.parametrize(
    ("jobs", "status", "state", "command"),
    [
        (("done", "done"), None, "done", None),
        (("done", "failed"), None, "failed", "mhc-train fit -m --resume {} --retry-failed"),
        (("done", "failed", "waiting"), None, "stopped", "mhc-train fit -m --resume {}"),
        (("done", "running", "waiting"), None, "dead", "mhc-train fit -m --resume {}"),
        (("done", "done"), "running", "dead", "mhc-train compare --resume {}"),
        (("done", "failed"), "done", "done", None),
        (("done", "stopped"), "stopped", "stopped", "mhc-train compare --resume {}"),
    ],
)
def test_a_group_says_what_goes_on_with_it(
    tmp_path: Path, jobs: tuple[str, ...], status: str | None, state: str, command: str | None
) -> None:
    kind = {"kind": "comparison"} if status else {}
    path = write_group(tmp_path, "20260101-000000-compare-aaaaaa", *jobs, **kind)
    if status:
        write(path / "status.json", {"status": status, "kind": "comparison"})
    entry = only(tmp_path)
    assert (entry.kind, entry.state) == ("comparison" if status else "sweep", state)
    assert entry.jobs is not None and entry.jobs["done"] == jobs.count("done") and sum(entry.jobs.values()) == len(jobs)
    assert entry.go_on == (command and command.format(path))
    with FileLock(path / "lock"):  # as whoever works on it holds it
        assert only(tmp_path).state == "running" and only(tmp_path).go_on is None


def test_a_group_is_listed_with_its_runs_and_others_newest_first(tmp_path: Path) -> None:
    first, second, other = (write_run(tmp_path, seed=seed) for seed in range(3))
    later = other.rename(tmp_path / "20260301-000000-later-aaaaaa")
    group = write_group(tmp_path, "20260201-000000-sweep-aaaaaa", "done", "waiting", runs=(first,))
    assert {entry.path for entry in listed([group])} == {str(group), str(first)}
    assert [entry.path for entry in listed([tmp_path, first])][:2] == [str(later), str(group)]
    assert len(listed([tmp_path, first])) == 4
    write(group / "ledger.json", {"jobs": []})
    write(group / "status.json", {"status": "done", "kind": "comparison", "runs": [str(first), str(second)]})
    assert {entry.path for entry in listed([group])} == {str(group), str(first), str(second)}
    (group / "ledger.json").unlink()
    (entry,) = [entry for entry in listed([group]) if entry.kind == "comparison"]
    assert (entry.state, entry.jobs) == ("done", {"done": 2})
    with pytest.raises(CheckpointError, match="no directory"):
        listed([tmp_path / "nowhere"])


def test_the_command_sorts_selects_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    better = write_run(tmp_path, "hc", losses=(8.0, 5.0))
    worse = write_run(tmp_path, "mhc", losses=(8.0, 6.0))
    nothing = write_run(tmp_path, "residual", losses=(), measurements=0, status={"status": "failed"})
    broken = write_run(tmp_path)
    tear(broken / "status.json")

    def said(*arguments: str, code: int = 0) -> str:
        assert run_command(monkeypatch, "runs", str(tmp_path), *arguments) == code
        return capsys.readouterr().out

    document = json.loads(said("--json", "--sort", "val_loss"))
    assert document["schema_version"] == 1
    assert [row["name"] for row in document["runs"]][:2] == [better.name, worse.name]
    assert set(document["runs"][0]) == {field.name for field in dataclasses.fields(Entry)}
    (row,) = json.loads(said("--json", "--state", "failed"))["runs"]
    assert (row["name"], row["val_loss"], row["measured"]) == (nothing.name, None, None)
    assert json.loads(said("--json", "--sort", "name", "--reverse"))["runs"][0]["name"] == max(
        path.name for path in tmp_path.iterdir()
    )
    table = said()
    assert all(path.name in table for path in tmp_path.iterdir()) and "5.0000" in table
    assert f"{broken.name}: status.json cannot be read" in table and "\x1b" not in table
    assert "No run that is stopped" in said("--state", "stopped")
    said("--sort", "loss", code=2)
    said("--state", "dome", code=2)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run_command(monkeypatch, "runs", ".") == 0 and "No run in ." in capsys.readouterr().out
    assert run_command(monkeypatch, "runs") == 4 and "runs is no directory" in capsys.readouterr().err


def test_eighty_columns_hold_whole_names_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "mhc", losses=(8.0, 5.125)).rename(
        tmp_path / "20260101-120000-quickstart-residual-0a1b2c"
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(monkeypatch, "runs", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if run.name in line]
    assert row.split()[-1] == "5.1250" and len(row) <= 80
    assert any(line.startswith("No room for tokens, streams") for line in lines)
