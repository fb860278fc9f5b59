"""Checkpoints of other code bases, tiny and random, in files as those write them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

N, WIDTH, LAYERS = 4, 6, 2
Part = dict[str, tuple[int, ...]]
MIXED = N * N + 2 * N
"""Logits of pre, post and res."""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def fused(prefix: str, logits: int, gates: int) -> Part:
    """fn, base and scale, under whatever comes before these words."""
    return {f"{prefix}fn": (logits, N * WIDTH), f"{prefix}base": (logits,), f"{prefix}scale": (gates,)}


def native(layer: int) -> Part:
    return fused(f"layers.{layer}.hc_attn_", MIXED, 3) | fused(f"layers.{layer}.hc_ffn_", MIXED, 3)


def hy4(layer: int) -> Part:
    at = f"model.layers.{layer}"
    return fused(f"{at}.hc_attn_layer.hc_pre.hc_", 2 * N, 2) | fused(f"{at}.hc_mlp_layer.hc_pre.hc_", 2 * N, 2)


def openpangu(layer: int) -> Part:
    sizes = {"phi.weight": (MIXED, N * WIDTH), "branch_alpha": (3,), "branch_beta": (MIXED,), "norm_gamma": (24,)}
    return {
        f"model.layers.{layer}.{place}_mhc_module.{part}": size
        for place in ("attn", "mlp")
        for part, size in sizes.items()
    }


def magi(layer: int) -> Part:
    at, found = f"model.layers.{layer}.", {}
    for place in ("attn", "mlp"):
        found[f"{at}mhc_phi_fused_{place}"] = (N * WIDTH, MIXED)
        for part, size in {"pre": (N,), "post": (N,), "res": (N, N)}.items():
            found |= {f"{at}mhc_alpha_{part}_{place}": (1,), f"{at}mhc_bias_{part}_{place}": size}
    return found


def megatron(layer: int) -> Part:
    at, found = f"decoder.layers.{layer}.", {f"decoder.layers.{layer}.pre_mlp_layernorm.bias": (WIDTH,)}
    for place in ("self_attention_hyper_connection", "mlp_hyper_connection"):
        found |= {f"{at}{place}.mapping_proj.weight": (MIXED, N * WIDTH), f"{at}{place}.bias": (MIXED,)}
        found |= {f"{at}{place}.alpha_{part}": (1,) for part in ("pre", "post", "res")}
    return found


V4_HEAD = {"hc_head_fn": (N, N * WIDTH), "hc_head_base": (N,), "hc_head_scale": (1,)}
HY4_HEAD = {f"model.hc_head.{name}": size for name, size in V4_HEAD.items()}
MTP = {f"mtp.0.hc_attn_{part}": size for part, size in {"fn": (24, 24), "base": (24,), "scale": (3,)}.items()}
DEPTH = {"num_hidden_layers": LAYERS}
V4_CONFIG = DEPTH | {"hc_mult": N, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6}

Make = tuple[Callable[[int], Part], Part, dict[str, Any]]
CHECKPOINTS: dict[str, Make] = {
    "deepseek_v4": (native, V4_HEAD | MTP, {"model_type": "deepseek_v4"} | V4_CONFIG),
    "deepseek_v4_1": (native, {}, {"model_type": "deepseek_v4_1"} | V4_CONFIG),
    "glm5_next": (native, {}, {"model_type": "glm5_next", "text_config": {"model_type": "glm5_next_text"} | V4_CONFIG}),
    "hy_v4": (hy4, HY4_HEAD, DEPTH | {"model_type": "hy_v4", "hc_mult": N, "hc_magnitude": 1.5, "rms_norm_eps": 1e-5}),
    "openpangu_v2": (openpangu, {}, DEPTH | {"model_type": "pangu", "mhc_num_stream": N, "mhc_recur_norm": 7}),
    "magi_2": (magi, {}, DEPTH),
    "megatron_core": (megatron, {}, DEPTH),
}
"""By family: the parts of a layer, those beside the layers, and its config.json."""


def tensors_of(family: str, seed: int = 0, size: float = 1.5) -> dict[str, Tensor]:
    """Every tensor of a family's checkpoint, of which logits become about `size` large."""
    layer, beside, _ = CHECKPOINTS[family]
    generator = torch.Generator().manual_seed(seed)
    shapes = beside | {name: shape for number in range(LAYERS) for name, shape in layer(number).items()}
    return {name: _scaled(name, normal(generator, *shape), family, size) for name, shape in shapes.items()}


def _scaled(name: str, values: Tensor, family: str, size: float) -> Tensor:
    if values.dim() == 2 and "bias" not in name:
        return values if family == "magi_2" else values / (N * WIDTH) ** 0.5
    if "alpha" in name or "scale" in name:  # never so small that maps would not vary
        return size * values.sign() * (0.5 + values.abs())
    return 1 + 0.3 * values if "gamma" in name else size * values


def save(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, shards: int = 1) -> Path:
    """Whole, or in shards with an index; without a config.json if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    names = [f"model-{number + 1:05}-of-{shards:05}.safetensors" for number in range(shards)]
    places = {name: names[number % shards] for number, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name, place in places.items() if place == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def checkpoint(folder: Path, family: str, shards: int = 1, **how: Any) -> tuple[Path, dict[str, Tensor]]:
    """A family's checkpoint with its config.json, and its tensors."""
    tensors = tensors_of(family, **how)
    return save(folder, tensors, CHECKPOINTS[family][2], shards), tensors


def write_sparse(folder: Path, layers: int, width: int, decoy: int) -> int:
    """A checkpoint in DeepSeek-V4's native names, a shard a layer, each with `decoy` bytes that no disk holds.

    Odd layers are in bfloat16. Returns the bytes of the hyper-connections that the main path consists of.
    """
    folder.mkdir(parents=True)
    config = V4_CONFIG | {"model_type": "deepseek_v4", "hidden_size": width, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    places: dict[str, str] = {}
    size = 0
    for layer in range(layers):
        file = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
        tensors = _v4_layer(layer, width)
        size += sum(tensor.nbytes for tensor in tensors.values())
        if layer == layers - 1:
            tensors |= {"hc_head_fn": torch.zeros(N, N * width), "hc_head_base": torch.zeros(N)}
        places |= dict.fromkeys([*tensors, f"layers.{layer}.ffn.experts"], file)
        _write_shard(folder / file, f"layers.{layer}.ffn.experts", decoy, tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return size + 4 * N


def _v4_layer(layer: int, width: int) -> dict[str, Tensor]:
    generator, dtype = torch.Generator().manual_seed(layer), (torch.float32, torch.bfloat16)[layer % 2]
    shapes = {"fn": (MIXED, N * width), "base": (MIXED,), "scale": (3,)}
    return {
        f"layers.{layer}.hc_{place}_{part}": (normal(generator, *shape) * shape[-1] ** -0.5).to(dtype)
        for place in ("attn", "ffn")
        for part, shape in shapes.items()
    }


def _write_shard(path: Path, decoy_name: str, decoy: int, tensors: Mapping[str, Tensor]) -> None:
    """The decoy first, as a hole; it is one of bytes."""
    header: dict[str, Any] = {decoy_name: {"dtype": "F8_E4M3", "shape": [decoy], "data_offsets": [0, decoy]}}
    end = decoy
    for name, tensor in tensors.items():
        dtype = {torch.float32: "F32", torch.bfloat16: "BF16"}[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + decoy)
        stream.seek(0, 2)
        for tensor in tensors.values():
            stream.write(tensor.flatten().view(torch.uint8).numpy().tobytes())
