"""What a connection costs on this machine: arms in processes of their own take turns against the residual's."""

import contextlib
import json
import os
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
from mhc_train.processes import PATIENCE, fate, understood
from mhc_train.progress import Progress
from mhc_train.runs import environment
from mhc_train.stop_signals import Interruption, ended_by_signals

SCHEMA_VERSION = 1
WORKER = (sys.executable, "-m", "mhc_train.bench.worker")
PIPE = 1 << 16
"""Bytes that are read at once."""
LEAST, ROUNDS = 3, 12
"""Rounds that there are at least, and should be: the shorter a turn, the more alike is the machine to all."""
OPERATORS_SHARE = 0.25
"""Of the time, for the operators by themselves."""


class ArmError(Exception):
    """An arm could not go on; the message is the reason."""


class Worker:
    """The process of one arm, which is asked for one thing at a time."""

    def __init__(self) -> None:
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115
        # A session of its own: the terminal's Ctrl-C is for the command, which then ends all of it.
        self._process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._messages,
            start_new_session=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer (see `bench.worker`).

        Raises:
            ArmError: there is none, and why.
        """
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ArmError(self._fate()) from None
        line = self._line(PATIENCE + question.get("seconds", 0.0))
        answer = understood(line) if line.endswith("\n") else {"error": self._fate()}
        if "error" in answer:
            raise ArmError(str(answer["error"]))
        return answer

    def _line(self, seconds: float) -> str:
        """What it says up to the end of the line, or to its own.

        Raises:
            ArmError: neither came in so many seconds.
        """
        assert self._process.stdout
        deadline, said = time.monotonic() + seconds, b""
        while not said.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise ArmError(f"no answer for {seconds:.0f} seconds")
            part = os.read(self._process.stdout.fileno(), PIPE)
            if not part:
                break
            said += part
        return said.decode(errors="replace")

    def end(self) -> None:
        """End the process, and those that it has started: they have nothing to save."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended, in the words of two systems
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._messages):
            assert stream
            with contextlib.suppress(BrokenPipeError):  # of a question that it never read
                stream.close()

    def _fate(self) -> str:
        """Why the process is no more."""
        exit_code = self._process.wait()
        self._messages.seek(0)
        return fate(exit_code, self._messages.read().decode(errors="replace"))


class Bench:
    """Measures arms in turns, so that whatever else the machine does befalls them alike.

    Args:
        arms: what is measured; what is found out is noted in them.
        seconds: that it may take once all models are built, if that is enough for the least number of rounds.
        clock: tells seconds.
    """

    def __init__(self, arms: Sequence[Arm], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.arms, self.seconds, self.clock = arms, seconds, clock
        self.started, self.rounds, self._asked = clock(), 0, 0
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
                Progress("Bench", self._answers(LEAST), unit="answer") as self._progress,
            ):
                self._start(interruption)
                self._take_turns()
                self._time_operators()
        finally:
            for worker in self.workers.values():
                worker.end()
        if not any(arm.turns for arm in self.arms):
            raise ConfigError([f"{arm.name}: {arm.error}" for arm in self.arms])

    def _answers(self, rounds: int) -> int:
        """How many there are with so many rounds: of every arm its facts, its turns, memory and operators."""
        return len(self.left) * (rounds + 3)

    def _start(self, interruption: Interruption) -> None:
        """All import what they need at once, and then build their models one after another."""
        for arm in self.left:
            with interruption.held_back():  # no process may be there and not be known, to be ended
                self.workers[arm.name] = Worker()
        for arm in self.left:
            assert arm.config
            arm.facts = self._needed(arm, f"building {arm.name}", config=asdict(arm.config))

    def _take_turns(self) -> None:
        beginning = self.elapsed
        self._until = beginning + self.seconds
        end = self._until - OPERATORS_SHARE * self.seconds
        turn = (end - beginning) / ROUNDS / max(1, len(self.left))
        share = turn / max((arm.facts["step"] for arm in self.left), default=1)
        while self.left and (self.rounds < LEAST or self._another_fits(beginning, end)):
            for arm in self.left:
                found = self._needed(arm, f"round {self.rounds + 1}, {arm.name}", do="turn", share=share, seconds=turn)
                arm.turns += [found] if found else []
            self.rounds += 1
            pace = (self.elapsed - beginning) / self.rounds
            self._progress.total = self._answers(max(LEAST, self.rounds, int((end - beginning) / pace) if pace else 0))
        for arm in self.left:
            arm.memory = self._needed(arm, f"memory of {arm.name}", do="memory")

    def _another_fits(self, beginning: float, end: float) -> bool:
        return self.elapsed + (self.elapsed - beginning) / self.rounds <= end

    def _time_operators(self) -> None:
        each = max(0.0, self._until - self.elapsed) / max(1, len(self.left))
        for arm in self.left:
            try:
                arm.operators = self._ask(arm, f"operators of {arm.name}", do="operators", seconds=each)
            except ArmError as error:
                arm.operators_error = str(error)

    def _needed(self, arm: Arm, doing: str, **question: Any) -> dict[str, Any]:
        """A worker's answer; empty where there is none, so that the arm cannot go on, which is noted."""
        try:
            return self._ask(arm, doing, **question)
        except ArmError as error:
            arm.error = str(error)
            return {}

    def _ask(self, arm: Arm, doing: str, **question: Any) -> dict[str, Any]:
        """A worker's answer.

        Raises:
            ArmError: there is none, and why; the worker has been ended.
        """
        self._progress.update(min(self._asked, self._progress.total - 1), doing)
        self._asked += 1
        try:
            return self.workers[arm.name].ask(**question)
        except ArmError:
            self.workers[arm.name].end()
            del self.workers[arm.name]  # not before: a signal meanwhile would leave it there
            raise

    def document(self) -> dict[str, Any]:
        """All that was measured."""
        baseline = self.arms[0]
        return {
            "schema_version": SCHEMA_VERSION,
            "baseline": baseline.name,
            "device": next(arm.facts["device"] for arm in self.arms if arm.facts),
            "environment": environment(),
            "model": _model(baseline),
            "seconds": self.elapsed,
            "rounds": self.rounds,
            "memory_counted": next((arm.memory["counted"] for arm in self.arms if arm.memory), None),
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


def _model(arm: Arm) -> str:
    """What is trained, apart from the connection, in a few words."""
    assert arm.config
    model, data, train = arm.config.model, arm.config.data, arm.config.train
    return (
        f"{model.layers} layers of {model.dim}, micro-batches of {train.micro_batch} x {data.seq_len} tokens, "
        f"{train.batch_tokens:,} tokens a step"
    )


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
        "operators_error": arm.operators_error,
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
    """What the bytes that a connection cannot do without would add, at a copy's speed, to the baseline's step.

    None where nobody has counted them.
    """
    added = arm.operators.get("added_bytes")
    if added is None or not baseline.turns:
        return None
    if not added:
        return 0.0
    seconds = added / arm.operators["copy_bytes_per_second"] / _micro_batch(arm)
    return float(seconds / statistics.median(turn["wall"] for turn in baseline.turns))
