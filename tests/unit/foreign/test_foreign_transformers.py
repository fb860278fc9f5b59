"""Models of `transformers`, saved by it: what is read of the files against what the models themselves compute."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign_files import save
from safetensors.torch import load_file, save_file
from tiny_transformers import WIDTH, capturing, deepseek_v4, glm5_next, hy_v4, hyper_connections, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mhc_train.diagnostics import measure
from mhc_train.errors import CheckpointError, ConfigError, DataError
from mhc_train.foreign import FAMILIES, ForeignModel, observe_on_text, open_foreign

ROUNDING = 5e-6
CAUSAL = pytest.mark.parametrize("make", [deepseek_v4, hy_v4])


def saved(model: nn.Module, folder: Path) -> str:
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    return str(folder)


def assert_maps_agree(ours: ForeignModel, theirs: list[tuple[Tensor, ...]]) -> None:
    """On the streams that theirs were computed on."""
    for connection, (streams, post, *matrix, x) in zip(ours.connections, theirs, strict=True):
        maps = connection.maps(streams)
        res = matrix[0].mT if matrix else torch.eye(4).expand_as(maps.res)
        torch.testing.assert_close(maps.post, post, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(maps.res, res, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(connection.read(streams, maps.pre), x, atol=ROUNDING, rtol=1e-5)


@pytest.mark.parametrize("make", [deepseek_v4, hy_v4, glm5_next])
@torch.no_grad()
def test_maps_are_those_of_the_models_own_forward(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    model = make()
    ours = open_foreign(saved(model, tmp_path))
    assert ours.family.name == make.__name__ and (ours.streams, ours.width) == (4, WIDTH)
    with capturing(model) as caught:
        model(input_ids=token_ids(2, 12), use_cache=False)
    assert_maps_agree(ours, caught)


@CAUSAL
@torch.no_grad()
def test_sampled_maps_are_those_of_the_models_own_modules(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    model = make()
    observation = open_foreign(saved(model, tmp_path)).observe(9, seed=4)
    generator = torch.Generator().manual_seed(4)
    for module, crossing in zip(hyper_connections(model), observation.crossings, strict=True):
        streams = torch.randn(1, 9, 4, WIDTH, generator=generator)
        post, *matrix, x = module(streams)
        torch.testing.assert_close(crossing.post, post[0], atol=ROUNDING, rtol=0)
        read = (crossing.pre.unsqueeze(-1) * streams[0]).sum(-2)
        torch.testing.assert_close(read, x[0], atol=ROUNDING, rtol=1e-5)
        if matrix:
            torch.testing.assert_close(crossing.res, matrix[0][0].mT, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (deepseek_v4, {"hc_eps": 1e-2, "hc_sinkhorn_iters": 3}),
        (deepseek_v4, {"rms_norm_eps": 0.5, "hc_mult": 2}),
        (hy_v4, {"hc_eps": 1e-2, "hc_magnitude": 1.25, "rms_norm_eps": 0.5, "hc_mult": 3}),
    ],
)
@torch.no_grad()
def test_constants_come_from_the_config(tmp_path: Path, make: Callable[..., nn.Module], keys: dict) -> None:
    model = make(**keys)
    ours = open_foreign(saved(model, tmp_path))
    assert ours.streams == keys.get("hc_mult", 4)
    streams = torch.randn(1, 9, ours.streams, WIDTH)
    for connection, module in zip(ours.connections, hyper_connections(model), strict=True):
        post, *matrix, x = module(streams)
        maps = connection.maps(streams)
        torch.testing.assert_close(maps.post, post, atol=ROUNDING, rtol=0)
        torch.testing.assert_close(connection.read(streams, maps.pre), x, atol=ROUNDING, rtol=1e-5)
        if matrix:
            torch.testing.assert_close(maps.res, matrix[0].mT, atol=ROUNDING, rtol=0)


@CAUSAL
def test_names_in_memory_and_native_names_are_the_same_model(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    model = make()
    config = model.config.to_dict()
    first = open_foreign(saved(model, tmp_path / "saved")).observe(5)
    in_memory = save(tmp_path / "memory", model.state_dict(), config)
    on_disk = load_file(tmp_path / "saved" / "model.safetensors")
    native = {
        re.sub(r"^model\.(layers|mtp)", r"\1", name).replace("model.hc_head.hc_", "hc_head_"): tensor
        for name, tensor in on_disk.items()
    }
    for folder in (in_memory, save(tmp_path / "native", native, config)):
        for a, b in zip(first.crossings, open_foreign(str(folder)).observe(5).crossings, strict=True):
            assert torch.equal(a.pre, b.pre) and torch.equal(a.post, b.post) and torch.equal(a.res, b.res)


# On text


@CAUSAL
def test_text_gives_the_models_own_streams_maps_and_loss(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    model, ids = make(), token_ids(2, 13)
    folder = saved(model, tmp_path)
    observation = observe_on_text(folder, 24, ids)
    with capturing(model) as caught, torch.no_grad():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        caught.clear()
        model(input_ids=ids[:, :-1], use_cache=False)
    assert observation.basis == "text" and observation.names[1] == "layers.0.feedforward"
    assert observation.loss == pytest.approx(loss.item(), rel=1e-5)
    for crossing, (streams, post, *matrix, _) in zip(observation.crossings, caught, strict=True):
        torch.testing.assert_close(crossing.streams, streams.flatten(0, 1), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(crossing.post, post.flatten(0, 1), atol=1e-6, rtol=1e-6)
        assert (crossing.logits is None) == (not matrix)
        if matrix:
            torch.testing.assert_close(crossing.res, matrix[0].mT.flatten(0, 1), atol=1e-6, rtol=1e-6)


@CAUSAL
def test_streams_after_a_sublayer_are_what_is_written(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    observation = observe_on_text(saved(make(), tmp_path), 24, token_ids(2, 13))
    after = [*(crossing.streams for crossing in observation.crossings[1:]), observation.last]
    for crossing, streams in zip(observation.crossings, after, strict=True):
        written = crossing.res @ crossing.streams + crossing.post.unsqueeze(-1) * crossing.output.unsqueeze(-2)
        torch.testing.assert_close(written, streams, atol=1e-5, rtol=1e-5)


@CAUSAL
def test_three_ways_of_the_gradient_add_up_to_autograds(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    """The way through the coefficients is by our maps, the total by their code."""
    observation = observe_on_text(saved(make(), tmp_path), 24, token_ids(2, 13))
    for crossing in observation.crossings:
        back = crossing.backward
        branch = crossing.pre.unsqueeze(-1) * back.read.unsqueeze(-2)
        ways = crossing.res.mT @ back.after + branch + back.coefficients
        torch.testing.assert_close(ways, back.total, atol=1e-6 * back.total.abs().max().item(), rtol=1e-4)
        assert back.coefficients.abs().max() > 0


def test_gradient_at_the_logits_is_that_of_the_mixers_parameters(tmp_path: Path) -> None:
    """The bias is added to the logits, so that its gradient is their sum over tokens."""
    model, ids = deepseek_v4(), token_ids(2, 13)
    observation = observe_on_text(saved(model, tmp_path), 24, ids)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for crossing, module in zip(observation.crossings, hyper_connections(model), strict=True):
        theirs = module.base.grad[8:].view(4, 4).T.flatten()
        torch.testing.assert_close(crossing.backward.logits.sum(0), theirs, atol=1e-7, rtol=1e-3)


@CAUSAL
def test_what_is_seen_on_text_is_measured(tmp_path: Path, make: Callable[..., nn.Module]) -> None:
    document = measure(observe_on_text(saved(make(), tmp_path), 24, token_ids(2, 13)))
    assert document["tokens"] == 24 and len(document["sublayers"]) == 4
    assert all("energy_gain" in row and "gradient_energy_gain" in row for row in document["sublayers"])


@pytest.mark.parametrize(
    ("wrong", "model"),
    [
        ({"transposed": False}, {}),
        ({"order": "columns_first"}, {}),
        ({"constants": {"read_eps": 0.1}}, {}),
        ({"keys": {}}, {"rms_norm_eps": 0.1}),
    ],
)
def test_wrong_declaration_is_caught_by_the_model_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict, model: dict
) -> None:
    folder = saved(deepseek_v4(**model), tmp_path)
    monkeypatch.setitem(FAMILIES, "deepseek_v4", replace(FAMILIES["deepseek_v4"], **wrong))
    with pytest.raises(CheckpointError, match="away from what is declared of DeepSeek-V4"):
        observe_on_text(folder, 24, token_ids(2, 13))


def with_tokenizer(folder: str) -> str:
    tokenizer = Tokenizer(models.WordLevel({chr(97 + number): number for number in range(26)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(Path(folder) / "tokenizer.json"))
    return folder


def test_text_file_is_encoded_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    folder = with_tokenizer(saved(deepseek_v4(), tmp_path / "model"))
    text = tmp_path / "text.txt"
    text.write_text("d e f g h i j " * 100)
    ids = torch.tensor([3, 4, 5, 6, 7, 8, 9]).repeat(100)
    by_file = observe_on_text(folder, 300, text)
    by_ids = observe_on_text(folder, 300, ids[:257].unsqueeze(0))
    assert by_file.loss == by_ids.loss and by_file.crossings[0].post.shape == (256, 4)
    text.write_text("d e f g")  # less than one sequence
    assert observe_on_text(folder, 300, text).crossings[0].post.shape == (3, 4)


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = saved(deepseek_v4(), tmp_path / "model")
    text = tmp_path / "text.txt"
    with pytest.raises(DataError, match="no tokenizer.json"):
        observe_on_text(folder, 8, text)
    with_tokenizer(folder)
    with pytest.raises(DataError, match="cannot be read as text"):
        observe_on_text(folder, 8, text)
    text.write_text("d")
    with pytest.raises(DataError, match="1 tokens are too few"):
        observe_on_text(folder, 8, text)


def test_model_that_transformers_has_no_code_for_is_refused(tmp_path: Path) -> None:
    from foreign_files import checkpoint

    folder, _ = checkpoint(tmp_path, "openpangu_v2")
    with pytest.raises(ConfigError, match="cannot load it"):
        observe_on_text(str(folder), 8, token_ids(1, 9))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("head.weight", "lm_head.weight"),
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.0.attn.q_norm.weight", "model.layers.0.self_attn.q_a_norm.weight"),
    ],
)
def test_weights_that_would_be_drawn_are_refused(tmp_path: Path, lost: str, said: str) -> None:
    folder = saved(deepseek_v4(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"weights of the model are missing.*: {said}"):
        observe_on_text(folder, 24, token_ids(2, 13))
    save_file(kept | {lost: torch.zeros(3, 5)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"have another shape than its config.json says.*: {said}"):
        observe_on_text(folder, 24, token_ids(2, 13))


@pytest.mark.parametrize("shape", [None, (3, 5)])
def test_experts_that_cannot_be_put_together_are_refused(tmp_path: Path, shape: tuple | None) -> None:
    folder = saved(deepseek_v4(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    expert = tensors.pop("model.layers.0.ffn.experts.1.w1.weight")
    other = {} if shape is None else {"model.layers.0.ffn.experts.1.w1.weight": expert.new_zeros(shape)}
    save_file(tensors | other, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights of the model|cannot load it"):
        observe_on_text(folder, 24, token_ids(2, 13))


def test_tied_weights_are_not_missed(tmp_path: Path) -> None:
    folder = saved(deepseek_v4(tie_word_embeddings=True), tmp_path)
    assert "head.weight" not in load_file(tmp_path / "model.safetensors")
    assert observe_on_text(folder, 24, token_ids(2, 13)).basis == "text"


def test_without_transformers_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreign_files import checkpoint

    folder, _ = checkpoint(tmp_path, "deepseek_v4")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        observe_on_text(str(folder), 8, token_ids(1, 9))
