"""Pictures to samples in several processes, in the order of the source, whatever the number of processes.

A process that dies on a picture (killed for its memory or its time, a crash in a decoder) costs that picture alone. A
process whose parent dies ends itself.
"""

import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from hdit_cli.data.prepare.making.start import context
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.limits import Limits, held_in_time, hold_memory, limits_for, make_alarm_deadly
from hdit_cli.data.prepare.pictures.outcome import Outcome, at_sight
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.errors import UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_CHUNK = 16  # pictures sent to a process at once, at most: each message wakes a thread of the parent
_CHUNK_PIXELS = 1 << 20  # that they come to, at most, where they are more than one
_AHEAD = 2  # chunks in flight per process; with these it bounds the memory
_SECONDS_TO_END = 5.0  # for a process that has nothing more to do


def _start(limits: Limits) -> None:
    """What a worker does first: interrupts are the parent's business, and it must not outlive the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy is imported for the first picture that needs it
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else warnings of plugins reach stderr
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # what was imported stays: it is not looked through again and again for garbage
    make_alarm_deadly()
    hold_memory(limits)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker was started by someone"
    parent.join()
    os._exit(1)


def _process_chunk(entries: list[Entry], options: PrepareOptions, limits: Limits) -> list[Outcome]:
    return [at_sight(entry) or _process_in_time(entry, options, limits) for entry in entries]


def _process_in_time(entry: Entry, options: PrepareOptions, limits: Limits) -> Outcome:
    from hdit_cli.data.prepare.pictures.process import process  # the decoders, of which the parent has no need

    with held_in_time(limits):
        return process(entry, options)


class Workers:
    """A pool that survives the death of its processes. Use it as a context.

    Args:
        limits: of each picture; those of the options where not given.
    """

    def __init__(self, count: int, options: PrepareOptions, *, limits: Limits | None = None) -> None:
        self._count = count
        self._options = options
        self._chunk = max(1, min(_CHUNK, _CHUNK_PIXELS // (options.size[0] * options.size[1])))
        self._limits = limits or limits_for(options)
        self._pool = self._new_pool()
        self._lone: _LoneProcess | None = None
        self._waiting: deque[tuple[list[Entry], Future[list[Outcome]]]] = deque()

    def __enter__(self) -> "Workers":
        try:
            starting = [
                self._pool.submit(os.getpid) for _ in range(self._count)
            ]  # all at once, not one after the other
            starting[0].result()
        except BrokenProcessPool as error:
            hint = "in a script of your own, call prepare under `if __name__ == '__main__':`"
            raise UsageError("the worker processes cannot start", hint=hint) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._lone is not None:
            self._lone.end()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=context(), initializer=_start, initargs=(self._limits,))

    def outcomes(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Yields every entry with its verdict, in order; takes only a few more than it has yielded."""
        coming, waiting = iter(entries), self._waiting
        waiting.clear()
        while True:
            while len(waiting) < self._count * _AHEAD and (chunk := list(itertools.islice(coming, self._chunk))):
                waiting.append((chunk, self._submit(chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            yield from zip(chunk, self._result(chunk, future), strict=True)

    def _submit(self, chunk: list[Entry]) -> "Future[list[Outcome]]":
        arguments = (_process_chunk, chunk, self._options, self._limits)
        try:
            return self._pool.submit(*arguments)
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = self._new_pool()
            return self._pool.submit(*arguments)

    def _result(self, chunk: list[Entry], future: "Future[list[Outcome]]") -> list[Outcome]:
        try:
            return future.result()
        except (BrokenProcessPool, MemoryError):  # a process died: whose picture it was is found by trying each alone
            return [at_sight(entry) or self._alone(entry) for entry in chunk]

    def _alone(self, entry: Entry) -> Outcome:
        """One picture, with nothing else at work that its death could be blamed on."""
        wait([future for _, future in self._waiting])
        self._lone = self._lone or _LoneProcess(self._limits)
        outcome = self._lone.outcome(entry, self._options)
        if outcome is None:
            outcome = _end_of_process(self._lone.end(), self._limits)
            self._lone = None
        return outcome


class _LoneProcess:
    """A process for one picture at a time; the way it ended tells what that picture did to it."""

    def __init__(self, limits: Limits) -> None:
        started = context()
        self._connection, theirs = started.Pipe()
        self._process = started.Process(target=_serve, args=(theirs, limits), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self, entry: Entry, options: PrepareOptions) -> Outcome | None:
        """None where the process has died of it."""
        try:
            self._connection.send((entry, options))
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> int:
        """Ends it where it has not ended; minus the number of the signal that ended it, or its exit code."""
        self._connection.close()
        self._process.join(timeout=_SECONDS_TO_END)
        self._process.kill()
        self._process.join()
        return self._process.exitcode or 0


def _serve(connection: "Connection", limits: Limits) -> None:
    _start(limits)
    with contextlib.suppress(OSError, EOFError):  # the parent has closed its end
        while True:
            entry, options = connection.recv()
            connection.send(_process_in_time(entry, options, limits))


def _end_of_process(exit_code: int, limits: Limits) -> Outcome:
    """The verdict on the picture that a process ended with."""
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"exit code {exit_code}"
    if name == "SIGALRM":
        return Outcome("refused", ("too-slow",), f"not decoded within {limits.seconds:g} s")
    told = "was killed, most likely because memory ran out" if name == "SIGKILL" else f"died ({name})"
    return Outcome("refused", ("crashed",), f"the process that decoded it {told}")
