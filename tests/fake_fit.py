"""A stand-in for the process of one training: it leaves the files of a run without training anything.

What it does is asked for by the override `data.column=`, or else `name=`: ok, fail (exit code 5, after a checkpoint),
early (exit code 3, before there is a run), die (is killed after a checkpoint, if `optim.lr` is 0.001), wait (until a
file `go` stands beside the run directories; SIGTERM saves), slow (the same without a checkpoint). Its loss is 2.5, and
higher the further `optim.lr` is from 0.002. Every start is a line of `starts.jsonl` there.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    option, path, *rest = sys.argv[1:]
    run, resumed = Path(path), option == "--resume"
    overrides = json.loads((run / "overrides.json").read_text()) if resumed else [text for text in rest if "=" in text]
    values = dict(text.split("=", 1) for text in overrides)
    with (run.parent / "starts.jsonl").open("a") as log:
        log.write(json.dumps({"job": values, "resumed": resumed, "pid": os.getpid(), "run": str(run)}) + "\n")
    name = values.get("data.column") or values["name"]
    if name == "early":
        sys.exit(3)
    if not resumed:
        run.mkdir()
    (run / "overrides.json").write_text(json.dumps(overrides))
    train(run, name, resumed, float(values.get("optim.lr", 0.002)))


def train(run: Path, name: str, resumed: bool, rate: float) -> None:
    def status(word: str, code: int) -> None:
        (run / "status.json").write_text(json.dumps({"status": word}))
        if word != "running":
            sys.exit(code)

    signal.signal(signal.SIGTERM, lambda *_: status("stopped", 75))
    status("running", 0)
    if name != "slow":
        (run / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / "step-00000001" / "manifest.json").touch()
    (run / "ready").touch()
    if name == "fail" and not resumed:
        status("failed", 5)
    if name == "die" and not resumed and rate == 0.001:
        os.kill(os.getpid(), signal.SIGKILL)
    while name in ("wait", "slow") and not (run.parent / "go").exists():
        time.sleep(0.02)
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(f'{{"step": 1, "val_loss": {2.5 + abs(rate - 0.002)}}}\n{{"step": 2}}\n')
    status("done", 0)


if __name__ == "__main__":
    main()
