"""Loader workers: processes that read and tokenise ahead, that no stop signal reaches, and that end when told to.

They are spawned, since a fork would copy the locks of whatever threads a network or tokenizer library has.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar
from weakref import finalize

from mhc_train.errors import DataError, MhcTrainError
from mhc_train.stop_signals import SIGNALS

Item = TypeVar("Item")
Make = Callable[[int, int], Iterator[Item]]
"""What a worker delivers, from its number and how many there are; it must be picklable."""


class Workers(Generic[Item]):
    """`count` processes, each delivering what `make` yields in it, one item ahead of what was taken."""

    def __init__(self, make: Make[Item], count: int) -> None:
        context = get_context("spawn")
        self.processes: list[SpawnProcess] = []
        self.receivers: list[Connection] = []
        with _without_signals():
            for number in range(count):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(make, number, count, sender), daemon=True)
                process.start()
                sender.close()
                self.processes.append(process)
                self.receivers.append(receiver)
        # Also when nobody closes them: at the program's end their SIGTERM would not reach them, and it would wait.
        self.close = finalize(self, _kill, self.processes)
        """End the processes, whatever they are at."""
        atexit.register(self.close)  # last registered, so before multiprocessing waits for them

    def take(self) -> list[Item]:
        """The next item of every worker, in the order of their numbers.

        Raises:
            MhcTrainError: what a worker failed with.
            DataError: a worker is gone.
        """
        return [self._from(number) for number in range(len(self.processes))]

    def _from(self, number: int) -> Item:
        process, receiver = self.processes[number], self.receivers[number]
        wait([receiver, process.sentinel])
        try:
            item = receiver.recv() if receiver.poll() else None
        except (EOFError, OSError):  # it ended while it was sending
            item = None
        if item is None:
            process.join()
            raise DataError(
                f"a loader worker ended with exit code {process.exitcode}. If memory was short, use fewer with "
                "data.workers=N, or none with data.workers=0."
            )
        if isinstance(item, MhcTrainError):
            raise item
        result: Item = item
        return result


def _kill(processes: list[SpawnProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _serve(make: Make[Any], number: int, count: int, sender: Connection) -> None:
    """What a worker does until it is killed, or until nobody listens."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each: the others are for other workers
    with contextlib.suppress(BrokenPipeError):
        try:
            for item in make(number, count):
                sender.send(item)
        except MhcTrainError as error:
            sender.send(error)


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started here never see a stop signal: the training process decides when to stop."""
    resource_tracker.ensure_running()  # whose start would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
