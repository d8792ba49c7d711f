"""One pass over a set of pictures that feeds every metric, on any number of processes, and that may be broken off.

Process r takes the pictures r, r + world, r + 2 world, ...: each exactly once. The states of all are merged on the first
process.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from torch import distributed

from hdit_cli import runtime
from hdit_cli.engine.sampling.watched import BrokenOff, Stop
from hdit_cli.engine.scoring.picture_sets import Batch, Generated, PictureSet, some_of
from hdit_cli.engine.scoring.unfinished import Progress, Unfinished
from hdit_cli.errors import Interrupted
from hdit_cli.metrics.feature_net import FeatureNet, given
from hdit_cli.metrics.metric import Metric

Take = Callable[[list[int], list[np.ndarray]], None]
OnProgress = Callable[[str, int, int], None]  # what is read, pictures done, pictures in all
_AHEAD = 2  # batches made while the features of an earlier one are taken
_PATIENCE = timedelta(hours=12)  # one process may have much slower work than another


@dataclass(frozen=True)
class Fed:
    """Metrics, and the feature net that feeds those that need one."""

    metrics: Sequence[type[Metric]]
    net: FeatureNet | None = None


def needs_net(metrics: Sequence[type[Metric]]) -> bool:
    return any(kind.needs for kind in metrics)


def by_state(metrics: Sequence[type[Metric]]) -> dict[str, type[Metric]]:
    """A metric for each kind of state: those that remember the same share it."""
    return {kind.state: kind for kind in metrics}


def _slot(state: str, number: int) -> str:
    """What a kind of state of the net of this number is called among those of one pass."""
    return f"{state}.{number}" if number else state


def seen_as(kind: type[Metric], state: Metric) -> Metric:
    """A state as this metric, which shares its arrays."""
    return state if type(state) is kind else kind.merged([state.arrays()])


def _feed(metric: Metric, numbers: Sequence[int], pictures: Sequence[np.ndarray]) -> None:
    """Pictures of one size together, of several sizes one by one."""
    if len({picture.shape for picture in pictures}) == 1:
        metric.update(numbers, np.stack(pictures))
        return
    for number, picture in zip(numbers, pictures, strict=True):
        metric.update([number], picture[None])


@dataclass(frozen=True)
class Breaks:
    """How a long pass may be broken off.

    Attributes:
        stop: asked after each batch, and between two steps of a sampler.
        unfinished: where what was done is kept, once in a while and when the pass is broken off; None keeps nothing.
    """

    stop: Stop | None = None
    unfinished: Unfinished | None = None


class _Pass:
    """One process's share of a set on its way into the metrics, batch by batch, in order."""

    def __init__(
        self,
        pictures: PictureSet,
        fed: Sequence[Fed],
        *,
        part: str,
        breaks: Breaks,
    ) -> None:
        self.pictures, self.fed, self.part, self.unfinished = pictures, fed, part, breaks.unfinished
        self.labels = pictures.labels
        kinds = {_slot(s, i): kind for i, each in enumerate(fed) for s, kind in by_state(each.metrics).items()}
        self.chosen = {
            name: set(some_of(pictures.count, min(pictures.count, kind.limit or pictures.count)).tolist())
            for name, kind in kinds.items()
        }
        if self.unfinished is not None:
            self.progress = self.unfinished.resume(part, kinds, count=pictures.count)
        else:
            place = runtime.ranks()
            left = range(place.rank, pictures.count, place.world)
            self.progress = Progress({name: kind() for name, kind in kinds.items()}, [], left)
        self.todo = list(self.progress.left)

    def take(self, numbers: list[int], batch: list[np.ndarray]) -> None:
        """Features of one batch, of each net, and each metric's share of it."""
        for number, fed in enumerate(self.fed):
            self._feed(number, fed, numbers, batch)
        self.progress.done += numbers
        self.progress.left = self.progress.left[len(numbers) :]
        if self.unfinished is not None and self.unfinished.due():
            self.unfinished.save(self.part, self.progress)

    def _feed(self, number: int, fed: Fed, numbers: list[int], batch: list[np.ndarray]) -> None:
        features = fed.net(batch) if fed.net is not None and needs_net(fed.metrics) else None
        for name, metric in ((n, self.progress.states[n]) for n in (_slot(s, number) for s in by_state(fed.metrics))):
            rows = [row for row, number in enumerate(numbers) if number in self.chosen[name]]
            taken = [numbers[row] for row in rows]
            if not taken:
                continue
            if metric.needs is None:
                _feed(metric, taken, [batch[row] for row in rows])
                continue
            assert fed.net is not None and features is not None
            x = given(fed.net, features[rows], metric.needs)
            metric.update(taken, x, label=None if self.labels is None else self.labels[taken])


def _overlapped(batches: Iterator[Batch], take: Take) -> Generator[Batch]:
    """Each batch once it is handed to `take`, which works in a thread, in order, at most `_AHEAD` batches behind."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="features") as pool:
        waiting: deque[Future[None]] = deque()
        for batch in batches:
            waiting.append(pool.submit(take, *batch))
            while len(waiting) > _AHEAD:
                waiting.popleft().result()
            yield batch
        for future in waiting:
            future.result()


def _in_turn(batches: Iterator[Batch], take: Take) -> Generator[Batch]:
    for batch in batches:
        take(*batch)
        yield batch


def collect(
    pictures: PictureSet,
    fed: Sequence[Fed],
    *,
    on_progress: OnProgress,
    part: str = "pictures",
    breaks: Breaks | None = None,
) -> list[dict[str, Metric]]:
    """Every metric's state of a set, by name, for each of `fed`. With several processes, the states of the whole set on the
    first, nothing elsewhere. Each picture is read, or made, once for all nets.

    On a GPU the features of a batch are taken in a thread while the next one is made; on a CPU they take turns: both use all cores.

    Args:
        part: name of the set among those of one evaluation.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
        Interrupted: `breaks.stop` was asked to stop, on any process; what was done is kept.
    """
    breaks, world = breaks or Breaks(), runtime.ranks().world
    mine = _Pass(pictures, fed, part=part, breaks=breaks)
    progress, before = mine.progress, mine.progress.found
    run = _overlapped if any(needs_net(each.metrics) for each in fed) and runtime.device().type == "cuda" else _in_turn
    done = 0

    def tell(done: int) -> None:
        on_progress(pictures.name, min(before + done * world, pictures.count), pictures.count)

    made = pictures.batches(mine.todo)
    if isinstance(pictures, Generated):
        made = pictures.batches(mine.todo, stop=breaks.stop, tell=tell)
    with closing(run(made, mine.take)) as batches, suppress(BrokenOff):  # the batch that was under way is lost
        for numbers, _ in batches:
            done += len(numbers)
            tell(done)
            if breaks.stop is not None and breaks.stop.asked:
                break
    if breaks.stop is not None:
        _stop_together(breaks, part, progress, count=pictures.count)
    found: list[dict[str, Metric]] = []
    for number, metrics in enumerate(each.metrics for each in fed):
        merged = {
            s: _merged_over_processes(kind, progress.states[_slot(s, number)]) for s, kind in by_state(metrics).items()
        }
        found.append({kind.name: seen_as(kind, state) for kind in metrics if (state := merged[kind.state]) is not None})
    return found


def _stop_together(breaks: Breaks, part: str, progress: Progress, *, count: int) -> None:
    """Raises Interrupted on every process where one of them was asked to stop."""
    assert breaks.stop is not None
    told = runtime.gather((breaks.stop.asked, len(progress.done)))
    reason = next((name for name, _ in told if name), "")
    if not reason:
        return
    done = sum(number for _, number in told)
    if breaks.unfinished is None:
        raise Interrupted(
            f"stopped by {reason} after {done:,} of {count:,} {part}", hint="the same command starts again"
        )
    breaks.unfinished.save(part, progress)
    runtime.wait_for_all()
    raise Interrupted(f"stopped by {reason} after {done:,} of {count:,} {part}, saved", hint="the same command goes on")


def _merged_over_processes(kind: type[Metric], mine: Metric) -> Metric | None:
    """The metric of all processes' pictures on the first; None on the others."""
    if not distributed.is_initialized():
        return mine
    group: Any = distributed.new_group(backend="gloo", timeout=_PATIENCE)  # states live on the host
    arrays, main = mine.arrays(), runtime.ranks().is_main
    keys = sorted({key for part in runtime.gather(list(arrays)) for key in part})
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(runtime.ranks().world)]
    for key in keys:  # one by one: a state may be larger than half the memory
        found: list[Any] | None = [None] * len(parts) if main else None
        distributed.gather_object(arrays.get(key), found, group=group)
        for part, array in zip(parts, found or (), strict=False):
            if array is not None:
                part[key] = array
    distributed.destroy_process_group(group)
    return kind.merged(parts) if main else None
