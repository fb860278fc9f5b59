"""What a comparison will train and cost, as one document and in words."""

import statistics
from typing import Any

from mhc_train.experiments.comparison import Arm, Comparison
from mhc_train.experiments.estimate import NOT_ASKED
from mhc_train.experiments.jobs import fit_arguments
from mhc_train.experiments.ledger import Job
from mhc_train.tables import duration, number

SCHEMA_VERSION = 1
ESTIMATED = (
    "Estimated, where no run of an arm is done: a few steps were measured, on random tokens. A run is its start-up, "
    "its steps and its validations; reading text, measurements of the path, checkpoints and the tracker come on top."
)
COLUMNS = ("arm", "runs", "parameters", "MFLOP a token", "seconds a step", "a run", "all")
OPTIONAL = ("MFLOP a token", "seconds a step", "parameters")
"""What is left out where there is no room, in this order."""


def forecast(comparison: Comparison) -> dict[str, Any]:
    """The plan that `compare --dry-run` prints. Times are in seconds, and null where they are unknown."""
    arms = [_arm(comparison, arm) for arm in comparison.arms]
    return {
        "schema_version": SCHEMA_VERSION,
        "arms": arms,
        "runs": len(comparison.jobs),
        "done": len(comparison.in_state("done")),
        "seconds": _total([arm["seconds"] for arm in arms]),
        "seconds_left": _total([arm["seconds_left"] for arm in arms]),
        "estimated": ESTIMATED if any(arm["steps_measured"] for arm in arms) else None,
        "varied": comparison.varied,
        "tuned": comparison.grid,
        "tuning_seed": comparison.tuning_seed,
        "against": comparison.against or comparison.arms[0].name,
        "jobs": [
            {
                "number": job.number,
                "overrides": job.overrides,
                "state": job.state,
                "tuning": job not in comparison.decisive,
                "command": [
                    "mhc-train",
                    "fit",
                    *fit_arguments(job.overrides, comparison.config_name, comparison.config_dir),
                ],
            }
            for job in comparison.jobs
        ],
    }


def _arm(comparison: Comparison, arm: Arm) -> dict[str, Any]:
    jobs = [*comparison.tuning_jobs(arm), *comparison.compared_jobs(arm)]
    left = [job for job in jobs if job.state != "done"]
    run = _seconds_per_run(arm, jobs)
    return {
        "name": arm.name,
        "overrides": arm.overrides,
        "runs": len(jobs),
        "runs_tuning": len(arm.tuning),
        **arm.cost,
        "seconds_per_run": run,
        "seconds": None if run is None else run * len(jobs),
        "seconds_left": None if run is None else run * len(left),
    }


def _seconds_per_run(arm: Arm, jobs: list[Job]) -> float | None:
    """What the arm's finished runs took, which is better than any estimate; without one, the estimate."""
    taken = [job.seconds for job in jobs if job.state == "done" and job.seconds]
    return statistics.median(taken) if taken else arm.cost["seconds_per_run"]


def _total(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    """The plan's table, an arm a row."""
    return [
        (
            arm["name"],
            str(arm["runs"]),
            f"{arm['parameters']:,}",
            f"{arm['flops_per_token'] / 1e6:,.1f}",
            number(arm["seconds_per_step"]),
            duration(arm["seconds_per_run"]),
            duration(arm["seconds"]),
        )
        for arm in document["arms"]
    ]


def in_words(document: dict[str, Any]) -> list[str]:
    """The plan's lines below its table."""
    arms, tuned = document["arms"], ", ".join(document["tuned"])
    lines = [
        f"{arm['name']}: time unknown: {arm['unknown']}." for arm in arms if arm["unknown"] not in (None, NOT_ASKED)
    ]
    if tuned:
        count, seed = sum(arm["runs_tuning"] for arm in arms), document["tuning_seed"]
        lines.append(f"{count} of the runs choose {tuned}, each arm its own, on seed {seed}, which is not compared.")
    done = f", {document['done']} of them done" if document["done"] else ""
    known = document["seconds_left"] is not None
    left = f"; left: {duration(document['seconds_left'])}, one after another" if known else ""
    return [*lines, f"{document['runs']} runs{done}{left}.", *filter(None, [document["estimated"]])]
