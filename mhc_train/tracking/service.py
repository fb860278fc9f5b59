"""Tracking services: what one must offer, and Weights & Biases."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

from mhc_train.schema import TrackerConfig
from mhc_train.tracking.curves import Values

LONGEST_INIT_SECONDS = 10.0


class Service(Protocol):
    """A session at a tracking service. Any call may raise, and any may hang."""

    directory: Path | None
    """Where an offline session is written; None if it is online."""

    last_step: int | None
    """The last step that the service has of the run, -1 for none; None if it cannot tell."""

    def log(self, step: int, values: Values) -> None:
        """Hand over the values of a step."""

    def draw(self, step: int, pictures: dict[str, bytes]) -> None:
        """Hand over pictures of the step whose values came last: PNG files by name."""

    def report(self, name: str, rows: list[dict[str, Any]], summary: dict[str, Any], directory: Path) -> None:
        """Hand over a comparison: the rows of its table, what is known in the end, and its report's files."""

    def finish(self) -> None:
        """Return when everything handed over is safe."""


class WeightsAndBiases:
    """A W&B run, online or offline."""

    def __init__(self, run: Any, online: bool) -> None:
        self._run = run
        self.directory = None if online else Path(run.dir).parent
        self.last_step = run.starting_step - 1 if online else None  # an offline file begins empty

    def log(self, step: int, values: Values) -> None:
        """Hand over the values of a step; W&B keeps them in memory and uploads or writes them when it likes."""
        self._run.log(values, step=step)

    def draw(self, step: int, pictures: dict[str, bytes]) -> None:
        """Hand over pictures of the step; W&B adds them to its values."""
        import wandb
        from PIL import Image

        images = {name: wandb.Image(Image.open(io.BytesIO(file))) for name, file in pictures.items()}
        self._run.log(images, step=step)

    def report(self, name: str, rows: list[dict[str, Any]], summary: dict[str, Any], directory: Path) -> None:
        """Hand over a comparison: a table `arms`, the summary, and the files as an artifact of type `report`."""
        import wandb

        self._run.log({"arms": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        self._run.summary.update(summary)
        files = wandb.Artifact(name, type="report")
        files.add_dir(str(directory), policy="immutable", skip_cache=True)  # no copies in the home directory
        self._run.log_artifact(files)

    def finish(self) -> None:
        """Return when all is uploaded, or, offline, on the disk."""
        self._run.finish()


def start_wandb(
    config: TrackerConfig,
    directory: Path,
    document: dict[str, Any],
    identity: str,
    tell: Callable[[str], None],
    group: str | None = None,
    job_type: str | None = None,
) -> Service:
    """Begin a W&B session of the run `identity`, or go on with it.

    Args:
        config: mode, project and timeout.
        directory: the run directory, under which W&B's files go.
        document: the configuration, recorded with the run.
        identity: the run's id at W&B; the directory's name is what people see.
        tell: called with a line for people: which mode it is, and why.
        group: which runs it belongs to; without one, WANDB_RUN_GROUP says it.
        job_type: what kind of run it is; without one, WANDB_JOB_TYPE.
    """
    import wandb

    def start(mode: Literal["online", "offline"]) -> Service:
        settings = wandb.Settings(
            # So that there is time left to begin again offline before the start counts as hanging.
            init_timeout=min(LONGEST_INIT_SECONDS, config.timeout / 3),
            silent=True,
            console="off",
            x_stats_pid=os.getppid(),  # it is the training whose processor and memory are of interest
        )
        run = wandb.init(
            project=config.project,
            id=identity,
            resume="allow",
            name=directory.name,
            dir=directory,
            config=document,
            allow_val_change=True,
            mode=mode,
            settings=settings,
            group=group,
            job_type=job_type,
        )
        return WeightsAndBiases(run, mode == "online")

    if config.mode != "offline":
        try:
            service = start("online")
        except Exception as error:  # no key, no network, another's run: only `auto` may do without
            if config.mode == "online":
                raise
            tell(f"W&B cannot be reached ({reason(error)}).")
            wandb.teardown()
        else:
            tell("W&B: online.")
            return service
    service = start("offline")
    tell(f"W&B: offline. After the training, `wandb sync {directory}/wandb/offline-run-*` sends it.")
    return service


def reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error) or type(error).__name__).splitlines()[0]
