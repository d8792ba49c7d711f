"""Tasks done on this machine: one pool of processes shares the pictures of a shard, and goes on into the next one."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from hdit_cli.data.prepare.making.plan import Plan, Task
from hdit_cli.data.prepare.making.task import Record, claim, make_shard
from hdit_cli.data.prepare.making.workers import Workers
from hdit_cli.data.prepare.pictures.outcome import Outcome
from hdit_cli.data.prepare.sources.listing import Entry


@dataclass(frozen=True)
class Progress:
    """How far a preparation is: files told of files seen, and the kept and refused among them."""

    done: int
    total: int
    kept: int
    refused: int


class Watch:
    """Counts what is told, and passes it on.

    Args:
        total: files.
        progress: called after each file, or after each task where that is done elsewhere.
    """

    def __init__(self, total: int, progress: Callable[[Progress], None] | None) -> None:
        self.now = Progress(0, total, 0, 0)
        self._progress = progress

    def tell(self, outcome: Outcome) -> None:
        self.add(1, kept=outcome.verdict == "kept", refused=outcome.verdict == "refused")

    def add(self, done: int, *, kept: int, refused: int) -> None:
        self._count(done, kept, refused)
        if self._progress is not None:
            self._progress(self.now)

    def skip(self, record: Record) -> None:
        """Counts a task that was done before."""
        self._count(record.entries, *counts_of(record))

    def _count(self, done: int, kept: int, refused: int) -> None:
        now = self.now
        self.now = Progress(now.done + done, now.total, now.kept + kept, now.refused + refused)


def counts_of(record: Record) -> tuple[int, int]:
    """How many a task kept and refused."""
    kept = sum(picture.verdict == "kept" for picture in record.pictures)
    return kept, sum(line.verdict == "refused" for line in record.lines)


def make_here(plan: Plan, numbers: Iterable[int], *, workers: int, watch: Watch) -> None:
    """Does what is not done yet of some tasks, and is in no other process's hands."""
    coming = _Coming(plan, numbers, watch)
    first = next(coming.entries, None)
    if first is None:  # nothing to do, so no processes either
        return
    try:
        with Workers(workers, plan.options) as pool:
            outcomes = pool.outcomes(itertools.chain([first], coming.entries))
            while (sample := next(outcomes, None)) is not None:
                task, hold = coming.taken[0]
                rest = itertools.islice(outcomes, task.entries - 1)
                make_shard(plan, task, itertools.chain([sample], rest), tell=watch.tell)
                hold.close()
                coming.taken.popleft()
    finally:
        for _, hold in coming.taken:
            hold.close()


class _Coming:
    """The entries of tasks, each of which is taken when its first entry is asked for; `taken` are those not yet made."""

    def __init__(self, plan: Plan, numbers: Iterable[int], watch: Watch) -> None:
        self.taken: deque[tuple[Task, ExitStack]] = deque()
        self.entries = self._all(plan, numbers, watch)

    def _all(self, plan: Plan, numbers: Iterable[int], watch: Watch) -> Iterator[Entry]:
        for number in numbers:
            hold, done = claim(plan, number)
            if done is not None:
                watch.skip(done)
            if hold is not None:
                self.taken.append((plan.task(number), hold))
                yield from plan.entries(plan.task(number))
