"""The process of an arm as a benchmark sees it, with stand-ins that answer, hang, die or talk nonsense."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhc_train.bench import turns
from mhc_train.bench.turns import ArmError, Worker


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator["Started"]:
    found = Started(monkeypatch)
    yield found
    for worker in found.workers:
        worker.end()


class Started:
    """Starts workers that run what is given, and are waited for so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.workers = monkeypatch, list[Worker]()

    def __call__(self, code: str, patience: float = 60.0) -> Worker:
        self.monkeypatch.setattr(turns, "WORKER", (sys.executable, "-ISc", code))
        self.monkeypatch.setattr(turns, "PATIENCE", patience)
        self.workers.append(Worker())
        return self.workers[-1]


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


ECHO = "import json, sys\nfor line in sys.stdin: print(json.dumps({'asked': json.loads(line)}), flush=True)"


def test_each_question_has_its_answer(started: Started) -> None:
    worker = started(ECHO)
    assert worker.ask(do="turn", seconds=1.5) == {"asked": {"do": "turn", "seconds": 1.5}}
    assert worker.ask(do="memory") == {"asked": {"do": "memory"}}


def test_an_answer_may_take_as_long_as_what_was_asked_for(started: Started) -> None:
    late = "import time\ninput(); time.sleep(0.3); print('{}')"
    assert started(late, patience=0.2).ask(do="turn", seconds=60) == {}
    with pytest.raises(ArmError, match="no answer for 0 seconds"):
        started(late, patience=0.2).ask(do="memory")


def test_half_an_answer_does_not_stop_the_clock(started: Started) -> None:
    halting = "import time\nprint('{', end='', flush=True); time.sleep(60)"
    with pytest.raises(ArmError, match="no answer for 0 seconds"):
        started(halting, patience=0.3).ask(do="turn")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('input(); print(\'{"error": "out of memory"}\')', "out of memory"),
        ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL, perhaps for want of memory"),
        ("import sys\ninput(); print('first', file=sys.stderr); sys.exit('the last line')", "the last line"),
        ("import os\ninput(); os._exit(3)", "exit code 3"),
        ("import os\ninput(); print('{\"wall\": 1', end='', flush=True); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("input(); print('Loading kernels')", "is none: 'Loading kernels'"),
        ("input(); print('3')", "is none: '3'"),
    ],
)
def test_why_there_is_no_answer(code: str, reason: str, started: Started) -> None:
    with pytest.raises(ArmError, match=reason):
        started(code).ask(do="turn", seconds=1)


def test_a_question_that_nobody_reads_is_answered_by_the_fate_of_the_process(started: Started) -> None:
    worker = started("import sys\nsys.exit('ended before')")
    worker._process.wait()
    with pytest.raises(ArmError, match="ended before"):
        worker.ask(config="x" * 10**6)
    worker.end()
    worker.end()


def test_what_a_worker_has_started_ends_with_it(started: Started) -> None:
    worker = started(
        "import json, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-ISc', 'import time; time.sleep(60)'])\n"
        "print(json.dumps({'pid': child.pid}), flush=True); child.wait()"
    )
    child = worker.ask(do="turn")["pid"]
    assert runs(child)
    worker.end()
    deadline = time.monotonic() + 10
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not runs(child)


def test_what_is_printed_before_the_first_answer_is_none(tmp_path: Path) -> None:
    """As libraries do while they are imported, below Python's own standard output."""
    from mhc_train.bench import worker

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.dup2(os.open(tmp_path / "messages", os.O_WRONLY | os.O_CREAT), 2)
        answers = worker._kept_for_answers()
        os.write(1, b"imported\n")
        print("answer", file=answers, flush=True)
        os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0 and os.read(read, 100) == b"answer\n"
    os.close(read)
    assert (tmp_path / "messages").read_text() == "imported\n"


def test_the_worker_imports_nothing_heavy_before_its_answers_are_apart() -> None:
    """What it imports before that could print among them."""
    code = "import sys, mhc_train.bench.worker\nsys.exit('torch' in sys.modules or 'omegaconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_worker_that_was_never_asked_ends(started: Started) -> None:
    worker = started("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass")
    worker.end()
    assert worker._process.returncode == -signal.SIGKILL
