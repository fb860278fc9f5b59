"""The smallest models of `transformers` that have hyper-connections, their maps drawn so that they vary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, LAYERS = 64, 16, 2
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "moe_intermediate_size": 8, "num_hidden_layers": LAYERS,
    "num_attention_heads": 2, "q_lora_rank": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "index_n_heads": 1,
    "index_head_dim": 8, "index_topk": 4, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
LATENT = {"intermediate_size": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "v_head_dim": 4}


def deepseek_v4(**keys: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    types = {"layer_types": ["sliding_attention"] * LAYERS, "mlp_layer_types": ["moe"] * LAYERS}
    own = {"head_dim": 8, "o_groups": 1, "o_lora_rank": 4, "sliding_window": 8, "partial_rotary_factor": 0.5}
    config = transformers.DeepseekV4Config(**COMMON, **types, **own, **keys)
    return drawn(transformers.DeepseekV4ForCausalLM(config))


def hy_v4(**keys: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    return drawn(transformers.HYV4ForCausalLM(transformers.HYV4Config(**COMMON, **LATENT, qk_rope_head_dim=4, **keys)))


def glm5_next(**keys: Any) -> nn.Module:
    pytest.importorskip("transformers", minversion="5.23")
    from transformers.models.glm5_next.configuration_glm5_next import Glm5NextTextConfig
    from transformers.models.glm5_next.modeling_glm5_next import Glm5NextTextModel

    types = {"layer_types": ["linear_attention"] * LAYERS, "mlp_layer_types": ["dense"] * LAYERS}
    own = {"num_key_value_heads": 2, "index_kpool": 4, "linear_head_dim": 8, "linear_num_heads": 2}
    return drawn(Glm5NextTextModel(Glm5NextTextConfig(**COMMON, **LATENT, **types, **own, qk_rope_head_dim=0, **keys)))


def drawn(model: nn.Module, size: float = 1.5) -> nn.Module:
    """With hyper-connections whose logits are about that large."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hc" in name:
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else size
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def hyper_connections(model: nn.Module) -> list[nn.Module]:
    """In the order of the sublayers."""
    return [module for name, module in model.named_modules() if name.endswith(("attn_hc", "ffn_hc"))]


@contextmanager
def capturing(model: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """Fills a list with what every hyper-connection is given, and makes of it."""
    caught: list[tuple[Tensor, ...]] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: caught.append((*given, *made)))
        for module in hyper_connections(model)
    ]
    yield caught
    for hook in hooks:
        hook.remove()


def token_ids(count: int, length: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))
