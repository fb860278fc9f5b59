"""Run as a process of its own by `hub.ask`: opens corpora and models, runs commands, and prints what came of each."""

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

pauses: list[float] = []
time.sleep = pauses.append  # everybody's: the Hub client's own and ours; before anything that keeps the function


def read(config: dict[str, Any], batches: int) -> dict[str, Any]:
    from mhc_train.data import open_corpus, order_fingerprint
    from mhc_train.schema import DataConfig

    corpus = open_corpus(DataConfig(**config))
    stream = corpus.batches(4)
    tokens = [next(stream).tolist() for _ in range(batches)]
    stream.close()
    return {
        "revision": corpus.config.revision,
        "tokens": tokens,
        "order": order_fingerprint(stream.state()),
        "validation": corpus.validation.sha256,
    }


def foreign(target: str, tokens: int, seconds: float | None = None) -> dict[str, Any]:
    from mhc_train.foreign import open_foreign, stores

    stores.READ_SECONDS = seconds or stores.READ_SECONDS
    model = open_foreign(target)
    return {"facts": model.facts, "res": model.observe(tokens).crossings[-1].res.tolist()}


def command(arguments: list[str]) -> dict[str, Any]:
    from mhc_train.cli.app import main

    sys.argv = ["mhc-train", *map(found, arguments)]
    try:
        main()
    except SystemExit as end:
        return {"code": int(end.code or 0)}
    return {"code": 0}


def found(argument: str) -> str:
    """An argument as it is, or the only thing in the directory that it ends with a star after."""
    directory, star, _ = argument.rpartition("/*")
    return str(next(Path(directory).iterdir())) if star else argument


def done(job: dict[str, Any]) -> dict[str, Any]:
    pauses.clear()
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            if "foreign" in job:
                outcome = foreign(job.pop("foreign"), **job)
            else:
                outcome = command(job["command"]) if "command" in job else read(job["config"], job["batches"])
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
    return outcome | {"said": said.getvalue(), "pauses": list(pauses)}


def main() -> None:
    from huggingface_hub import constants

    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 0.5  # what comes later is late
    print(json.dumps([done(job) for job in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
