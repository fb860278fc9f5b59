"""The instrument: what every sublayer does to the residual streams, measured token by token, and judged."""

from mhc_train.diagnostics.measurement import measure
from mhc_train.diagnostics.observation import Observation
from mhc_train.diagnostics.probe import observe

__all__ = ["Observation", "measure", "observe"]
