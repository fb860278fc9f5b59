"""The family of stream mixers: each maps logits to H_res and declares the laws that it guarantees."""

from mhc_train.mixers.free import Free
from mhc_train.mixers.interface import Guarantee, Law, Mixer
from mhc_train.mixers.sinkhorn import Sinkhorn

MIXERS: dict[str, type[Mixer]] = {"free": Free, "sinkhorn": Sinkhorn}
"""Every mixer by the name that `connection.mixer` takes."""

__all__ = ["MIXERS", "Free", "Guarantee", "Law", "Mixer", "Sinkhorn"]
