"""The GPU path: the operators on the streams as Triton kernels. Importing it imports Triton."""

from mhc_train.kernels.triton.backward import cross_backward
from mhc_train.kernels.triton.forward import cross
from mhc_train.kernels.triton.sinkhorn import sinkhorn, sinkhorn_backward
from mhc_train.kernels.triton.tiles import CAPABILITY, SHARED_MEMORY, supports

__all__ = [
    "CAPABILITY",
    "SHARED_MEMORY",
    "cross",
    "cross_backward",
    "sinkhorn",
    "sinkhorn_backward",
    "supports",
]
