"""From the runs of a comparison, or any others, to a report: which runs, how they came to be compared, and where to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc_train.console import say
from mhc_train.errors import CheckpointError
from mhc_train.experiments import tuning
from mhc_train.experiments.arms import check_varied, key_of, swept_keys, varied_keys
from mhc_train.experiments.comparison import Comparison, Options, known_arm, read_comparison
from mhc_train.experiments.crew import run_status
from mhc_train.experiments.jobs import check
from mhc_train.experiments.ledger import Job, Ledger, kind_of
from mhc_train.experiments.sweep import read_sweep
from mhc_train.experiments.verdict import check_conditions
from mhc_train.files import write_json, write_text
from mhc_train.report.collect import DETECT, group_arms, read_run
from mhc_train.runs import Run, environment, make_exclusively, new_run_path

if TYPE_CHECKING:
    from mhc_train.report.comparison import Setting

Written = tuple[dict[str, Any], Path]
"""A comparison's document and the page that it was drawn on."""


@dataclass(frozen=True)
class ReportInput:
    """What a report is made of: runs, and what their own files do not say of them."""

    runs: list[Path]
    varied: list[str] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    concurrent: int = 1
    tuning: list[dict[str, Any]] = field(default_factory=list)
    against: str | None = None
    detect: float = DETECT

    def setting(self) -> "Setting":
        """The same for `compare_runs`."""
        # SciPy takes seconds to import: not before the training.
        from mhc_train.report.comparison import Setting

        return Setting(
            self.against, tuple(self.varied), tuple(self.lost), self.concurrent, tuple(self.tuning), self.detect
        )


def of_comparison(comparison: Comparison) -> ReportInput:
    """The runs of a comparison that have ended, and those that left nothing."""
    runs, lost = _ended(comparison, [job for arm in comparison.arms for job in comparison.compared_jobs(arm)])
    return ReportInput(
        runs,
        varied=comparison.varied,
        lost=lost,
        concurrent=comparison.concurrent,
        tuning=_tuning(comparison),
        against=_reference(comparison, runs),
        detect=comparison.detect,
    )


def of_directories(paths: Sequence[Path], options: Options) -> ReportInput:
    """Runs that have ended, and those of comparisons and sweeps; everything is read, so that what is wrong is said at
    once.

    Raises:
        CheckpointError: a directory is no run, or one that has not ended; or a ledger without finished runs.
        ConfigError: no arm has the name of the reference or of a condition's; or there is no key that is varied.
    """
    parts = [_of_directory(path) for path in paths]
    runs = [run for part in parts for run in part.runs]
    names = [arm.name for arm in group_arms([read_run(run) for run in runs])]
    check_varied(options.vary)
    check_conditions(options.fail_on, names)
    against = known_arm(options.against, names) or next((part.against for part in parts if part.against in names), None)
    return ReportInput(
        runs,
        varied=list(dict.fromkeys([*(key for part in parts for key in part.varied), *options.vary])),
        lost=[row for part in parts for row in part.lost],
        concurrent=max(part.concurrent for part in parts),
        tuning=[row for part in parts for row in part.tuning],
        against=against,
        detect=options.detect,
    )


def write(material: ReportInput, directory: Path) -> Written:
    """Compare the runs and write the report; returns the document and the page.

    Raises:
        StorageError: a file cannot be written.
    """
    # Imported after the training: SciPy and Matplotlib would keep it waiting for seconds.
    from mhc_train.report.comparison import compare_runs
    from mhc_train.report.render import write_report

    document = compare_runs(material.runs, material.setting())
    return document, write_report(document, directory)


def new_directory(runs: Sequence[Path]) -> Path:
    """A directory of its own beside the runs, for the report on them, so that no report overwrites another."""
    comparison = Run(new_run_path(runs[0].resolve().parent, "compare"))
    make_exclusively(comparison.path)
    write_text(comparison.path / "overrides.txt", "")
    write_json(comparison.path / "environment.json", environment())
    comparison.set_status("done", kind="comparison", runs=[str(run) for run in runs])
    return comparison.report


def _of_directory(path: Path) -> ReportInput:
    """A run, or those of a comparison or a sweep."""
    if not (path / "ledger.json").is_file():
        return ReportInput([path])
    comparing = kind_of(path) == "comparison"
    material = of_comparison(read_comparison(path)) if comparing else _of_sweep(path)
    if not any(Run(run).status().get("status") == "done" for run in material.runs):
        raise CheckpointError(f"{path}: none of its runs is finished. Go on with it first.")
    return material


def _of_sweep(path: Path) -> ReportInput:
    sweep = read_sweep(path)
    runs, lost = _ended(sweep, sweep.jobs)
    arms = {tuple(text for text in job.overrides if key_of(text) != "seed"): None for job in sweep.jobs}
    typed = list(map(list, arms))
    configs = check(typed, sweep.config_name, sweep.config_dir)
    return ReportInput(runs, varied=varied_keys(swept_keys(typed), configs), lost=lost, concurrent=sweep.concurrent)


def _ended(ledger: Ledger, jobs: Sequence[Job]) -> tuple[list[Path], list[dict[str, Any]]]:
    """The runs of jobs that have ended, and what is known of those that left nothing to tell of.

    A run knows better than a ledger whose process was killed.
    """
    ended = [job for job in jobs if "failed" in (job.state, run_status(job)) or run_status(job) == "done"]
    reportable = [job for job in ended if _is_reportable(job)]
    lost = [
        {"overrides": job.overrides, "name": ledger.title(job), "error": _error(job)}
        for job in ended
        if job not in reportable
    ]
    return [Path(job.run) for job in reportable if job.run], lost


def _is_reportable(job: Job) -> bool:
    """Whether a job has left a run that a report can tell of."""
    return job.run is not None and "parameters" in Run(Path(job.run)).status()


def _error(job: Job) -> str:
    known = Run(Path(job.run)).status().get("error") if job.run else job.error
    code = "" if job.exit_code is None else f" with exit code {job.exit_code}"
    return known or f"it ended{code} before there was anything to report"


def _reference(comparison: Comparison, runs: Sequence[Path]) -> str | None:
    """What the report on these runs calls the reference arm: tuning may have added to its name."""
    if comparison.against is None:
        return None
    own = {
        job.run for arm in comparison.arms if arm.name == comparison.against for job in comparison.compared_jobs(arm)
    }
    arms = group_arms([read_run(path) for path in runs])
    found = next((arm.name for arm in arms if any(str(record.path) in own for record in arm.runs)), None)
    if found is None and arms:
        say(f"--against {comparison.against}: it has no run to report; the others are against {arms[0].name}.")
    return found


def _tuning(comparison: Comparison) -> list[dict[str, Any]]:
    shared = set.intersection(*(set(arm.overrides) for arm in comparison.arms))
    return [
        {"arm": [text for text in arm.overrides if text not in shared], "name": arm.name}
        | row
        | {"seed": comparison.tuning_seed}
        for arm in comparison.arms
        if arm.chosen
        for row in tuning.rows(comparison.grid, comparison.tuning_jobs(arm), arm.chosen)
    ]
