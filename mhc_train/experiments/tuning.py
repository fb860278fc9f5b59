"""The choice of every arm's own values, on a seed that is not compared.

Choosing on the seeds that are compared would flatter: of several values one does best on just these seeds by chance,
and the lowest of many losses is lower than it will be again.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mhc_train.errors import ConfigError, NumericsError
from mhc_train.experiments.arms import key_of
from mhc_train.experiments.jobs import multiply
from mhc_train.experiments.ledger import Job

Grid = dict[str, list[str]]
"""The values of every key that is tuned."""
Point = dict[str, str]
"""One value of each."""
NOT_TUNED = ("name", "runs_dir", "data", "diagnostics", "tracker", "train.device", "train.threads")
"""Keys, and groups of them, that must be the same for all arms, or are of no consequence to what they learn."""


def read_grid(tune: Sequence[str], taken: Iterable[str], config_dir: Path | None) -> Grid:
    """What `--tune KEY=VALUES` asks for.

    Args:
        tune: sweeps in Hydra's grammar, one a key.
        taken: keys that the arms have values for already.

    Raises:
        ConfigError: with all that cannot be tuned.
    """
    problems, grid = [], Grid()
    for text in tune:
        key, values = key_of(text), [run[0].partition("=")[2] for run in multiply([text], config_dir)]
        if key in (*taken, *grid, "seed", "connection"):
            problems.append(f"--tune {text}: {key} is given already, or is what is compared.")
        elif key in NOT_TUNED or key.partition(".")[0] in NOT_TUNED:
            problems.append(f"--tune {text}: no part of how an arm learns; arms that differ in it are not comparable.")
        elif len(set(values)) < 2:
            problems.append(f"--tune {text}: one value leaves nothing to choose. Type {key}=VALUE,VALUE,...")
        grid[key] = list(dict.fromkeys(values))
    if problems:
        raise ConfigError(problems)
    return grid


def points(grid: Grid) -> list[Point]:
    """Every combination of values, the last key varying fastest; none for an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []


def overrides(point: Point) -> list[str]:
    """A point as it is typed."""
    return [f"{key}={value}" for key, value in point.items()]


def diverged(job: Job) -> bool:
    """Whether a run failed by its numbers, which is an outcome; of any other failure nothing can be concluded."""
    return job.state == "failed" and job.exit_code == NumericsError.exit_code


def final_loss(job: Job) -> float:
    """The last validation loss; infinite for a run that diverged, so that it loses."""
    return job.val_loss if job.state == "done" and job.val_loss is not None else math.inf


def best(grid: Grid, jobs: Sequence[Job]) -> Point | None:
    """The point of lowest final validation loss, of equal ones the smallest values; None if no run finished.

    Args:
        jobs: one for every point, in order.
    """

    def rank(item: tuple[Point, Job]) -> tuple[float, list[float]]:
        point, job = item
        return final_loss(job), [_size(grid[key], value) for key, value in point.items()]

    point, job = min(zip(points(grid), jobs, strict=True), key=rank)
    return point if math.isfinite(final_loss(job)) else None


def rows(grid: Grid, jobs: Sequence[Job], chosen: Point) -> list[dict[str, Any]]:
    """How each key was chosen for an arm, from what its jobs came to.

    `losses` has the lowest loss of each value, whatever the other keys' values; null where no run finished. `edge`
    says that the chosen number is the smallest or the largest, so that one beyond may be better.
    """
    return [
        {
            "key": key,
            "losses": {value: _lowest(key, value, grid, jobs) for value in values},
            "chosen": chosen[key],
            "edge": _at_edge(values, chosen[key]),
        }
        for key, values in grid.items()
    ]


def _lowest(key: str, value: str, grid: Grid, jobs: Sequence[Job]) -> float | None:
    losses = [final_loss(job) for point, job in zip(points(grid), jobs, strict=True) if point[key] == value]
    return min(losses) if math.isfinite(min(losses)) else None


def _at_edge(values: list[str], chosen: str) -> bool:
    sizes = [_size(values, value) for value in values]
    return _numbers(values) and _size(values, chosen) in (min(sizes), max(sizes))


def _size(values: list[str], value: str) -> float:
    """A number as it is; the place of what is not one."""
    return float(value) if _numbers(values) else values.index(value)


def _numbers(values: list[str]) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False
