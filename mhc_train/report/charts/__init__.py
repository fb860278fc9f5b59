"""The charts of the reports: inline SVG without scripts, equal bytes for equal numbers, for light and dark pages.

An arm or a model keeps its colour, line style and marker through all charts. A chart of a comparison with nothing to
show is an `Omitted`, which says why.
"""

from mhc_train.report.charts.depth import DEPTH_CHARTS, over_depth
from mhc_train.report.charts.drawing import COLOURS, INK, STYLE, Chart, Look, Omitted, look
from mhc_train.report.charts.matrices import heat_maps
from mhc_train.report.charts.training import gain_over_training, gradient_norm, loss, loss_difference

__all__ = [
    "COLOURS",
    "DEPTH_CHARTS",
    "INK",
    "STYLE",
    "Chart",
    "Look",
    "Omitted",
    "gain_over_training",
    "gradient_norm",
    "heat_maps",
    "look",
    "loss",
    "loss_difference",
    "over_depth",
]
