"""What is read of files, here and on the Hub: these bytes and no others; and what is said where they cannot be had."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import CHECKPOINTS, LAYERS, checkpoint, save, tensors_of, write_sparse
from hub import COMMIT, Hub, Repository, ask, in_a_row, serving
from safetensors.torch import save_file

from mhc_train.errors import CheckpointError
from mhc_train.foreign import is_foreign, open_foreign
from mhc_train.foreign.stores import Folder

TERABYTE = 10**12


class Recording:
    """Every range that is read of a folder, by file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        read = Folder.read_range

        def recorded(folder: Folder, file: str, start: int, end: int | None) -> bytes:
            content = read(folder, file, start, end)
            self.ranges.append((file, start, start + len(content)))
            return content

        monkeypatch.setattr(Folder, "read_range", recorded)

    @property
    def bytes(self) -> int:
        return sum(end - start for _, start, end in self.ranges)


def header_bytes(folder: Path) -> int:
    """Of all files, with the lengths before them."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            total += 8 + int.from_bytes(stream.read(8), "little")
    return total


def test_of_huge_shards_only_headers_and_hyper_connections_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    wanted = write_sparse(folder, layers=3, width=8, decoy=TERABYTE)
    recording = Recording(monkeypatch)
    model = open_foreign(str(folder))
    json_bytes = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
    assert model.bytes_read == recording.bytes == wanted + header_bytes(folder) + json_bytes
    assert len(model.names) == 6 and len(model.tensors) == 3 * 6 + 1
    model.observe(3)
    assert model.bytes_read == recording.bytes  # all of it was read when it was opened
    tensors_read = [r for r in recording.ranges if r[0].endswith(".safetensors") and r[1] > TERABYTE]
    assert len(tensors_read) <= 3 + 1  # a layer's tensors lie side by side, and are read at once


def test_whole_sharded_and_unindexed_files_are_the_same_model(tmp_path: Path) -> None:
    whole, _ = checkpoint(tmp_path / "whole", "deepseek_v4")
    sharded, _ = checkpoint(tmp_path / "sharded", "deepseek_v4", shards=5)
    unindexed, _ = checkpoint(tmp_path / "unindexed", "deepseek_v4", shards=3)
    (unindexed / "model.safetensors.index.json").unlink()
    first, *others = (open_foreign(str(folder)).observe(4) for folder in (whole, sharded, unindexed))
    for other in others:
        assert all(torch.equal(a.res, b.res) for a, b in zip(first.crossings, other.crossings, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of("deepseek_v4").items()}
    model = open_foreign(str(save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2])))
    wanted = tensors["layers.0.hc_attn_fn"][:8].float()
    assert model.connections[0].projection.dtype == torch.float32
    assert torch.equal(model.connections[0].projection[:8], wanted)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of("deepseek_v4")
    tensors["layers.1.hc_ffn_fn"] = tensors["layers.1.hc_ffn_fn"].to(torch.float8_e4m3fn)
    folder = save(tmp_path, tensors, CHECKPOINTS["deepseek_v4"][2])
    with pytest.raises(CheckpointError, match=r"layers.1.hc_ffn_fn is stored as F8_E4M3, which needs scales"):
        open_foreign(str(folder))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4", shards=4)
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the shard model-00002-of-00004.safetensors is missing.*Fetch it again"):
        open_foreign(str(folder))


def test_shard_that_is_not_needed_may_be_missing(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["embed.weight"] = "model-00003-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert len(open_foreign(str(folder)).names) == 2 * LAYERS


def test_index_that_is_wrong_is_named(tmp_path: Path) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4", shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002.safetensors: it has no .*, though"):
        open_foreign(str(folder))


def damaged(kind: str, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if kind == "cut":
        return content[:-1]
    if kind == "empty":
        return b""
    if kind == "no header":
        return b"\xff" * 100
    if kind == "not JSON":
        return content[:8] + b"x" * length + content[8 + length :]
    if kind == "no offsets":
        del header["layers.0.hc_attn_fn"]["data_offsets"]
    else:
        header["layers.0.hc_attn_fn"]["shape"] = [24, 25]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "it ends before .* does"),
        ("empty", "of bytes 0 to 8, 0 came"),
        ("no header", "it does not begin with a header"),
        ("not JSON", "its header is not one of the format"),
        ("no offsets", "its header is not one of the format"),
        ("other size", "a place of another size than its shape|is \\[24, 25\\]"),
    ],
)
def test_damaged_file_is_one_clear_error(tmp_path: Path, kind: str, said: str) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    file = folder / "model.safetensors"
    file.write_bytes(damaged(kind, file.read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        open_foreign(str(folder), family="deepseek_v4")


@pytest.mark.parametrize(
    "facts",
    [
        {"data_offsets": [-96, 0]},
        {"data_offsets": [96, 0]},
        {"data_offsets": [0.0, 96.0]},
        {"data_offsets": [False, 96]},
        {"data_offsets": [0, 48, 96]},
        {"data_offsets": "96"},
        {"dtype": ["F32"]},
        {"dtype": None},
        {"shape": "24"},
        {"shape": ["24"]},
        {"shape": [-24]},
        {"shape": [24.0]},
        {"shape": [True]},
        {"shape": None},
    ],
)
@pytest.mark.parametrize("name", ["layers.0.hc_attn_base", "hc_head_base"])
def test_header_that_lies_is_one_clear_error(tmp_path: Path, name: str, facts: dict) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name] |= facts
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged .*its header is not one of the format"):
        open_foreign(str(folder))


def test_projection_of_an_unknown_type_may_claim_any_size(tmp_path: Path) -> None:
    """Its size in bytes is not known, so that the shape alone is what there is: it must not be counted up to."""
    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["layers.0.hc_attn_fn"] |= {"dtype": "F4", "shape": [10**30, 10**30]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(CheckpointError, match="layers.0.hc_attn_fn is .*which is not DeepSeek-V4's"):
        open_foreign(str(folder), family="deepseek_v4")


def test_tensor_in_two_files_without_an_index_is_refused(tmp_path: Path) -> None:
    folder, tensors = checkpoint(tmp_path, "deepseek_v4", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    save_file({"hc_head_base": tensors["hc_head_base"] + 1}, folder / "copy.safetensors")
    with pytest.raises(CheckpointError, match=r"hc_head_base is in both copy.safetensors and model-0000.-of-00002"):
        open_foreign(str(folder))


@pytest.mark.parametrize("content", ["{", "[1, 2]", "5", "null", "[]", '"text"', 100_000 * "["])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_no_object_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=f"{file} is damaged: it is no JSON"):
        open_foreign(str(folder))


@pytest.mark.parametrize("places", [None, [], {"hc_head_base": ["model.safetensors"]}, {"hc_head_base": None}])
def test_index_without_files_is_named(tmp_path: Path, places: object) -> None:
    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="its weight_map does not give every tensor a file"):
        open_foreign(str(folder))


def test_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="it has no safetensors files"):
        open_foreign(str(tmp_path))


def test_what_is_neither_a_folder_nor_a_models_name_is_refused(tmp_path: Path) -> None:
    for target in (str(tmp_path / "absent"), "absent", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such folder"):
            open_foreign(target)


def test_what_is_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "theirs", "deepseek_v4")
    checkpoint(tmp_path / "shards" / "only", "deepseek_v4", shards=2)
    for name in ("run", "ours", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "ours" / "manifest.json").touch()
    save_file({"x": torch.zeros(1)}, tmp_path / "ours" / "model.safetensors")
    assert is_foreign("theirs") and is_foreign("shards/only")
    assert is_foreign("org/name") and is_foreign("hf://org/name") and is_foreign("hf://org/name@v1.0/rc")
    for target in ("run", "ours", "empty", "ours/model.safetensors", "run/mistyped", "name", "/org/name", "a/b/c", ""):
        assert not is_foreign(target), target


# The Hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub() -> Hub:
    with serving() as hub:
        yield hub


def test_hub_is_read_in_ranges_of_one_commit(tmp_path: Path, hub: Hub) -> None:
    folder, _ = checkpoint(tmp_path / "model", "deepseek_v4", shards=3)
    hub.repositories["org/model"] = repository = Repository(files_of(folder) | {"README.md": b"x"})
    local = open_foreign(str(folder))
    targets = ("org/model", f"hf://org/model@{COMMIT}")
    answers = ask(hub, tmp_path / "home", [{"foreign": target, "tokens": 3} for target in targets])
    for target, found in zip(targets, answers, strict=True):
        assert found["facts"] == local.facts | {"source": f"hf://{target.removeprefix('hf://')}"}
        assert found["res"] == local.observe(3).crossings[-1].res.tolist()
    read = [request for request in repository.requests if ".safetensors bytes" in request]
    assert read and all(f"/resolve/{COMMIT}/" in request for request in read)
    assert not any(request.endswith(".safetensors") for request in repository.requests)
    assert not any("README" in request for request in repository.requests)


def test_hub_that_falters_is_asked_again(tmp_path: Path, hub: Hub) -> None:
    folder, _ = checkpoint(tmp_path / "model", "hy_v4")
    faults = ("503", "cut", "late")
    for fault in faults:
        once = in_a_row(r"safetensors bytes=8-", fault)
        hub.repositories[f"org/{fault}"] = Repository(files_of(folder), fault=once)
    jobs = [{"foreign": f"org/{fault}", "tokens": 1, "seconds": 0.5} for fault in faults]
    for found in ask(hub, tmp_path / "home", jobs):
        assert found["facts"]["family"] == "hy_v4" and len(found["pauses"]) == 1


def test_hub_that_cannot_be_had_is_one_clear_error(tmp_path: Path, hub: Hub) -> None:
    folder, _ = checkpoint(tmp_path / "model", "hy_v4")
    hub.repositories["org/model"] = Repository(files_of(folder))
    jobs = [{"foreign": "org/absent", "tokens": 1}, {"foreign": "hf://org/model@nowhere", "tokens": 1}]
    absent, unknown = ask(hub, tmp_path / "home", jobs)
    assert absent["error"].startswith("CheckpointError: hf://org/absent cannot be read") and not absent["pauses"]
    assert unknown["error"].startswith("CheckpointError: hf://org/model@nowhere cannot be read")
    nobody = type("Nobody", (), {"url": "http://127.0.0.1:9"})()
    (unreachable,) = ask(nobody, tmp_path / "home", [{"foreign": "org/model", "tokens": 1}])
    assert "CheckpointError: hf://org/model cannot be read: tried 3 times" in unreachable["error"]
    assert "name a folder that has been downloaded" in unreachable["error"]
    assert len(unreachable["pauses"]) == 2 and sum(unreachable["pauses"]) < 2


@pytest.mark.parametrize("status", [200, 206])
def test_hub_that_sends_more_than_was_asked_for_is_not_listened_to(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    folder, _ = checkpoint(tmp_path / "model", "hy_v4")
    hub.repositories["org/model"] = Repository(files_of(folder))
    sent, piece, pieces = [], bytes(2**20), 2**10
    send_file = hub.RequestHandlerClass.send_file

    def send_much(handler: Any, content: bytes, commit: str, cut: bool) -> None:
        if "Range" not in handler.headers:
            send_file(handler, content, commit, cut)
            return
        handler.answer(status, b"", {"Content-Length": str(len(piece) * pieces)}, cut=True)
        with contextlib.suppress(OSError):  # the client has gone
            for _ in range(pieces):
                handler.wfile.write(piece)
                sent.append(len(piece))

    monkeypatch.setattr(hub.RequestHandlerClass, "send_file", send_much)
    (found,) = ask(hub, tmp_path / "home", [{"foreign": "org/model", "tokens": 1}])
    assert found["error"].startswith("CheckpointError: hf://org/model/model.safetensors: asked for a part of it")
    assert not found["pauses"] and len(sent) < pieces / 4
