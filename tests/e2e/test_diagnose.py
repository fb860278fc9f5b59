"""`mhc-train diagnose` as a user types it: every kind of target, every view, and what is refused."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import only_run
from safetensors.torch import save_file
from tiny import overrides, run_command

NUMBER_OF_SUBLAYERS = 4
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished training of each arm."""
    patch = pytest.MonkeyPatch()
    found = {}
    for arm in ("hc", "mhc", "residual"):
        directory = tmp_path_factory.mktemp(arm)
        assert run_command(patch, "fit", *overrides(directory), f"connection={arm}") == 0
        found[arm] = only_run(directory)
    return found


@pytest.fixture
def diagnosed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs `diagnose --json` and returns its document."""

    def run(*arguments: object) -> Any:
        assert run_command(monkeypatch, "diagnose", *map(str, arguments), "--json") == 0
        return json.loads(capsys.readouterr().out)

    yield run


def test_everything_is_known_of_our_own(runs: dict[str, Path], diagnosed: Any) -> None:
    document = diagnosed(runs["mhc"], "--tokens", 256, "--ablate", "each")
    assert document["schema_version"] == 2 and document["basis"] == "validation tokens" and document["step"] == 8
    for entry in document["sublayers"]:
        for key in ("mixer_drift", "logit_range", "gradient_out", "majorisation_excess", "stream_difference"):
            assert set(entry[key]) == {"mean", "min", "median", "p99", "max"}
    spans = document["composite"]["spans"]
    assert set(spans) == {"forward_gain", "backward_gain", "spectral_norm", "difference_gain"}
    assert len(spans["forward_gain"]) == NUMBER_OF_SUBLAYERS and spans["forward_gain"][2][1] is None
    assert set(document["composite"]["halves"]) == {"first", "second", "whole"}
    assert len(document["information"]) == NUMBER_OF_SUBLAYERS + 1
    assert document["information"][0]["cka"]["estimate"] == pytest.approx(1)
    places = {row["sublayer"] for row in document["ablations"]}
    assert places == {"all", *(entry["name"] for entry in document["sublayers"])}
    assert {law["law"] for law in document["laws"]} >= {"mass", "dead_mixer", "declared", "no_collapse"}


def test_several_stand_side_by_side(
    runs: dict[str, Path], diagnosed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = diagnosed(*runs.values(), "--tokens", 64)
    assert [part["connection"] for part in document["diagnoses"]] == ["hc", "mhc", "residual"]
    assert run_command(monkeypatch, "diagnose", *map(str, runs.values()), "--tokens", "64") == 0
    table = capsys.readouterr().out
    for word in ("hc", "mhc", "residual", "dissipation"):
        assert word in table


def test_the_page_stands_alone(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "new" / "page.html"
    targets = [str(runs["hc"]), str(runs["mhc"])]
    assert run_command(monkeypatch, "diagnose", *targets, "--tokens", "64", "--ablate", "all", "--html", str(page)) == 0
    text = page.read_text()
    assert text.count("<svg") > 10 and not re.search(r"""(src|href)=["']https?:""", text)


def test_a_page_that_cannot_be_written_is_exit_code_7(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["diagnose", str(runs["hc"]), "--tokens", "64", "--html", str(tmp_path / "file" / "page.html")]
    assert run_command(monkeypatch, *arguments) == 7


def test_verdicts_can_fail_a_build(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [str(runs["residual"]), str(runs["mhc"])]
    assert run_command(monkeypatch, "diagnose", *targets, "--tokens", "64", "--fail-on", "fail") == 0
    assert run_command(monkeypatch, "diagnose", *targets, "--tokens", "64", "--fail-on", "warn") == 6
    assert f"{targets[1]}" in capsys.readouterr().err
    limits = {"composite_forward_gain>0.5": 6, "composite_forward_gain>10": 0, "composite_forward_gain": 2}
    for condition, code in limits.items():
        assert run_command(monkeypatch, "diagnose", targets[1], "--tokens", "64", "--fail-on", condition) == code
    assert "layers.1.feedforward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name what to measure"),
        (["RUN", "--ablate", "some"], "--ablate all or --ablate each"),
        (["RUN", "--data", "text.txt"], "its own validation tokens"),
        (["RUN", "--family", "hy4"], "--family are for those of others"),
        (["RUN", "--fail-on", "bad"], "not a condition"),
        (["--at-init", "--depths", "2,x"], "numbers of sublayers"),
        (["--at-init", "--depths", "0"], "depths"),
        (["--at-init", "connection=nothing"], "connection"),
        (["--at-init", "--fail-on", "fail"], "--fail-on is for checkpoints"),
        (["--at-init", "--ablate", "all"], "--ablate is for checkpoints"),
        (["RUN", "--jitter", "1"], "type --at-init"),
        (["RUN", "--html", "."], "this is a directory"),
        (["RUN", "--fail-on", "forwardgain>1"], "did you mean forward_gain"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(
    arguments: list[str],
    said: str,
    runs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    typed = [str(runs["hc"]) if text == "RUN" else text for text in arguments]
    assert run_command(monkeypatch, "diagnose", *typed) == 2
    assert said in capsys.readouterr().err


def test_untrained_paths_over_depths(
    diagnosed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = diagnosed("--at-init", "connection=hc,mhc_lite", "--depths", "2,100", "--jitter", 0.2, "--tokens", 16)
    free, constrained = document["diagnoses"]
    assert free["amplifier"][-1]["gain"] == pytest.approx(13780.6, abs=0.1)
    assert free["depths"][-1]["forward_gain"]["max"] > 10 > constrained["depths"][-1]["forward_gain"]["max"]
    assert constrained["depths"][-1]["forward_gain"]["max"] == pytest.approx(1, abs=1e-4)
    page = tmp_path / "depth.html"
    assert (
        run_command(monkeypatch, "diagnose", "--at-init", "--depths", "2,4", "--tokens", "4", "--html", str(page)) == 0
    )
    table = capsys.readouterr().out
    assert "1.1" in table and "hc" in table and "<svg" in page.read_text()


def test_the_same_connection_with_other_keys_is_told_apart(diagnosed: Any) -> None:
    document = diagnosed("--at-init", "connection=mhc", "connection.streams=2,4", "--depths", "2", "--tokens", 4)
    names = [part["connection"] for part in document["diagnoses"]]
    assert len(set(names)) == 2 and all("connection.streams=" in name for name in names)


def test_what_is_not_there_is_said_before_anything_is_measured(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "diagnose", str(runs["mhc"]), "connection=hc") == 4
    out, err = capsys.readouterr()
    assert not out and "connection=hc: there is no such file" in err and "Measuring" not in err


def deepseek(directory: Path, width: int = 8, layers: int = 2) -> Path:
    """The hyper-connections of a model in DeepSeek-V4's own naming, and its configuration."""
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.{layer}.hc_{place}_{part}": torch.randn(shape, generator=draw)
        for layer in range(layers)
        for place in ("attn", "ffn")
        for part, shape in (("fn", (24, 4 * width)), ("base", (24,)), ("scale", (3,)))
    }
    tensors |= {"hc_head_fn": torch.zeros(4, 4 * width), "hc_head_base": torch.zeros(4), "hc_head_scale": torch.ones(1)}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {"model_type": "deepseek_v4", "hidden_size": width, "num_hidden_layers": layers, "hc_mult": 4}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_somebody_elses_checkpoint(
    tmp_path: Path, diagnosed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = deepseek(tmp_path / "v4")
    document = diagnosed(folder, "--tokens", 32)
    assert document["tokens"] == 32 and document["biases"]["tokens"] == 1 and len(document["sublayers"]) == 4
    assert document["source"]["family"].startswith("deepseek") and "energy_out" not in document["sublayers"][0]
    page = tmp_path / "page.html"
    assert run_command(monkeypatch, "diagnose", str(folder), "--tokens", "32", "--html", str(page)) == 0
    assert "layers.1.feedforward" in capsys.readouterr().out and "<svg" in page.read_text()
    assert run_command(monkeypatch, "diagnose", str(folder), "--ablate", "all") == 2


def test_a_folder_without_hyper_connections_is_exit_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    save_file({"model.embed.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert run_command(monkeypatch, "diagnose", str(folder)) == 4
    assert "llama" in capsys.readouterr().err


def test_every_documented_diagnosis_runs(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command of the README, the docs and --help, on runs and a folder of ours; the Hub is not reached."""
    names = ("README.md", *(f"docs/{name}.md" for name in ("measurements", "ablations", "stress", "other-checkpoints")))
    monkeypatch.setenv("COLUMNS", "300")
    run_command(monkeypatch, "diagnose", "--help")
    pages = [capsys.readouterr().out.replace("│", ""), *((REPOSITORY / name).read_text() for name in names)]
    lines = {line.split("    #")[0].split(" #")[0].strip() for page in pages for line in page.splitlines()}
    folder = deepseek(tmp_path / "v4")
    seen: set[tuple[str, ...]] = set()
    monkeypatch.chdir(tmp_path)
    for line in sorted(line for line in lines if line.startswith("mhc-train diagnose ") and "ORG/NAME" not in line):
        words = shlex.split(line)[2:]
        if "RUN" in words or "--data" in words:  # the latter wants a whole model of theirs
            continue
        typed = [_replaced(word, runs, folder) for word in words]
        if tuple(typed) in seen:
            continue
        seen.add(tuple(typed))
        more = ["--depths", "2,4"] if "--at-init" in words else []
        code = run_command(monkeypatch, "diagnose", *typed, *more, "--tokens", "64")
        assert code in (0, 6 if "--fail-on" in words else 0), line
    assert len(seen) >= 8


def _replaced(word: str, runs: dict[str, Path], folder: Path) -> str:
    if word.endswith(".html"):
        return "page.html"
    if word.startswith(("models/", "path/")):
        return str(folder)
    return str(runs["hc" if "-hc-" in word else "mhc"]) if word.startswith("runs/") else word
