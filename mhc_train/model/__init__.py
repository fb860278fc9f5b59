"""The language model whose residual path is the thing under study."""

from mhc_train.model.transformer import Observer, Transformer

__all__ = ["Observer", "Transformer"]
