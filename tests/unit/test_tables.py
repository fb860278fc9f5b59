"""Numbers, counts and times as tables show them."""

import pytest

from mhc_train.tables import count, duration, number


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(None), "-"), (number(0.0), "0.000"), (number(1.25, 1), "1.2"), (number(1e-5), "1.0e-05"),
        (count(None), "-"), (count(0.4), "0"), (count(10_423.4), "10,423"),
        (duration(None), "unknown"), (duration(99), "99 s"), (duration(6000), "1.7 h"), (duration(2e5), "2.3 days"),
    ],
)  # fmt: skip
def test_what_people_read(shown: str, wanted: str) -> None:
    assert shown == wanted
