"""Checkpoints: what is written is read, whole or sharded; what is damaged is named; what may go goes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mhc_train.checkpoints import (
    Keep,
    Snapshot,
    complete_checkpoints,
    load_checkpoint,
    prune,
    set_aside,
    verify,
    write_checkpoint,
)
from mhc_train.checkpoints.tensors import TYPES, write_whole
from mhc_train.errors import CheckpointError
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config, ConnectionConfig, ModelConfig

MODEL = ModelConfig(dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=24, max_seq_len=16, document_mask=True)
CONFIG = Config(model=MODEL)


def snapshot(step: int, sharded: bool = False) -> Snapshot:
    """Of a model whose every value is the step's."""
    model = Transformer(MODEL, ConnectionConfig(), 32)
    optimizer = {f"exp_avg/{name}": torch.full_like(value, step) for name, value in model.named_parameters()}
    optimizer["step/embedding.weight"] = torch.tensor(float(step))
    random = {"rank0/cpu": torch.get_rng_state()}
    return Snapshot(CONFIG, 32, {"step": step}, "{}", model.state_dict(), optimizer, random, sharded)


def written(directory: Path, *steps: int, keep: Keep | None = None, sharded: bool = False) -> Path:
    for step in steps:
        path = write_checkpoint(directory / "checkpoints", snapshot(step, sharded), keep or Keep(9))
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_read_is_what_was_written(sharded: bool, tmp_path: Path) -> None:
    kept = snapshot(3, sharded)
    path = write_checkpoint(tmp_path / "checkpoints", kept, Keep(1))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.path == path and checkpoint.config == CONFIG and checkpoint.state == {"step": 3}
    assert checkpoint.vocab_size == 32 and checkpoint.sharded == sharded and checkpoint.tokenizer.read_text() == "{}"
    for name, expected in (("model", kept.model), ("optimizer", kept.optimizer), ("random", kept.random)):
        found = checkpoint.tensors(name)
        assert set(found) == set(expected)
        assert all(found[key].equal(value) and found[key].dtype == value.dtype for key, value in expected.items())
    restored = checkpoint.model().state_dict()
    assert all(restored[key].equal(value) for key, value in kept.model.items())
    assert names(tmp_path) == ["latest", "step-00000003"]


@pytest.mark.parametrize("shapes", [[(3, 5), (), (0, 4), (1,)], [(7,)]])
def test_tensor_files_are_those_of_the_library(shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{kind}/{number}": (100 * torch.randn(shape, generator=generator)).to(kind)
        for kind in TYPES
        for number, shape in enumerate(shapes)
    }
    tensors["transposed"] = torch.randn(4, 6, generator=generator).T
    facts = write_whole(tmp_path / "file.safetensors", tensors)
    found = load_file(tmp_path / "file.safetensors")
    assert set(found) == set(tensors) and facts["bytes"] == (tmp_path / "file.safetensors").stat().st_size
    assert all(found[name].dtype == value.dtype and found[name].equal(value) for name, value in tensors.items())


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    written(tmp_path, 1)
    checkpoint = load_checkpoint(tmp_path)
    targets = Transformer(MODEL, ConnectionConfig(), 33).state_dict()
    with pytest.raises(CheckpointError, match=r"embedding.weight is \(32, 16\), not \(33, 16\)"):
        checkpoint.restore("model", targets, Ranks())
    del targets["embedding.weight"]
    with pytest.raises(CheckpointError, match=r"embedding.weight"):
        checkpoint.restore("model", targets, Ranks())


@pytest.mark.parametrize(
    ("keep", "left"),
    [(Keep(2), [4, 5]), (Keep(1, every=2), [2, 4, 5]), (Keep(9), [1, 2, 3, 4, 5]), (Keep(1, every=5), [5])],
)
def test_the_newest_and_the_multiples_are_kept(keep: Keep, left: list[int], tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    found = complete_checkpoints(tmp_path / "checkpoints")
    assert [load_checkpoint(path).state["step"] for path in found] == left
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000005\n"
    assert all(not name.startswith(".") for name in names(tmp_path))


def test_what_a_resumed_training_leaves_behind_is_kept_until_that_step_is_saved_again(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    written(tmp_path, 1, 2, 3)
    assert [path.name for path in set_aside(directory, after=1)] == ["step-00000002", "step-00000003"]
    assert load_checkpoint(tmp_path).state["step"] == 1
    written(tmp_path, 2, keep=Keep(1))
    assert names(tmp_path) == ["latest", "step-00000002", "step-00000003.superseded"]
    written(tmp_path, 3, keep=Keep(1))
    assert names(tmp_path) == ["latest", "step-00000003"] and prune(directory, Keep(1)) == []


def test_a_good_checkpoint_is_not_written_again_and_a_damaged_one_is(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    before = (path / "manifest.json").stat().st_mtime_ns
    written(tmp_path, 1)
    assert (path / "manifest.json").stat().st_mtime_ns == before
    (path / "state.json").write_text("{}")
    written(tmp_path, 1)
    assert verify(path) == [] and "step-00000001.superseded" not in names(tmp_path)


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    hidden = tmp_path / "checkpoints" / ".step-00000001.99"
    hidden.mkdir(parents=True)
    (hidden / "model.safetensors").write_bytes(b"half")
    written(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_the_first_format_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["format_version"] = 1
    manifest["files"] = {
        name: facts["sha256"] for name, facts in manifest["files"].items() if name != "random.safetensors"
    }
    for key in ("sha256", "tensors", "ranks"):
        del manifest[key]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "random.safetensors").unlink()
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.tensors("random") == {} and checkpoint.ranks == 1 and not checkpoint.sharded


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"format_version": 2', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="format version 9, this mhc-train reads 1 and 2"):
        load_checkpoint(tmp_path)


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no such directory"):
        load_checkpoint(tmp_path / "step-00000001")
