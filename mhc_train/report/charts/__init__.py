"""The charts of the reports: inline SVG, whole without scripts, equal bytes for equal numbers, light and dark.

An arm or a model keeps its colour, line style and marker through all charts. A chart of a comparison with nothing to
show is an `Omitted`, which says why.
"""

from mhc_train.report.charts.depth import DEPTH_CHARTS, LEDGER_CHARTS, over_depth
from mhc_train.report.charts.drawing import COLOURS, INK, STYLE, Chart, Look, Omitted, look, looks
from mhc_train.report.charts.matrices import heat_maps
from mhc_train.report.charts.training import COURSES, gradient_norm, loss, loss_difference, over_training

__all__ = [
    "COLOURS",
    "COURSES",
    "DEPTH_CHARTS",
    "INK",
    "LEDGER_CHARTS",
    "STYLE",
    "Chart",
    "Look",
    "Omitted",
    "gradient_norm",
    "heat_maps",
    "look",
    "looks",
    "loss",
    "loss_difference",
    "over_depth",
    "over_training",
]
