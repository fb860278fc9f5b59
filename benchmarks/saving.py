"""How long a checkpoint holds a training up: written while it waits, and written behind its back."""

import argparse
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from connection_cost import cpu_model
from record import significant, write_json, write_table

from mhc_train.checkpoints import Keep, Snapshot, load_checkpoint
from mhc_train.config.compose import compose
from mhc_train.model import Transformer
from mhc_train.ranks import Ranks
from mhc_train.schema import Config
from mhc_train.training.optimizer import build_optimizer, fresh_optimizer_tensors, optimizer_tensors
from mhc_train.training.saving import Saver, copied, random_states

MODELS = ("tiny", "small", "base")
MEBIBYTE = 2**20


def measured(config: Config, rounds: int) -> dict[str, Any]:
    """Seconds, medians of `rounds`: held up by either way, and to write and to verify."""
    model = Transformer(config.model, config.connection, config.data.vocab_size)
    optimizer = build_optimizer(model, config.optim)
    fresh_optimizer_tensors(optimizer, model, steps=True)
    held: dict[bool, list[float]] = {False: [], True: []}
    written: list[float] = []
    verified: list[float] = []
    size = 0
    with tempfile.TemporaryDirectory() as place:
        for step in range(2 * rounds):
            background = step % 2 == 1
            saver = Saver(Path(place), Keep(2), Ranks(), background)
            started = time.perf_counter()
            own = copied if background else dict
            snapshot = Snapshot(
                config, model.vocab_size, {"step": step}, "{}", own(model.state_dict()),
                own(optimizer_tensors(optimizer, model)), random_states(Ranks()),
            )  # fmt: skip
            saver.start(snapshot)
            held[background].append(time.perf_counter() - started)
            failure = saver.wait()
            assert failure is None, failure
            written.append(time.perf_counter() - started)
            size = snapshot.bytes
            started = time.perf_counter()
            load_checkpoint(Path(place) / f"step-{step:08d}")
            verified.append(time.perf_counter() - started)
    medians = {"waiting": held[False], "background": held[True], "written": written, "verified": verified}
    return {"bytes": size} | {name: significant(statistics.median(values)) for name, values in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of either way (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results and docs/figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: measured(compose([f"model={name}", "connection=mhc"]), arguments.rounds) for name in MODELS}
    cells = [
        [name, f"{row['bytes'] / MEBIBYTE:,.0f}", *(f"{row[key]:.3g}" for key in list(row)[1:])]
        for name, row in rows.items()
    ]
    for line in cells:
        print("  ".join(line))
    if not arguments.record:
        return
    here = {"cpu": cpu_model(), "python": platform.python_version(), "torch": version("torch"), "threads": 1}
    write_json("saving", {"environment": here, "rounds": arguments.rounds, "models": rows})
    intro = (
        f"Made by `python benchmarks/saving.py --record` ({here['cpu']}, torch {here['torch']}, one thread, a local "
        f"disk): seconds, medians of {arguments.rounds}. A training waits for all of it, or for a copy in memory."
    )
    header = ("model", "MiB", "held up, waiting", "held up, in the background", "until written", "to verify")
    write_table("saving", intro, header, cells)


if __name__ == "__main__":
    main()
