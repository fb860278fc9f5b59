"""mHC on a GPU, all of it in one run of under eight minutes: correctness first, then kernels, peers, training steps."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

MINUTES = 8.0
RECOMPUTE = ["none", "streams"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="everything tiny, on the CPU in Triton's interpreter")
    parser.add_argument("--recompute", nargs="+", default=RECOMPUTE, help="of mHC's steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no part after (default: %(default)s)")
    return parser.parse_args()


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Aligned columns under a title."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(["", title, *lines])


def here(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    import platform

    import torch
    import triton

    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    if device == "cpu":
        return {"device": "cpu, interpreted", **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name, "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda, **versions,
    }  # fmt: skip


def measure(smoke: bool, recompute: list[str], in_time: Callable[[], bool]) -> dict[str, Any]:
    """Every figure; a part whose turn comes too late is missing, and listed as left out."""
    import gpu_kernels
    import gpu_peers
    import gpu_steps

    scale = gpu_kernels.SMOKE if smoke else gpu_kernels.FULL
    if failures := gpu_kernels.wrong(scale):
        sys.exit("The kernels are wrong; nothing is timed.\n" + "\n".join(failures))
    say("correct")
    copy = gpu_kernels.copy_bandwidth(scale)
    document: dict[str, Any] = {"environment": here(scale.device), "tokens": scale.tokens, "streams": scale.streams}
    document |= {"copy_bytes_per_second": copy, "left_out": []}
    parts: dict[str, Callable[[], Any]] = {
        "kernels": lambda: gpu_kernels.bandwidths(scale, copy),
        "beside": lambda: gpu_peers.beside(scale),
    }
    for name, typed in (gpu_steps.SMOKE if smoke else gpu_steps.FULL).items():
        parts[f"steps, {name}"] = lambda typed=typed: gpu_steps.steps(typed, recompute, scale, in_time)
    for name, act in parts.items():
        if in_time():
            document[name] = act()
            say(name)
        else:
            document["left_out"].append(name)
    return document


def say(done: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {done}", file=sys.stderr, flush=True)


def tables(document: dict[str, Any]) -> Iterable[str]:
    """The document for people."""
    copy = document["copy_bytes_per_second"]
    yield table(
        f"Kernels, {document['tokens']} tokens, n = {document['streams']}; a copy moves {copy / 1e12:.3g} TB/s",
        ("operator", "C", "direction", "ms", "+-", "TB/s", "of the copy"),
        [
            (
                row["operator"], row.get("dim", ""), row["direction"], row["ms"], row["spread"],
                f"{row.get('bytes_per_second', 0) / 1e12:.3g}", f"{row.get('share_of_copy', 0):.0%}",
            )
            for row in document.get("kernels", [])
        ],
    )  # fmt: skip
    yield table(
        "One site, maps and all",
        ("part", "C", "direction", "way", "ms", "+-"),
        [
            (row["part"], row["dim"], row["direction"], row["way"], row["ms"], row["spread"])
            for row in document.get("beside", [])
        ],
    )
    for name in (name for name in document if name.startswith("steps")):
        found = document[name]
        yield table(
            f"Training {name}: {found['rounds']} rounds",
            ("arm", "ms", "+-", "time ratio", "peak GB", "memory ratio"),
            [
                (arm, row["ms"], row["spread"], row.get("time_ratio"), f"{row['peak_bytes'] / 1e9:.3g}",
                 row.get("memory_ratio"))
                for arm, row in found["arms"].items()
            ],
        )  # fmt: skip
        yield from (f"{arm}: not to be had: {why}" for arm, why in found["refused"].items())
    if document["left_out"]:
        yield f"\nLeft out, for lack of time: {'; '.join(document['left_out'])}"


def main() -> None:
    chosen, started = arguments(), time.monotonic()
    if chosen.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
    import torch
    from record import write_json

    if not chosen.smoke and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --smoke runs everything tiny on the CPU.")
    in_time = lambda: time.monotonic() - started < 60 * chosen.minutes  # noqa: E731
    document = measure(chosen.smoke, chosen.recompute, in_time)
    document["minutes"] = round((time.monotonic() - started) / 60, 2)
    if not chosen.smoke:
        write_json("gpu", document)
    print("\n".join(tables(document)))


if __name__ == "__main__":
    main()
