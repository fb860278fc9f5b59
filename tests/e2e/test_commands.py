"""The command line as a user types it: what it writes, prints and ends with."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import overrides, run_command

from mhc_train import progress
from mhc_train.config.compose import groups
from mhc_train.files import read_json_lines
from mhc_train.mixers import MIXERS

REPOSITORY = Path(__file__).resolve().parents[2]
STEP_8 = "checkpoints/step-00000008"
TIMINGS = ("tokens_per_second", "data_wait")


def only_run(directory: Path) -> Path:
    (run,) = (directory / "runs").iterdir()
    return run


def fitted(monkeypatch: pytest.MonkeyPatch, directory: Path, *extra: str) -> Path:
    assert run_command(monkeypatch, "fit", *overrides(directory), *extra) == 0
    return only_run(directory)


@pytest.mark.parametrize("option", groups()["connection"])
def test_fit_then_diagnose(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", "--json", *overrides(tmp_path), f"connection={option}") == 0
    summary = json.loads(capsys.readouterr().out)
    run = Path(summary["run"])
    metrics = read_json_lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [0, 2, 4, 6, 8]
    assert abs(metrics[0]["val_loss"] - math.log(300)) < 0.3
    assert summary["status"] == "done" and summary["tokens"] == 8 * 256
    assert summary["val_loss"] == metrics[-1]["val_loss"] < metrics[0]["val_loss"]
    assert [line["step"] for line in read_json_lines(run / "diagnostics" / "measurements.jsonl")] == [0, 4, 8]
    assert len(json.loads((run / "samples.json").read_text())) == 3

    assert run_command(monkeypatch, "diagnose", str(run), "--json", "--tokens", "64") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["connection"] == option and len(document["sublayers"]) == 4
    assert set(document["sublayers"][0]["forward_gain"]) == {"mean", "min", "median", "p99", "max"}
    assert len(document["composite"]["forward"]) == len(document["composite"]["backward"]) == 4
    if option not in ("hc", "hc_static", "ohc", "shc"):  # these promise less
        assert not [law for law in document["laws"] if law["verdict"] == "fail"]


def test_checkpoint_of_a_mixer_that_is_not_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fitted(monkeypatch, tmp_path, "connection=ohc")
    monkeypatch.delitem(MIXERS, "quaternion")
    assert run_command(monkeypatch, "diagnose", str(run)) == 4
    assert "there is no mixer quaternion" in capsys.readouterr().err


def test_write_multiplier_ends_where_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fitted(monkeypatch, tmp_path, "connection.final_write_multiplier=1")
    for step, expected in ((4, 2 - 3 / 7), (8, 1.0)):
        tensors = load_file(run / f"checkpoints/step-0000000{step}" / "model.safetensors")
        for index in range(4):
            assert tensors[f"path.connections.{index}.write_multiplier"].item() == pytest.approx(expected)


LOOKING = "diagnostics.watch_every=1"


def test_two_stops_and_resumes_equal_one_straight_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = fitted(monkeypatch, tmp_path / "a", LOOKING) if (tmp_path / "a").mkdir() is None else None
    assert straight is not None
    (tmp_path / "b").mkdir()
    stop_at = {3, 5}  # between logged steps, evaluations and saves
    update = progress.Progress.update

    def stopping(self: progress.Progress, step: int, facts: str) -> None:
        update(self, step, facts)
        if step in stop_at:
            stop_at.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.Progress, "update", stopping)
    assert run_command(monkeypatch, "fit", *overrides(tmp_path / "b"), LOOKING) == 75
    run = only_run(tmp_path / "b")
    assert json.loads((run / "status.json").read_text())["status"] == "stopped"
    assert run_command(monkeypatch, "fit", "--resume", str(run)) == 75
    assert run_command(monkeypatch, "fit", "--resume", str(run)) == 0

    for name in ("model", "optimizer"):
        expected, found = (load_file(path / STEP_8 / f"{name}.safetensors") for path in (straight, run))
        assert expected.keys() == found.keys()
        assert all(expected[key].equal(found[key]) for key in expected)
    lines = [read_json_lines(path / "metrics.jsonl") for path in (straight, run)]
    without_timings = [[{k: v for k, v in line.items() if k not in TIMINGS} for line in part] for part in lines]
    assert without_timings[0] == without_timings[1]
    looks = [(path / "diagnostics" / "watch.jsonl").read_bytes() for path in (straight, run)]
    assert looks[0] == looks[1] and looks[0].count(b"\n") == 8
    status = [json.loads((path / "status.json").read_text()) for path in (straight, run)]
    assert status[0]["order_fingerprint"] == status[1]["order_fingerprint"]


def test_what_is_looked_at_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for name, *arguments in (("seen", LOOKING), ("unseen", "diagnostics=none")):
        (tmp_path / name).mkdir()
        run = fitted(monkeypatch, tmp_path / name, *arguments)
        assert (run / "diagnostics" / "watch.jsonl").exists() == (name == "seen")
        lines.append(
            [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_json_lines(run / "metrics.jsonl")]
        )
    assert lines[0] == lines[1]


def test_a_look_at_the_first_step_tells_of_no_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = read_json_lines(fitted(monkeypatch, tmp_path, LOOKING) / "diagnostics" / "watch.jsonl")
    assert [("mixer_drift" in look["sublayers"][0]) for look in looks] == [False] + 7 * [True]
    verdicts = [law["verdict"] for look in looks for law in look["laws"] if law["law"] == "dead_mixer"]
    assert len(verdicts) == 8 and "fail" not in verdicts


def test_only_some_keys_may_change_on_resume(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", "--resume", str(run), "optim.lr=1") == 2
    assert "optim.lr=1: cannot change on --resume; the run has 0.00" in capsys.readouterr().err
    assert run_command(monkeypatch, "fit", "--resume", str(run), "train.steps=10") == 0
    assert read_json_lines(run / "metrics.jsonl")[-1]["step"] == 10


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"])
def test_a_corrupt_checkpoint_is_refused_by_name(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / STEP_8 / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run_command(monkeypatch, "diagnose", str(run / STEP_8)) == 4
    assert f"{name} is corrupt" in capsys.readouterr().err
    file.unlink()
    assert run_command(monkeypatch, "fit", "--resume", str(run / STEP_8)) == 4
    assert f"{name} is missing" in capsys.readouterr().err
    assert run_command(monkeypatch, "diagnose", str(run)) == 0
    output = capsys.readouterr()
    assert f"{name} is missing. The one before it is used" in output.err and "step-00000006" in output.out


def test_bad_configuration_is_reported_all_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["train.lrr=1", "optim.lr=abc", "connection=mhcc", "model.dim=100", "train.steps=0", "seed=1,2", "a=[1"]
    assert run_command(monkeypatch, "fit", *wrong) == 2
    message = capsys.readouterr().err
    for part in ("train.lrr=1: no such key", "optim.lr = abc", "connection = mhcc", "model.dim=96", "train.steps = 0",
                 "seed=1,2: a sweep", "a=[1: not an override"):  # fmt: skip
        assert part in message
    assert "Traceback" not in message


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(monkeypatch, "diagnose", str(tmp_path / "nowhere")) == 4
    assert run_command(monkeypatch, "compare", str(tmp_path)) == 4
    base = overrides(tmp_path)
    assert run_command(monkeypatch, "fit", *base, f"data.path={tmp_path}/none-*.jsonl") == 3
    assert run_command(monkeypatch, "fit", *base, "data.column=body") == 3
    assert "no column body; there is text" in capsys.readouterr().err
    assert run_command(monkeypatch, "fit", *base, f"data.tokenizer={tmp_path}/none.json") == 3
    (tmp_path / "file").touch()
    assert run_command(monkeypatch, "fit", *base, f"runs_dir={tmp_path}/file/runs") == 7
    assert "Traceback" not in capsys.readouterr().err


def test_not_finite_ends_with_5_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), "optim.lr=1e30", "train.save_every=1") == 5
    assert "not finite" in capsys.readouterr().err
    run = only_run(tmp_path)
    assert json.loads((run / "status.json").read_text())["status"] == "failed"
    tensors = load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def in_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mhc_train", *arguments],
        capture_output=True, text=True, timeout=300, env=os.environ | environment,
    )  # fmt: skip


def test_without_a_network_a_hub_data_set_is_one_clear_message(tmp_path: Path) -> None:
    result = in_process("fit", "data=tinystories", f"runs_dir={tmp_path}", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 3
    assert "cannot be read: tried 3 times" in result.stderr and "data=wiki" in result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: it lets the first checkpoint through, not the second."""
    script = (
        "import resource, sys\n"
        "from mhc_train.checkpoints import writing\n"
        "from mhc_train.cli.app import main\n"
        "write = writing.write_whole\n"
        "def limited(path, tensors):\n"
        "    if 'step-00000008' in path.parent.name:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    return write(path, tensors)\n"
        "writing.write_whole = limited\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "fit", *overrides(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 7, result.stderr
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    checkpoints = only_run(tmp_path) / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["latest", "step-00000004"]


def test_dry_run_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "fit", *overrides(tmp_path), "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == sum(n for part, n in plan["parameters"].items() if part != "total")
    assert plan["tokens_per_step"] == 256 and plan["accumulation"] == 2 and plan["memory"]["activations"] > 0
    assert run_command(monkeypatch, "fit", "model=27b", "model.layers=2", "train.recompute=auto", "--dry-run") == 0
    table = capsys.readouterr().out
    assert "streams, from one state in 2" in table and "segments of 2 sublayers" in table
    assert not (tmp_path / "runs").exists()


def test_the_command_line_imports_nothing_heavy() -> None:
    script = (
        "import sys, mhc_train.cli.app; print([m for m in ('torch', 'datasets', 'wandb', 'hydra') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert "mhc-train" in in_process("--version").stdout


def commands_of(text: str) -> list[str]:
    return [line.split("    #")[0].strip() for line in text.splitlines() if line.strip().startswith("mhc-train ")]


def test_every_documented_override_composes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command of the README, the page on data and --help that starts from overrides, as far as its plan."""
    import shlex

    from mhc_train.bench.arms import plan
    from mhc_train.config.compose import compose
    from mhc_train.experiments.comparison import plan_comparison
    from mhc_train.experiments.sweep import plan_sweep

    names = (
        "README.md",
        "docs/data.md",
        "docs/sweeps.md",
        "docs/comparing.md",
        "docs/stress.md",
        "docs/performance.md",
    )
    pages = [(REPOSITORY / name).read_text() for name in names]
    for command in (("fit",), ("compare",), ("data", "prepare"), ("data", "inspect"), ("bench",)):
        monkeypatch.setenv("COLUMNS", "300")
        run_command(monkeypatch, *command, "--help")
        pages.append(capsys.readouterr().out)
    seen = 0
    lines = dict.fromkeys(line for page in pages for line in commands_of(page.replace("│", "")))
    for words in map(shlex.split, lines):
        arguments = [word for word in words[2:] if "=" in word]
        if words[1] not in ("fit", "compare", "data", "bench") or "--resume" in words or not arguments:
            continue
        seen += 1
        if words[1] == "compare":
            assert len(plan_comparison(arguments, "config", None).arms) > 1
        elif "-m" in words:
            assert len(plan_sweep(arguments, "config", None).jobs) > 1
        elif words[1] == "bench":
            assert len(plan([word for word in arguments if " " not in word], [], False, "config", None)) > 1
        else:
            compose(arguments)
    assert seen >= 12


def test_the_wheel_works_from_anywhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "mhc_train", "fit", "--json", *overrides(tmp_path), "train.steps=2"]
    environment = os.environ | {"PYTHONPATH": str(target)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    where = [sys.executable, "-c", "import mhc_train; print(mhc_train.__file__)"]
    assert str(target) in subprocess.run(where, capture_output=True, text=True, cwd=elsewhere, env=environment).stdout


def test_a_resumed_run_keeps_its_beginning_and_records_its_changes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((run / "status.json").read_text())["backbone_fingerprint"]
    assert run_command(monkeypatch, "fit", "--resume", str(run), "train.steps=10") == 0
    assert json.loads((run / "status.json").read_text())["backbone_fingerprint"] == before
    assert "steps: 10" in (run / "config.yaml").read_text()
    assert (run / "overrides.txt").read_text().splitlines()[-1] == "train.steps=10"


def test_fewer_steps_than_were_taken_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = (run / "status.json").read_text()
    assert run_command(monkeypatch, "fit", "--resume", str(run), "train.steps=5") == 2
    assert "already taken 8. Type train.steps=8 or more" in capsys.readouterr().err
    assert (run / "status.json").read_text() == status


def test_a_run_killed_after_its_last_step_can_be_resumed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = (run / "metrics.jsonl").read_text()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "running"}))
    (run / "samples.json").unlink()
    assert run_command(monkeypatch, "fit", "--resume", str(run)) == 0
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    assert (run / "samples.json").exists() and (run / "metrics.jsonl").read_text() == metrics


def test_training_goes_on_where_nobody_listens(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "mhc_train", "fit", "--json", *overrides(tmp_path)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=300)
    os.close(writer)
    assert json.loads(result.stdout)["status"] == "done"


def test_half_of_a_launchers_environment_is_one_clear_message(tmp_path: Path) -> None:
    result = in_process("fit", *overrides(tmp_path), RANK="0", WORLD_SIZE="2")
    assert result.returncode == 2 and "but not MASTER_ADDR, MASTER_PORT" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "runs").exists()
