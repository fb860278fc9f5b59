"""Pictures of a measurement: real PNG files of what there is, also of what is not finite."""

import io
import math

import pytest
import torch
from PIL import Image
from tracked import measured

from mhc_train.diagnostics import Observation, measure
from mhc_train.diagnostics.observation import Crossing
from mhc_train.diagnostics.watch import line
from mhc_train.tracking.pictures import pictures


def observation(streams: int, sublayers: int, value: float = 1.0) -> Observation:
    """A path of one token; the last sublayer's map is the identity times a value."""
    ones, state = torch.ones(1, streams), torch.ones(1, streams, 8)
    crossings = [
        Crossing(ones, ones, factor * torch.eye(streams)[None], streams=state, output=torch.ones(1, 8))
        for factor in [1.0] * (sublayers - 1) + [value]
    ]
    return Observation([f"layers.{index}" for index in range(sublayers)], crossings, "one token", last=state)


@pytest.mark.parametrize(
    ("streams", "sublayers", "names"),
    [(4, 6, {"maps", "profile"}), (16, 2, {"maps", "profile"}), (1, 3, {"profile"}), (4, 1, {"maps"}), (1, 1, set())],
)
def test_what_can_be_drawn_is(streams: int, sublayers: int, names: set[str]) -> None:
    found = pictures(measure(observation(streams, sublayers)))
    assert found.keys() == names
    for file in found.values():
        assert Image.open(io.BytesIO(file)).format == "PNG"


def test_a_map_is_as_blue_as_it_is_large() -> None:
    drawn = [pictures(measured(0, sublayers=2) | {"sublayers": rows}) for rows in (with_maps(1.0), with_maps(-1.0))]
    blue, red = (Image.open(io.BytesIO(each["maps"])).convert("RGB").resize((1, 1)).getpixel((0, 0)) for each in drawn)
    assert blue[2] > blue[0] and red[0] > red[2]


def with_maps(entry: float) -> list[dict[str, object]]:
    rows = measured(0, sublayers=2)["sublayers"]
    return [row | {"mean_maps": {"res": [[entry] * 4] * 4}} for row in rows]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 0.0])
def test_what_is_not_finite_is_left_white(value: float) -> None:
    assert pictures(line(measure(observation(4, 3, value)))).keys() == {"maps", "profile"}
