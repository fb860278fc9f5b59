"""How long a large comparison's report takes to write, how large it is, and how long a browser takes to open it.

    python benchmarks/report_page.py [--arms 60] [--sublayers 64]

The numbers of the comparison are random: only their amount matters. Needs `chromium` on PATH for the last part.
"""

import argparse
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from record import significant, write_json

from mhc_train.report.arms import COMPOSITE, CURVES, SUBLAYER
from mhc_train.report.render import write_report
from mhc_train.runs import environment

STREAMS, POINTS = 4, 600
OPENED = """<script>addEventListener("load", () => setTimeout(() => {
const [entry] = performance.getEntriesByType("navigation");
const told = `${entry.domContentLoadedEventEnd} ${entry.loadEventEnd}`;
document.body.dataset.opened = told }))</script>"""
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --timeout=60000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=60)
    parser.add_argument("--sublayers", type=int, default=64)
    options = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as directory:
        result = measure(document(options.arms, options.sublayers), Path(directory))
    known = {key: environment()[key] for key in ("processor", "platform", "python", "mhc_train", "git")}
    result = {"environment": known, "arms": options.arms, "sublayers": options.sublayers, "seeds": 1} | result
    write_json("report_page", result)
    print(result)


def measure(comparison: dict[str, Any], directory: Path) -> dict[str, Any]:
    start = time.perf_counter()
    page = write_report(comparison, directory / "report")
    seconds = time.perf_counter() - start
    sizes = {path.name: significant(path.stat().st_size / 1e6) for path in sorted(page.parent.iterdir())}
    return {"seconds_to_write": significant(seconds), "megabytes": sizes} | opened(page)


def opened(page: Path) -> dict[str, float]:
    """Milliseconds from the navigation's start until the page is parsed, and loaded with its script run."""
    program = shutil.which("chromium")
    if program is None:
        return {}
    text = re.sub(r"<meta http-equiv[^>]+>", "", page.read_text())  # the page's policy forbids the probe
    probe = page.with_name("probe.html")
    probe.write_text(text.replace("</body>", f"{OPENED}</body>"))
    command = [program, *FLAGS.split(), f"--user-data-dir={page.parent / 'profile'}", "--dump-dom", probe.as_uri()]
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    found = re.search(r'data-opened="([\d.]+) ([\d.]+)"', dom)
    assert found, dom[:300]
    return {"milliseconds_to_parse": significant(float(found[1])), "milliseconds_to_load": significant(float(found[2]))}


# ---------------------------------------------------------------- a comparison of random numbers


def document(arms: int, sublayers: int) -> dict[str, Any]:
    names = [f"mhc iterations={number}" for number in range(arms)]
    pairs = [(a, b) for place, b in enumerate(names) for a in names[:place]]
    return {
        "schema_version": 2,
        "comparable": True,
        "reasons": [],
        "requirements": [
            {"name": name, "state": "same", "matters": "", "decisive": True, "values": []}
            for name in ("model", "hardware")
        ],
        "varied": ["connection.iterations"],
        "lost": [],
        "concurrent": 1,
        "tuning": [],
        "seeds": [0],
        "data": {"source": "random", "attribution": None},
        "environment": {"python": "3.11"},
        "configuration": {
            "shared": {"optim.grad_clip": 1.0},
            "different": {"connection.iterations": dict.fromkeys(names, 1)},
        },
        "reference": names[0],
        "arms": [arm(name, sublayers) for name in names],
        "noise": None,
        "differences": sorted(
            (difference(a, b, names[0]) for a, b in pairs), key=lambda row: row["family"] == "others"
        ),
        "budgets": [],
        "crossings": [],
    }


def arm(name: str, sublayers: int) -> dict[str, Any]:
    losses = [[4096 * number, 8 / (1 + number) ** 0.1 + random.random() / 10] for number in range(POINTS)]
    return {
        "name": name,
        "runs": [f"runs/{name}"],
        "overrides": [["connection=mhc"]],
        "seeds": [0],
        "failed": [],
        "steps": POINTS,
        "tokens": 4096 * POINTS,
        "params": 10**9,
        "parameters": {"path": 10**6},
        "flops_per_token": 10**10,
        "tokens_per_second": 1e5,
        "relative_step_time": 1.0,
        "seconds": 100.0,
        "peak_memory": 2**33,
        "peak_memory_counted": "allocated",
        "train_loss": losses[-1][1],
        "val_loss": losses[-1][1],
        "val_loss_sd": None,
        "val_bpb": losses[-1][1] / 3,
        "val_loss_by_seed": {"0": losses[-1][1]},
        "spikes": {"steps": 0, "worst": 1.0, "threshold": 7.0},
        "grad_norm": {"median": 1.0, "max": 2.0},
        "skipped": 0,
        "curves": [{"seed": 0} | dict.fromkeys(CURVES, losses)],
        "last": measurement(sublayers),
        "courses": [{"seed": 0, "points": [course(10 * number) for number in range(50)]}],
        "laws": [law | {"seed": 0, "verdicts": {"0": "ok"}} for law in laws()],
        "samples": [{"prompt": "word " * 20, "continuation": "word " * 40}] * 3,
    }


def measurement(sublayers: int) -> dict[str, Any]:
    composite = {way: [row(index, COMPOSITE) for index in range(sublayers)] for way in ("forward", "backward")}
    composite["forward"][-1]["mean_map"] = matrix()
    rows = [row(index, SUBLAYER) | {"mean_maps": {"res": matrix()}} for index in range(sublayers)]
    return {"step": 100, "streams": STREAMS, "sublayers": rows, "composite": composite, "laws": laws()}


def row(index: int, measures: tuple[str, ...]) -> dict[str, Any]:
    values = {
        measure: {statistic: significant(1 + random.random()) for statistic in ("mean", "min", "median", "p99", "max")}
        for measure in measures
    }
    return {"index": index, "name": f"layers.{index // 2}", "of_token_means": dict.fromkeys(measures, 1.0)} | values


def matrix() -> list[list[float]]:
    return [[significant(random.random()) for _ in range(STREAMS)] for _ in range(STREAMS)]


def course(step: int) -> dict[str, Any]:
    return {"step": step} | {f"{key}_gain": 1 + random.random() for key in ("forward", "backward", "difference")}


def laws() -> list[dict[str, Any]]:
    evidence = {"measure": "row_error", "statistic": "max", "value": 1e-7, "ok": 1e-5, "warn": 1e-3, "below": False}
    row = {"verdict": "ok", "worst": "layers.0", "evidence": evidence, "declared": None, "advice": "none"}
    return [{"law": f"law_{number}", "meaning": "what it means"} | row for number in range(18)]


def difference(a: str, b: str, reference: str) -> dict[str, Any]:
    family = "reference" if a == reference else "others"
    missing = dict.fromkeys(("relative", "interval", "p_value", "p_corrected", "effect", "power"))
    return (
        {"a": a, "b": b, "metric": "val_loss", "family": family, "seeds": [0], "mean": random.random()}
        | missing
        | {"verdict": "one seed: settles nothing"}
    )


if __name__ == "__main__":
    main()
