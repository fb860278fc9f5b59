"""A comparison: arms times seeds as the jobs of a ledger, each arm tuned first where that is asked for."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mhc_train.config.compose import compose
from mhc_train.console import say
from mhc_train.errors import ConfigError
from mhc_train.experiments import tuning
from mhc_train.experiments.arms import arm_names, check_varied, key_of, plan_arms, swept_keys, varied_keys
from mhc_train.experiments.crew import Crew, taken_up
from mhc_train.experiments.estimate import estimate
from mhc_train.experiments.jobs import check
from mhc_train.experiments.ledger import Job, Ledger, read_ledger, readable
from mhc_train.experiments.verdict import check_conditions
from mhc_train.report.collect import DETECT
from mhc_train.runs import Run, new_run_path


@dataclass
class Arm:
    """Runs that differ in their seed alone, and those that choose their values."""

    name: str
    """What the report will call it, unless tuning adds to that."""
    overrides: list[str]
    """Without the seed, and without what is tuned."""
    jobs: list[int]
    """Numbers of those that are compared."""
    tuning: list[int]
    """Numbers of those that choose, one for every point of the grid, in order."""
    chosen: dict[str, str] | None = None
    """The tuned keys' values; null before they are chosen."""
    cost: dict[str, Any] = field(default_factory=dict)
    """An `Estimate` of one run; empty before it is made."""


@dataclass(frozen=True)
class Options:
    """What may be asked of a comparison beside its overrides."""

    tune: Sequence[str] = ()
    vary: Sequence[str] = ()
    against: str | None = None
    """An arm's name."""
    detect: float = DETECT
    fail_on: Sequence[str] = ()


@dataclass
class Comparison(Ledger):
    """The ledger of a comparison."""

    arms: list[Arm] = field(default_factory=list)
    varied: list[str] = field(default_factory=list)
    """Keys that the arms differ in on purpose."""
    grid: tuning.Grid = field(default_factory=dict)
    tuning_seed: int | None = None
    against: str | None = None
    """The reference arm, by its name here."""
    detect: float = DETECT
    fail_on: list[str] = field(default_factory=list)
    kind = "comparison"

    @property
    def decisive(self) -> list[Job]:
        """The runs that are compared: one that was to choose a value and diverged has lost, which is an outcome."""
        return [self.jobs[number] for number in sorted(number for arm in self.arms for number in arm.jobs)]

    @property
    def runs(self) -> list[str]:
        """The run directories that there are, arm by arm."""
        return [job.run for arm in self.arms for job in self.compared_jobs(arm) if job.run]

    def document(self) -> dict[str, Any]:
        """The ledger's content."""
        return super().document() | {
            "arms": [asdict(arm) for arm in self.arms],
            "varied": self.varied,
            "grid": self.grid,
            "tuning_seed": self.tuning_seed,
            "against": self.against,
            "detect": self.detect,
            "fail_on": self.fail_on,
        }

    def tuning_jobs(self, arm: Arm) -> list[Job]:
        """Those of an arm's points, in order."""
        return [self.jobs[number] for number in arm.tuning]

    def compared_jobs(self, arm: Arm) -> list[Job]:
        """Those of an arm's seeds, in order."""
        return [self.jobs[number] for number in arm.jobs]


def plan_comparison(
    overrides: Sequence[str], config_name: str, config_dir: Path | None, options: Options = Options()
) -> Comparison:
    """A new comparison with all its jobs, checked; nothing is made yet.

    The jobs are in the order in which they are trained: seed by seed, so that the arms of one seed run in turn, and a
    machine that slows down slows all alike.

    Raises:
        ConfigError: with all that is wrong with the overrides, the jobs, or what is options.
    """
    check_varied(options.vary)
    runs = plan_arms(overrides, config_name, config_dir)
    keys = [key_of(text) for arm in runs for text in arm]
    grid = tuning.read_grid(options.tune, keys, config_dir)
    compared = [run for one_seed in zip(*runs.values(), strict=True) for run in one_seed]
    configs = check(compared, config_name, config_dir)
    first = configs[: len(runs)]
    seed = next(number for number in range(len(configs) + 1) if number not in {config.seed for config in configs})
    choosing = [[*arm, *tuning.overrides(point), f"seed={seed}"] for point in tuning.points(grid) for arm in runs]
    check(choosing, config_name, config_dir)
    everything = [*choosing, *compared]
    names = arm_names(first)
    check_conditions(options.fail_on, names)
    arms = [
        Arm(
            name,
            list(arm),
            jobs=list(range(len(choosing) + place, len(everything), len(runs))),
            tuning=list(range(place, len(choosing), len(runs))),
        )
        for place, (name, arm) in enumerate(zip(names, runs, strict=True))
    ]
    varied = [*varied_keys(swept_keys(list(runs)), first), *grid, *options.vary]
    return Comparison(
        path=new_run_path(Path(configs[0].runs_dir), "compare"),
        config_name=config_name,
        config_dir=config_dir,
        jobs=[Job(number, run) for number, run in enumerate(everything)],
        arms=arms,
        varied=list(dict.fromkeys(varied)),
        grid=grid,
        tuning_seed=seed if grid else None,
        against=known_arm(options.against, names),
        detect=options.detect,
        fail_on=list(options.fail_on),
    )


def known_arm(name: str | None, names: Sequence[str]) -> str | None:
    """The name of an arm, if there is such a one.

    Raises:
        ConfigError: there is none; it says which there are.
    """
    if name is not None and name not in names:
        raise ConfigError(f"--against {name}: no such arm. There are {', '.join(names)}.")
    return name


def estimate_costs(comparison: Comparison, measured: bool = True) -> None:
    """Note what a run of each arm costs; see `estimate`."""
    if measured:
        say(f"Estimating the cost of {len(comparison.arms)} arms, by a few steps of each on random tokens.")
    for arm in comparison.arms:
        overrides = comparison.compared_jobs(arm)[0].overrides
        config = compose(overrides, comparison.config_name, comparison.config_dir)
        arm.cost = asdict(estimate(config, measured))


def read_comparison(path: Path) -> Comparison:
    """The comparison in a directory; raises what `read_ledger` does."""
    ledger, document = read_ledger(path, "comparison")
    with readable(path):
        return Comparison(
            **vars(ledger),
            **{key: document[key] for key in ("varied", "grid", "tuning_seed", "against", "detect", "fail_on")},
            arms=[Arm(**arm) for arm in document["arms"]],
        )


@contextlib.contextmanager
def trained(path: Path, retry_failed: bool = False, at_once: int = 1) -> Iterator[Comparison]:
    """Train the jobs that are not done, each in a process of its own; finished ones are never run again.

    Inside, no other process can take the comparison up: its status is this one's to say.

    Args:
        path: the comparison's directory.
        retry_failed: failed jobs, too.
        at_once: jobs that run at the same time.

    Raises:
        CheckpointError: it is no comparison.
        ConfigError: with the problems of all jobs that are left.
    """
    with taken_up(path, read_comparison, retry_failed, at_once) as (comparison, crew):
        Run(path).set_status("running", kind="comparison")
        _train(comparison, crew, retry_failed)
        if comparison.stopped:
            Run(path).set_status("stopped", runs=comparison.runs)
        yield comparison


def _train(comparison: Comparison, crew: Crew, retry_failed: bool) -> None:
    """Train the jobs that are left: those that choose values, then those of the arms that have."""
    choosing = [number for arm in comparison.arms if arm.chosen is None for number in arm.tuning]
    crew.carry_out([job for job in comparison.left(retry_failed) if job.number in choosing])
    if comparison.grid and not crew.ending:
        _choose(comparison)
    decided = [number for arm in comparison.arms if arm.chosen or not comparison.grid for number in arm.jobs]
    crew.carry_out([job for job in comparison.left(retry_failed) if job.number in decided])


def _choose(comparison: Comparison) -> None:
    """Let every arm that has no values of its own yet choose them; one that cannot has failed."""
    for arm in comparison.arms:
        if arm.chosen is not None:
            continue
        runs, compared = comparison.tuning_jobs(arm), comparison.compared_jobs(arm)
        broken = next((job for job in runs if job.state == "failed" and not tuning.diverged(job)), None)
        if broken is None and (point := tuning.best(comparison.grid, runs)):
            arm.chosen = point
            for job in compared:
                job.overrides += tuning.overrides(point)
            say(f"{arm.name}: {' '.join(tuning.overrides(point))}")
            continue
        why = f"{comparison.title(broken)} failed" if broken else "every run of its tuning diverged"
        for job in compared:
            job.state, job.exit_code, job.error = "failed", (broken or runs[0]).exit_code, f"not begun: {why}"
        say(f"{arm.name}: no values chosen: {why}.")
    comparison.save()
