"""The fewest bytes that the algorithm of each operator on the streams moves: what its time is measured against.

Counted is what a call must read and write once, whatever its kernels keep on chip or read twice.
"""

from typing import Literal

FLOAT32 = 4

Operator = Literal["read", "write", "cross"]
Direction = Literal["forward", "backward"]


def minimal_bytes(
    operator: Operator,
    direction: Direction,
    tokens: int,
    n: int,
    dim: int,
    element_size: int,
    features: int,
    given_pre: bool = False,
    groups: int = 1,
    mixes: bool = True,
) -> int:
    """Bytes of one call: streams and outputs in their own dtype, coefficients and the projection's weight in float32.

    Args:
        operator: norm, projection and read; write; or the crossing, which is a write and the next read.
        direction: of the pass.
        tokens: T.
        n: streams a token.
        dim: width C.
        element_size: bytes of one element of the streams.
        features: k, the rows of the weight; 0 where nothing is projected.
        given_pre: the read weights are an argument, not made of the features.
        groups: 1 where a token's streams are projected jointly, n where each is alone.
        mixes: what is written is a mixture of the streams; False: each stream is kept as it is.
    """
    streams = stream_elements(operator, direction, n, given_pre, mixes) * dim * element_size
    maps = (n + n * n * mixes) * (operator != "read") + n * (given_pre and operator != "write")
    coefficients = _coefficients(operator, direction, maps, features * groups, groups) * FLOAT32
    weight = 0 if operator == "write" else features * (n * dim // groups) * FLOAT32
    return tokens * (streams + coefficients) + weight * (1 if direction == "forward" else 2)


def stream_elements(
    operator: Operator, direction: Direction, n: int, given_pre: bool = False, mixes: bool = True
) -> int:
    """Elements of the streams' dtype that a token moves, in units of the width C.

    A crossing that makes its read weights of the new state must have seen all of it before it reads: the new state
    counts once more. Where they are given, it does not. Where nothing is mixed, a write hands the gradient that arrives
    on to the streams as it is: neither they nor another gradient are touched.
    """
    crossing = (2 * n + 2 if given_pre else 3 * n + 2, 3 * n + 3)
    writing = (2 * n + 1, 3 * n + 2 if mixes else n + 2)
    forward, backward = {"read": (n + 1, 2 * n + 1), "write": writing, "cross": crossing}[operator]
    return forward if direction == "forward" else backward


def _coefficients(operator: Operator, direction: Direction, maps: int, features: int, groups: int) -> int:
    """Float32 numbers a token: those of the maps and the features once, in the backward with their gradients."""
    projected, scale = (0, 0) if operator == "write" else (features, groups if features else 0)
    passes = 1 if direction == "forward" else 2
    return passes * (maps + projected) + scale
