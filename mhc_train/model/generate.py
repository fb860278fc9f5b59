"""Continuations of a prompt, sampled from the model."""

import torch
from jaxtyping import Int
from torch import Tensor

from mhc_train.model.transformer import Transformer

TEMPERATURE = 0.8


@torch.no_grad()
def continuation(model: Transformer, prompt: Int[Tensor, " prompt"], count: int, seed: int) -> list[int]:
    """`count` token ids after `prompt`, each sampled at temperature 0.8; the same seed gives the same ids.

    The whole prefix is computed anew for every token: simple, and quick enough for the few words of a report.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = prompt.to(model.rotation.device)
    for _ in range(count):
        logits = model(tokens[-model.config.max_seq_len :].unsqueeze(0))[0, -1]
        choice = torch.multinomial((logits.float().cpu() / TEMPERATURE).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, choice.to(tokens.device)])
    sampled: list[int] = tokens[len(prompt) :].tolist()
    return sampled
