"""Which run `--resume auto` means: the newest of the very configuration that is asked for."""

from pathlib import Path

from mhc_train.checkpoints import Checkpoint, load_checkpoint
from mhc_train.config.compose import fingerprint
from mhc_train.console import say
from mhc_train.errors import CheckpointError
from mhc_train.runs import Run, age
from mhc_train.schema import Config


def unfinished(config: Config) -> Checkpoint | Run | None:
    """The newest good checkpoint of that run; the run itself if it has taken all its steps; None if one must begin.

    What may change on --resume may differ. Never an error: whatever cannot be used is said, and passed over.
    """
    asked = fingerprint(config)
    for run in newest_first(Path(config.runs_dir)):
        status = run.status()
        if status.get("configuration") != asked:
            continue
        try:
            checkpoint = load_checkpoint(run.path)
        except CheckpointError as error:
            say(f"{error} Going on with an older run, or a new one.")
            continue
        if status.get("status") == "done" and checkpoint.state["step"] >= config.train.steps:
            say(f"{run.path} is done: {checkpoint.state['step']} steps. Without --resume auto, a new one begins.")
            return run
        return checkpoint
    say(f"No run of this configuration in {config.runs_dir} to go on with: a new one begins.")
    return None


def newest_first(runs_dir: Path) -> list[Run]:
    """Every run directory."""
    found = (path for path in runs_dir.iterdir() if (path / "config.yaml").is_file()) if runs_dir.is_dir() else ()
    return [Run(path) for path in sorted(found, key=age, reverse=True)]
