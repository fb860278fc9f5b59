"""One arm of a benchmark, in a process of its own: it builds its model once and measures whenever it is asked to.

Each line of standard input is a JSON document: first the `config` of the training, as a plain document, which is
answered with `Measurements.facts`; then what to `do`, one of its methods, and with what. Each is answered with one line
on standard output: what was measured, or the `error` that ends the process.
"""

import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from mhc_train.bench.measurements import Measurements


def main() -> None:
    """Answer until nobody asks any more."""
    answers = _kept_for_answers()
    from mhc_train.errors import MhcTrainError

    arm: Measurements | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if arm is None:
                arm = _built(asked["config"])
                answer = arm.facts()
            else:
                answer = getattr(arm, asked.pop("do"))(**asked)
        except (MhcTrainError, RuntimeError, ValueError, MemoryError) as error:
            answer = {"error": str(error).strip().partition("\n")[0] or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return


def _kept_for_answers() -> TextIO:
    """Standard output, which nothing else reaches from here on: not what libraries print as they are imported."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _built(config: dict[str, Any]) -> "Measurements":
    from mhc_train.bench.measurements import Measurements
    from mhc_train.config.compose import from_dict

    return Measurements(from_dict(config))


if __name__ == "__main__":
    main()
