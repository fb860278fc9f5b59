"""A comparison from its first run to its report and verdict, its status true however it ends."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mhc_train.errors import Stopped, StorageError
from mhc_train.experiments.comparison import Comparison, trained
from mhc_train.experiments.ledger import raise_if_failed, raise_if_stopped
from mhc_train.experiments.reporting import Written, of_comparison, write
from mhc_train.experiments.verdict import raise_if_held
from mhc_train.runs import Run
from mhc_train.stop_signals import ended_by_signals
from mhc_train.tracking.comparison import send_comparison


def conduct(path: Path, retry_failed: bool, at_once: int, directory: Path | None) -> tuple[Comparison, Written | None]:
    """Train what is left of a comparison, as `trained` does, and report what there is; None where there is nothing."""
    with trained(path, retry_failed, at_once) as comparison:
        return comparison, None if comparison.stopped else report(comparison, directory)


def raise_if_amiss(comparison: Comparison, written: Written | None, conditions: Sequence[str]) -> None:
    """Say what keeps a comparison from its end, or which of the conditions on its arms, as planned, hold at its end.

    Raises:
        Stopped: there are runs left.
        JobError: runs have failed.
        VerdictError: a condition holds.
    """
    raise_if_stopped(comparison)
    raise_if_failed(comparison)
    if written is not None:
        raise_if_held(conditions, _as_planned(written[0], comparison))


def _as_planned(document: dict[str, Any], comparison: Comparison) -> dict[str, Any]:
    """The document with every arm by the name that it was planned with: tuning may have added to that."""
    planned = {job.run: arm.name for arm in comparison.arms for job in comparison.compared_jobs(arm)}
    names = {arm["name"]: planned[run] for arm in document["arms"] for run in arm["runs"]}

    def renamed(row: dict[str, Any], *keys: str) -> dict[str, Any]:
        return row | {key: names.get(row[key], row[key]) for key in keys}

    return document | {
        "arms": [renamed(arm, "name") for arm in document["arms"]],
        "differences": [renamed(row, "a", "b") for row in document["differences"]],
    }


def report(comparison: Comparison, directory: Path | None) -> Written | None:
    """Write the report of a comparison that has come to its end, from the runs that there are; None if there are none.

    Args:
        comparison: whose status becomes `done`, or `failed` if a run that is compared has, or the report.
        directory: of the report; None for its place in the comparison's.

    Raises:
        Stopped: a stop signal came before it was written; whoever goes on with the comparison writes it.
        StorageError: a file cannot be written.
    """
    run = Run(comparison.path)
    try:
        with ended_by_signals(lambda name: _unreported(comparison, name)):
            written = _report(comparison, directory or run.report)
    except Exception as error:
        with contextlib.suppress(StorageError):  # a full disk must not hide what went wrong first
            status = "stopped" if isinstance(error, Stopped) else "failed"
            run.set_status(status, runs=comparison.runs, error=str(error))
        raise
    done = all(job.state == "done" for job in comparison.decisive)
    run.set_status("done" if done else "failed", runs=comparison.runs)
    return written


def _report(comparison: Comparison, directory: Path) -> Written | None:
    if all(job.state != "done" for job in comparison.decisive):
        return None
    document, page = write(of_comparison(comparison), directory)
    send_comparison(Run(comparison.path), document, directory)
    return document, page


def _unreported(comparison: Comparison, name: str) -> Stopped:
    return Stopped(f"Stopped by {name} before the report was written. Write it with `{comparison.going_on}`.")
