"""Seconds and memory of diagnosing a checkpoint of DeepSeek-V4-Flash's shape, which need not be loaded to be measured.

Run with `PYTHONPATH=tests`, where the checkpoint is made (tests/foreign_files.py): the hyper-connections are real
bytes, random; everything else is a hole in the files, which a reader of whole files would have to read.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from connection_cost import cpu_model
from foreign_files import write_sparse
from record import significant, write_json, write_table

from mhc_train.diagnostics import measure
from mhc_train.foreign import open_foreign

LAYERS, WIDTH, DECOYS = 43, 4096, 20 * 10**9
TOKENS = 256
MEBIBYTE = 2**20
ROWS = {
    "open": "open: headers and hyper-connections",
    "observe": f"observe {TOKENS} sampled tokens a sublayer",
    "measure": "measure",
    "whole": "the whole process",
}


def measured(folder: str) -> dict[str, Any]:
    """Seconds of each part, and the most memory that this process has had."""
    marks = [time.perf_counter()]
    model = open_foreign(folder)
    marks.append(time.perf_counter())
    observation = model.observe(TOKENS)
    marks.append(time.perf_counter())
    document = measure(observation)
    marks.append(time.perf_counter())
    assert len(document["sublayers"]) == 2 * LAYERS
    open_seconds, observe_seconds, measure_seconds = (b - a for a, b in zip(marks, marks[1:], strict=False))
    return {
        "bytes_read": model.bytes_read,
        "seconds": {"open": open_seconds, "observe": observe_seconds, "measure": measure_seconds},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_a_process_of_its_own(folder: str) -> dict[str, Any]:
    """`measured`, with the seconds of the whole process, imports included."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--measure", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    found["seconds"]["whole"] = time.perf_counter() - started
    found["seconds"] = {name: significant(seconds) for name, seconds in found["seconds"].items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", metavar="FOLDER", help="only measure, and print the figures as JSON")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(measured(arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_sparse(folder, LAYERS, WIDTH, DECOYS // LAYERS)
        size = sum(path.stat().st_size for path in folder.iterdir())
        found = in_a_process_of_its_own(str(folder)) | {"bytes": size}
    print(json.dumps(found, indent=2))
    if not arguments.record:
        return
    here = {"cpu": cpu_model(), "python": platform.python_version(), "torch": version("torch"), "threads": 1}
    write_json("foreign_checkpoint", {"environment": here, "layers": LAYERS, "width": WIDTH, "tokens": TOKENS} | found)
    intro = (
        f"Made by `PYTHONPATH=tests python benchmarks/foreign_checkpoint.py --record` ({here['cpu']}, torch "
        f"{here['torch']}, one thread): {LAYERS} layers of width {WIDTH}, n = 4, in {LAYERS} shards of together "
        f"{size / 10**9:.1f} GB, most of it holes. Read: {found['bytes_read'] / 10**6:.0f} MB. Peak memory: "
        f"{found['peak_bytes'] / MEBIBYTE:.0f} MiB, of Python and torch too."
    )
    rows = [[ROWS[name], f"{seconds:.3g}"] for name, seconds in found["seconds"].items()]
    write_table("foreign-checkpoint", intro, ("part", "seconds"), rows)


if __name__ == "__main__":
    main()
