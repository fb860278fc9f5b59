"""What a connection costs on this machine: arms in processes of their own take turns against the residual's."""

import contextlib
import json
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mhc_train.bench.arms import Arm
from mhc_train.errors import ConfigError, Interrupted
from mhc_train.progress import Progress
from mhc_train.runs import environment
from mhc_train.stop_signals import Interruption, ended_by_signals

SCHEMA_VERSION = 1
WORKER = (sys.executable, "-m", "mhc_train.bench.worker")
PATIENCE = 600
"""Seconds that an answer may take."""
LEAST, ROUNDS = 3, 12
"""Rounds that there are at least, and should be: the shorter a turn, the more alike is the machine to all."""
OPERATORS_SHARE = 0.25
"""Of the time after starting up, for the operators by themselves."""


class ArmError(Exception):
    """An arm could not go on; the message is the reason."""


class Worker:
    """The process of one arm, which is asked for one thing at a time."""

    def __init__(self) -> None:
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # A session of its own: the terminal's Ctrl-C is for the command, which then ends this.
        self._process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            text=True,
            start_new_session=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer (see `bench.worker`).

        Raises:
            ArmError: there is none, and why.
        """
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise ArmError(self._fate()) from None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise ArmError(f"no answer for {PATIENCE} seconds")
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._fate()}
        if "error" in answer:
            raise ArmError(str(answer["error"]))
        return answer

    def end(self) -> None:
        """End the process: it has nothing to save."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            assert stream
            with contextlib.suppress(BrokenPipeError):  # of a question that it never read
                stream.close()

    def _fate(self) -> str:
        """Why the process is no more."""
        code = self._process.wait()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}, perhaps for want of memory"
        self._messages.seek(0)
        return (self._messages.read().strip().splitlines() or [f"its process ended with exit code {code}"])[-1]


class Bench:
    """Measures arms in turns, so that whatever else the machine does befalls them alike.

    Args:
        arms: what is measured; what is found out is noted in them.
        seconds: that it may take, if that is enough for starting up and the least number of rounds.
        clock: tells seconds.
    """

    def __init__(self, arms: Sequence[Arm], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.arms, self.seconds, self.clock = arms, seconds, clock
        self.started, self.rounds = clock(), 0
        self.workers: dict[str, Worker] = {}

    @property
    def left(self) -> list[Arm]:
        """The arms that nothing has befallen."""
        return [arm for arm in self.arms if arm.error is None]

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.started

    def carry_out(self) -> None:
        """Start all arms, take steps in turns, then time the operators.

        Raises:
            ConfigError: not a single arm could be measured; why, for each.
            Interrupted: a stop signal came.
        """
        try:
            with (
                ended_by_signals(_interrupted) as interruption,
                Progress("Bench", max(1, round(self.seconds)), unit="second") as self._progress,
            ):
                self._start(interruption)
                self._take_turns()
                self._time_operators()
        finally:
            for worker in self.workers.values():
                worker.end()
        if not self.left:
            raise ConfigError([f"{arm.name}: {arm.error}" for arm in self.arms])

    def _start(self, interruption: Interruption) -> None:
        """All import what they need at once, and then build their models one after another."""
        for arm in self.left:
            with interruption.held_back():  # no process may be there and not be known, to be ended
                self.workers[arm.name] = Worker()
        for arm in self.left:
            assert arm.config
            arm.facts = self._ask(arm, f"building {arm.name}", config=asdict(arm.config))

    def _take_turns(self) -> None:
        beginning = self.elapsed
        end = beginning + (self.seconds - beginning) * (1 - OPERATORS_SHARE)
        turn = max(0.0, end - beginning) / ROUNDS / max(1, len(self.left))
        share = turn / max((arm.facts["one"] * arm.facts["micro_batches"] for arm in self.left), default=1)
        while self.left and (self.rounds < LEAST or self._another_fits(beginning, end)):
            for arm in self.left:
                parts = max(1, int(min(1.0, share) * arm.facts["micro_batches"]))
                found = self._ask(
                    arm, f"round {self.rounds + 1}, {arm.name}", do="turn", micro_batches=parts, seconds=turn
                )
                arm.turns += [found] if found else []
            self.rounds += 1
        for arm in self.left:
            arm.memory = self._ask(arm, "memory", do="memory")

    def _another_fits(self, beginning: float, end: float) -> bool:
        return self.elapsed + (self.elapsed - beginning) / self.rounds <= end

    def _time_operators(self) -> None:
        each = max(0.0, self.seconds - self.elapsed) / max(1, len(self.left))
        for arm in self.left:
            arm.operators = self._ask(arm, f"operators of {arm.name}", do="operators", seconds=each)

    def _ask(self, arm: Arm, doing: str, **question: Any) -> dict[str, Any]:
        """A worker's answer; empty where the arm cannot go on, which is noted."""
        self._progress.update(min(int(self.elapsed), self._progress.total - 1), doing)
        try:
            return self.workers[arm.name].ask(**question)
        except ArmError as error:
            arm.error = str(error)
            self.workers.pop(arm.name).end()
            return {}

    def document(self) -> dict[str, Any]:
        """All that was measured."""
        baseline = self.arms[0]
        return {
            "schema_version": SCHEMA_VERSION,
            "baseline": baseline.name,
            "device": next(arm.facts["device"] for arm in self.left),
            "environment": environment(),
            "seconds": self.elapsed,
            "rounds": self.rounds,
            "memory_counted": next(arm.memory["counted"] for arm in self.left),
            "arms": [_row(arm, baseline) for arm in self.arms],
        }


def bench(arms: Sequence[Arm], seconds: float) -> dict[str, Any]:
    """Measure the arms of a plan, of which the first is the baseline.

    Raises:
        ConfigError: not a single arm could be measured; why, for each.
        Interrupted: a stop signal came.
    """
    measured = Bench(arms, seconds)
    measured.carry_out()
    return measured.document()


def _interrupted(name: str) -> Interrupted:
    return Interrupted(f"{name} ended the benchmark; nothing was written.")


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median and quartiles; None of nothing."""
    if not values:
        return None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    return {"median": middle, "low": low, "high": high}


def _row(arm: Arm, baseline: Arm) -> dict[str, Any]:
    """An arm's part of the document; times are of a whole global batch, and null where there are none."""
    walls, cpus = ([turn[clock] for turn in arm.turns] for clock in ("wall", "cpu"))
    batch = _batch(arm)
    step = spread([batch * wall for wall in walls])
    peak, least = arm.memory.get("peak_memory"), baseline.memory.get("peak_memory")
    return {
        "name": arm.name,
        "overrides": arm.overrides,
        "streams": arm.config.connection.streams if arm.config else None,
        "error": arm.error,
        "parameters": arm.facts.get("parameters"),
        "kernels": arm.facts.get("kernels"),
        "tokens_per_step": batch or None,
        "micro_batches": arm.facts.get("micro_batches"),
        "micro_batches_measured": arm.turns[0]["micro_batches"] if arm.turns else None,
        "step_seconds": step,
        "cpu_seconds": spread([batch * cpu for cpu in cpus]),
        "tokens_per_second": batch / step["median"] if step else None,
        "relative_step_time": _relative(arm, baseline, "wall"),
        "relative_cpu_time": _relative(arm, baseline, "cpu"),
        "peak_memory": peak,
        "relative_memory": peak / least if peak and least else None,
        "predicted_overhead": _predicted(arm, baseline),
        "copy_bytes_per_second": arm.operators.get("copy_bytes_per_second"),
        "operators": arm.operators.get("operators", []),
        "turns": arm.turns,
    }


def _batch(arm: Arm) -> int:
    """Tokens of a global batch, as many whole micro-batches; 0 where nothing is known."""
    return _micro_batch(arm) * int(arm.facts.get("micro_batches", 0))


def _micro_batch(arm: Arm) -> int:
    return arm.config.train.micro_batch * arm.config.data.seq_len if arm.config else 0


def _relative(arm: Arm, baseline: Arm, clock: str) -> dict[str, float] | None:
    """An arm's time of a token over the baseline's in the same round."""
    pairs = zip(arm.turns, baseline.turns, strict=False)
    return spread([turn[clock] / other[clock] for turn, other in pairs if other[clock]])


def _predicted(arm: Arm, baseline: Arm) -> float | None:
    """What the bytes that a connection cannot do without would add, at a copy's speed, to the baseline's step."""
    if not arm.operators or not baseline.turns:
        return None
    if not arm.operators["added_bytes"]:
        return 0.0
    seconds = arm.operators["added_bytes"] / arm.operators["copy_bytes_per_second"] / _micro_batch(arm)
    return float(seconds / statistics.median(turn["wall"] for turn in baseline.turns))
