"""How often comparisons of known truth are decided, rightly and wrongly: `python benchmarks/false_wins.py`."""

import argparse
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import significant, write_json

from mhc_train.report.budgets import reading, tokens
from mhc_train.report.collect import Arm, RunRecord
from mhc_train.report.crossings import both_orders
from mhc_train.report.pairs import ALPHA, Floats, holm, paired, power
from mhc_train.report.statistics import METRIC, differences, failures

LOSS, SEED_SD = 6.0, 0.02
"""Nats, and how far a seed alone moves an arm's loss."""
DETECT = 0.005 * LOSS
DEGREES = 3
"""Of the t distribution that stands for heavy tails."""


@dataclass(frozen=True)
class Scenario:
    """Arms whose true losses are known, and what befalls their runs."""

    name: str
    seeds: int
    truth: tuple[float, ...] = (0.0, 0.0)
    """Of every arm, what its true loss has more than the first one's; the first is the reference."""
    spreads: tuple[float, ...] = ()
    """How many times the usual its seeds scatter."""
    shared: float = 0.0
    """Standard deviation of what a seed does to all arms alike, over that of what it does to one."""
    heavy: bool = False
    """Scatter by a t distribution with 3 degrees of freedom instead of the normal one."""
    crashes: str = ""
    """at random: one run in seven fails, whatever its loss; the worst: every run of the last arm that is above its
    true loss."""


NONE, ONE_IN_FIVE = (0.0,) * 5, (0.0, 0.0, 0.0, 0.0, -DETECT)
SCENARIOS = (
    *(Scenario(f"no difference, 2 arms, {seeds} seeds", seeds) for seeds in (2, 3, 5)),
    *(Scenario(f"no difference, 5 arms, {seeds} seeds", seeds, NONE) for seeds in (2, 3, 5)),
    *(Scenario(f"0.5 % lower, 2 arms, {seeds} seeds", seeds, (0.0, -DETECT)) for seeds in (3, 5, 8)),
    Scenario("0.5 % lower, one of 5 arms, 5 seeds", 5, ONE_IN_FIVE),
    Scenario("no difference, one arm scatters 5 times as much, 5 arms, 5 seeds", 5, NONE, (1, 1, 1, 1, 5)),
    Scenario("no difference, seeds matter to all arms alike, 5 arms, 5 seeds", 5, NONE, shared=3),
    Scenario("0.5 % lower, seeds matter to all arms alike, 2 arms, 5 seeds", 5, (0.0, -DETECT), shared=3),
    Scenario("no difference, heavy tails, 5 arms, 5 seeds", 5, NONE, heavy=True),
    Scenario("no difference, heavy tails, 2 arms, 2 seeds", 2, heavy=True),
    Scenario("no difference, runs fail at random, 5 arms, 5 seeds", 5, NONE, crashes="at random"),
    Scenario("no difference, the worst runs of an arm fail, 2 arms, 5 seeds", 5, crashes="the worst"),
)


def draw(scenario: Scenario, simulations: int, rng: np.random.Generator) -> Floats:
    """Final losses (simulations, arms, seeds), NaN of a run that failed."""
    arms = len(scenario.truth)
    shape = (simulations, arms, scenario.seeds)
    own = (
        rng.standard_t(DEGREES, shape) / math.sqrt(DEGREES / (DEGREES - 2))
        if scenario.heavy
        else rng.normal(size=shape)
    )
    own = own * np.array(scenario.spreads or (1.0,) * arms)[:, None]
    alike = scenario.shared * rng.normal(size=(simulations, 1, scenario.seeds))
    losses = LOSS + np.array(scenario.truth)[:, None] + SEED_SD * (own + alike)
    if scenario.crashes == "at random":
        losses[rng.random(shape) < 1 / 7] = np.nan
    elif scenario.crashes:
        losses[:, -1][own[:, -1] > 0] = np.nan
    return losses


def outcome(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, Any]:
    """Shares of simulations: where a family of tests has a false win, where a true difference is shown."""
    losses = draw(scenario, simulations, np.random.default_rng(seed))
    arms = range(len(scenario.truth))
    families = {"reference": [(0, arm) for arm in arms[1:]], "others": list(combinations(arms[1:], 2))}
    found = {name: judged(scenario, losses, pairs) for name, pairs in families.items() if pairs}
    return {"scenario": scenario.name, "simulations": simulations, "families": found}


def judged(scenario: Scenario, losses: Floats, pairs: list[tuple[int, int]]) -> dict[str, float]:
    """What the tests of one family come to, of whatever runs there are."""
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    found = paired(losses[:, first], losses[:, second])
    truth = np.array(scenario.truth)[second] - np.array(scenario.truth)[first]
    shown = holm(found.p_value) < ALPHA
    right = np.sign(found.mean) == np.sign(truth)
    known = np.isfinite(found.half)
    rows = {
        "covered": (np.abs(found.mean - truth) <= found.half)[known].mean(),
        "false_wins": (shown & ~right).any(-1).mean(),
    }
    if truth.any():
        spreads = np.array(scenario.spreads or (1.0,) * len(scenario.truth))
        # The two arms' own scatter; what a seed does to both cancels.
        effect = DETECT / (SEED_SD * math.hypot(*spreads[list(pairs[-1])]))
        rows |= {
            "power": (shown & right)[:, truth != 0].mean(),
            "predicted_power": power(effect, scenario.seeds, ALPHA / len(pairs)),
        }
    return {name: significant(value) for name, value in rows.items()}


# Runs that fail


def reported(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, Any]:
    """Shares of simulations of equal arms by the verdicts of a report, whose runs are done or failed."""
    rows = [verdicts(losses) for losses in draw(scenario, simulations, np.random.default_rng(seed))]
    return {
        "scenario": scenario.name,
        "simulations": simulations,
        "false_wins": {
            family: significant(
                np.mean([any(row["family"] == family and row["winner"] for row in one) for one in rows])
            )
            for family in dict.fromkeys(row["family"] for row in rows[0])
        },
        "won_with_failed_runs": significant(
            np.mean([any(row["winner"] in row["failed"] for row in one) for one in rows])
        ),
        "withheld_for_failed_runs": significant(np.mean([any(row["withheld"] for row in one) for one in rows])),
    }


def verdicts(losses: Floats) -> list[dict[str, Any]]:
    """The families, winners if any, and arms with failed runs, of one comparison's losses (arms, seeds)."""
    arms = [arm(str(number), own) for number, own in enumerate(losses.tolist())]
    failed = failures(arms)
    by_seed = {one.name: one.by_seed(METRIC) for one in arms}
    rows = differences(by_seed, "0", lambda winner, _: failed.get(winner), DETECT / LOSS)
    return [
        {
            "family": row["family"],
            "winner": {"lower": row["b"], "higher": row["a"]}.get(row["verdict"]),
            "failed": list(failed),
            "withheld": row["verdict"].startswith("not settled") and bool(row["seeds"]),
        }
        for row in rows
    ]


def arm(name: str, losses: Sequence[float]) -> Arm:
    """An arm whose run of every seed is done with that loss, or failed where it is NaN."""
    done, failed = [], []
    for seed, loss in enumerate(losses):
        status = {"seed": seed, "status": "failed" if math.isnan(loss) else "done"}
        record = RunRecord(Path(), {}, status, {}, [{"tokens": 1, METRIC: loss}], [], [])
        (failed if record.failed else done).append(record)
    return Arm(name, done, failed)


# Courses


def course(tokens: Floats, offset: float, rng: np.random.Generator) -> list[dict[str, float]]:
    """Validation losses of a run that falls as a power of its tokens."""
    losses = 4.0 + 2.0 * (1e5 / tokens) ** 0.3 + offset + 0.1 * SEED_SD * rng.normal(size=len(tokens))
    return [{"tokens": at, "val_loss": loss} for at, loss in zip(tokens.tolist(), losses.tolist(), strict=True)]


def unequal_lengths(simulations: int, seeds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Two equal arms, the one trained on a third more text: what is said of their ends, and of equal tokens."""
    rng = np.random.default_rng(seed)
    places = [np.arange(1, 11) * 40e3, np.arange(1, 8) * 43e3]
    ends, at_equal = np.empty((2, 2, simulations, seeds))
    for simulation, replicate, arm in np.ndindex(simulations, seeds, 2):
        lines = course(places[arm], SEED_SD * rng.normal(), rng)
        record = RunRecord(Path(), {}, {}, {}, lines, [], [])
        ends[arm, simulation, replicate] = lines[-1]["val_loss"]
        at_equal[arm, simulation, replicate] = reading(record, tokens(record), places[1][-1]).loss
    return {
        "simulations": simulations,
        "false_wins_at_the_ends": significant((paired(*ends).p_value < ALPHA).mean()),
        "false_wins_at_equal_tokens": significant((paired(*at_equal).p_value < ALPHA).mean()),
    }


def false_crossings(simulations: int, validations: int, memory: float, gap: float, seed: int = 0) -> dict[str, Any]:
    """Arms a constant gap apart: how often they are said to change places.

    Args:
        simulations: how many.
        validations: in each.
        memory: correlation of a run's deviation with that at the validation before.
        gap: true difference over the scatter between seeds.
    """
    deviations = autoregressive((simulations, validations, 2, 5), memory, np.random.default_rng(seed))
    a, b = LOSS + SEED_SD * deviations[:, :, 0], LOSS + SEED_SD * (deviations[:, :, 1] + gap)
    found = paired(a, b)
    uncorrected = (found.mean > found.half).any(-1) & (found.mean < -found.half).any(-1)
    return {
        "simulations": simulations, "validations": validations, "memory": memory, "gap": gap,
        "shown": significant(both_orders(found).mean()), "without_correction": significant(uncorrected.mean()),
    }  # fmt: skip


def autoregressive(shape: tuple[int, ...], memory: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Standard normal deviations, each correlated with the one before it along the second axis."""
    fresh = rng.normal(size=shape)
    found = fresh.copy()
    for place in range(1, shape[1]):
        found[:, place] = memory * found[:, place - 1] + math.sqrt(1 - memory**2) * fresh[:, place]
    return found


FAILING = [scenario for scenario in SCENARIOS if scenario.crashes]
CROSSINGS = [(validations, memory, gap) for validations in (8, 40) for memory in (0.0, 0.9) for gap in (0.0, 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=10_000, help="of each scenario (default: %(default)s)")
    simulations = parser.parse_args().simulations
    scenarios = [outcome(scenario, simulations) for scenario in SCENARIOS]
    for row in scenarios:
        for family, rates in row["families"].items():
            print(f"{row['scenario']} ({family}): " + ", ".join(f"{key} {rate:.3f}" for key, rate in rates.items()))
    failing = [reported(scenario, simulations) for scenario in FAILING]
    lengths = unequal_lengths(simulations)
    crossings = [false_crossings(simulations, *which) for which in CROSSINGS]
    print(*failing, lengths, *crossings, sep="\n")
    versions = {"python": platform.python_version(), "numpy": version("numpy"), "scipy": version("scipy")}
    write_json(
        "false-wins",
        {
            "environment": versions,
            "scenarios": scenarios,
            "failing": failing,
            "unequal_lengths": lengths,
            "crossings": crossings,
        },  # fmt: skip
    )


if __name__ == "__main__":
    main()
