"""How many sublayers share a segment whose inside the backward pass computes again."""

import math

NONE, AUTO = "none", "auto"


def segment_length(recompute: str, streams: int, sublayers: int) -> int:
    """Sublayers a segment, for `Transformer.recompute`; 0 keeps everything.

    Args:
        recompute: `train.recompute`: none, auto, or a number.
        streams: n.
        sublayers: L, of the whole model.

    Returns:
        for `auto`, sqrt(n L / (n + 2)), where the n C numbers kept a border balance the (n + 2) C that each sublayer of
        one running segment needs for its connection (arXiv 2512.24880).
    """
    if recompute == AUTO:
        return max(1, round(math.sqrt(streams * sublayers / (streams + 2))))
    return 0 if recompute == NONE else min(int(recompute), sublayers)
