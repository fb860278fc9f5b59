"""The minimal traffic of the operators on the streams, against counts by hand."""

import pytest

from mhc_train.kernels.traffic import minimal_bytes, stream_elements

TABLE = {
    ("read", "forward"): (5, 5),
    ("read", "backward"): (9, 9),
    ("write", "forward"): (9, 9),
    ("write", "backward"): (14, 14),
    ("cross", "forward"): (14, 10),
    ("cross", "backward"): (15, 15),
}
"""Elements a token and unit of width at n = 4: read weights computed, and given."""


@pytest.mark.parametrize(("operator", "direction"), TABLE)
def test_elements_of_four_streams(operator, direction):
    found = tuple(stream_elements(operator, direction, 4, given) for given in (False, True))
    assert found == TABLE[operator, direction]


def test_a_read_by_hand():
    # Three tokens, two streams of width 64 in two bytes; eight features and their scale; the weight once.
    by_hand = 3 * (2 * 64 + 64) * 2 + 3 * (8 + 1) * 4 + 8 * 128 * 4
    assert minimal_bytes("read", "forward", 3, 2, 64, 2, 8) == by_hand


def test_a_write_has_no_projection():
    by_hand = 3 * (2 * 64 + 2 * 64 + 64) * 4 + 3 * (2 + 4) * 4
    assert minimal_bytes("write", "forward", 3, 2, 64, 4, 8) == by_hand


def test_a_crossing_backward_by_hand():
    # Streams, gradients of the new state and of the input, output; gradients of streams and output. Both maps, the
    # features and their gradients, one scale a stream; weight and its gradient.
    by_hand = 5 * (9 * 64) * 2 + 5 * (2 * (2 + 4 + 2 * 4) + 2) * 4 + 2 * 4 * 64 * 4
    assert minimal_bytes("cross", "backward", 5, 2, 64, 2, 4, groups=2) == by_hand


def test_given_read_weights_are_counted():
    given = minimal_bytes("read", "forward", 7, 4, 128, 2, 0, given_pre=True)
    assert given == 7 * (5 * 128 * 2 + 4 * 4)


@pytest.mark.parametrize("operator", ["read", "write", "cross"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_streams_that_are_not_mixed_save_the_gradient_of_a_write_alone(operator, direction):
    # Four streams of the gradient that arrives and one output are read, the output's gradient is written: 6.
    expected = 6 if (operator, direction) == ("write", "backward") else TABLE[operator, direction][0]
    assert stream_elements(operator, direction, 4, mixes=False) == expected


def test_a_write_that_mixes_nothing_backward_by_hand():
    # Gradients of the new state, output and its gradient; what each stream receives, and its gradient.
    by_hand = 3 * (2 * 64 + 64 + 64) * 4 + 3 * 2 * 2 * 4
    assert minimal_bytes("write", "backward", 3, 2, 64, 4, 6, mixes=False) == by_hand


def test_a_crossing_that_mixes_nothing_by_hand():
    # As any crossing forward, but for the matrices: two write weights, four features and their scale; the weight.
    by_hand = 5 * (8 * 64) * 2 + 5 * (2 + 4 + 1) * 4 + 4 * 128 * 4
    assert minimal_bytes("cross", "forward", 5, 2, 64, 2, 4, mixes=False) == by_hand


def test_a_static_crossing_by_hand():
    # State read and written, output and input; two read weights, two write weights, a matrix; nothing is projected.
    by_hand = 5 * (2 * 128 + 2 * 64) * 2 + 5 * (2 + 2 + 4) * 4
    assert minimal_bytes("cross", "forward", 5, 2, 64, 2, 0, given_pre=True) == by_hand
