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
    "whole": "`diagnose`: all of this, imports, spans and the biases alone",
}


def parts(folder: str) -> dict[str, float]:
    """Seconds of each part, in this process."""
    marks = [time.perf_counter()]
    model = open_foreign(folder)
    marks.append(time.perf_counter())
    observation = model.observe(TOKENS)
    marks.append(time.perf_counter())
    document = measure(observation)
    marks.append(time.perf_counter())
    assert len(document["sublayers"]) == 2 * LAYERS
    return dict(
        zip(("open", "observe", "measure"), (b - a for a, b in zip(marks, marks[1:], strict=False)), strict=True)
    )


def diagnosed(folder: str) -> dict[str, Any]:
    """The command in a process of its own: seconds, bytes read, and the most memory that it has had."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "mhc_train", "diagnose", folder, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak, "bytes_read": json.loads(result.stdout)["source"]["bytes_read"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_sparse(folder, LAYERS, WIDTH, DECOYS // LAYERS)
        size = sum(path.stat().st_size for path in folder.iterdir())
        whole = diagnosed(str(folder))
        seconds = parts(str(folder)) | {"whole": whole.pop("seconds")}
    rounded = {name: significant(value) for name, value in seconds.items()}
    found = whole | {"bytes": size, "seconds": rounded}
    print(json.dumps(found, indent=2))
    if not arguments.record:
        return
    here = {"cpu": cpu_model(), "python": platform.python_version(), "torch": version("torch"), "threads": 1}
    write_json("foreign_checkpoint", {"environment": here, "layers": LAYERS, "width": WIDTH, "tokens": TOKENS} | found)
    intro = (
        f"Made by `PYTHONPATH=tests python benchmarks/foreign_checkpoint.py --record` ({here['cpu']}, torch "
        f"{here['torch']}, one thread): {LAYERS} layers of width {WIDTH}, n = 4, in {LAYERS} shards of together "
        f"{size / 10**9:.1f} GB, most of it holes. Read: {found['bytes_read'] / 10**6:.0f} MB. Peak memory of "
        f"`diagnose`: {found['peak_bytes'] / MEBIBYTE:.0f} MiB, of Python and torch too."
    )
    rows = [[ROWS[name], f"{seconds:.3g}"] for name, seconds in found["seconds"].items()]
    write_table("foreign-checkpoint", intro, ("part", "seconds"), rows)


if __name__ == "__main__":
    main()
