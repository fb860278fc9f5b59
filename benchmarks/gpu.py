"""mHC on a GPU in one run of less than ten minutes: correctness, kernels, whole training steps, peers.

Needs torch, Triton and mhc-train's own requirements, and no installation: a checkout will do. Every part is written to
gpu.json as soon as it is done. A part that fails is listed there, and leaves the others alone.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu_run import Clock, apart, brief, here  # noqa: E402
from gpu_tables import printed  # noqa: E402
from record import RESULTS, write_json  # noqa: E402

MINUTES = 7.0
RECOMPUTE = ["none", "streams"]
PARTS = ("correctness", "kernels", "steps-1b", "peers", "steps-wide")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="everything tiny, on the CPU in Triton's interpreter")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do; the file holds no more")
    parser.add_argument("--recompute", nargs="+", default=RECOMPUTE, help="of mHC's steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no part after (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="directory of gpu.json (default: benchmarks/results; none if tiny)")
    return parser.parse_args()


class Part(NamedTuple):
    act: Callable[[], dict[str, Any]]
    guess: int
    """Seconds that it may take on a GPU: nothing but a guess, for who waits."""


def parts(chosen: argparse.Namespace, clock: Clock) -> dict[str, Part]:
    """Those that are chosen, what matters most first; each imports what it needs, and fails alone."""
    size = scale(chosen.smoke)

    def correctness() -> dict[str, Any]:
        import gpu_checks

        return gpu_checks.checked(size, clock)

    def kernels() -> dict[str, Any]:
        import gpu_kernels

        return apart(gpu_kernels.bandwidths, size, seconds=clock.left())

    def steps(name: str) -> dict[str, Any]:
        import gpu_steps

        typed = gpu_steps.SMOKE if chosen.smoke else gpu_steps.FULL
        return gpu_steps.steps(typed[name], chosen.recompute, size, clock)

    def peers(dim: int) -> dict[str, Any]:
        import gpu_peers

        return apart(gpu_peers.beside, size, dim, seconds=clock.left())

    first, *others = ((f"peers-{dim}", Part(lambda dim=dim: peers(dim), 60)) for dim in size.dims)
    found = {
        "correctness": Part(correctness, 90),
        "kernels": Part(kernels, 20),
        "steps-1b": Part(lambda: steps("1b"), 150),
        **dict([first]),
        "steps-wide": Part(lambda: steps("wide"), 60),
        **dict(others),
    }
    return {name: part for name, part in found.items() if name.startswith(tuple(chosen.parts))}


def scale(smoke: bool) -> Any:
    """How large everything is."""
    import gpu_kernels

    return gpu_kernels.SMOKE if smoke else gpu_kernels.FULL


def measure(chosen: argparse.Namespace, clock: Clock, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every part in turn, kept as soon as it is there; one whose turn comes too late is listed as left out."""
    document: dict[str, Any] = {"environment": here(scale(chosen.smoke).device), "failed": {}, "left_out": []}
    waiting = parts(chosen, clock)
    while waiting:
        clock.say(f"to do: {', '.join(waiting)}; guessed to take {sum(part.guess for part in waiting.values())} s")
        name = next(iter(waiting))
        part = waiting.pop(name)
        try:
            if clock.in_time():
                document[name] = part.act()
                print(printed(name, document[name]), flush=True)
            else:
                document["left_out"].append(name)
        except Exception as error:
            document["failed"][name] = brief(error)
            print(f"\n{name} FAILED: {brief(error)}", flush=True)
        document["minutes"] = round(clock.elapsed() / 60, 2)
        keep(document)
    return document


def main() -> None:
    chosen = arguments()
    if chosen.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    import torch

    if not chosen.smoke and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --smoke runs everything tiny on the CPU.")
    if chosen.smoke:
        print("Tiny, in Triton's interpreter: that everything runs is all that this shows; the times mean nothing.")
    folder = chosen.output or (None if chosen.smoke else RESULTS)
    document = measure(
        chosen, Clock(chosen.minutes), lambda found: write_json("gpu", found, folder) if folder else None
    )
    if document["left_out"]:
        print(f"\nLeft out, for lack of time: {', '.join(document['left_out'])}")
    if document["failed"] or document.get("correctness", {}).get("wrong"):
        sys.exit("\nSome of it failed, or is wrong.")


if __name__ == "__main__":
    main()
