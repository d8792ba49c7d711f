"""Scores of a set of pictures against a reference, in one pass over each, on any number of processes.

Process r takes the pictures r, r + world, r + 2 world, ...: each exactly once. The states of all are merged on the first
process, which alone gets the scores.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from torch import distributed

from hdit_cli import files, runtime
from hdit_cli.engine.picture_sets import Batch, PictureSet, Stored, some_of
from hdit_cli.engine.stop import StopRequest
from hdit_cli.engine.unfinished import Progress, Unfinished, key_of
from hdit_cli.errors import DataError, Interrupted
from hdit_cli.metrics.inception import RESIZE, Inception
from hdit_cli.metrics.metric import Metric

Take = Callable[[list[int], list[np.ndarray]], None]
OnProgress = Callable[[str, int, int], None]  # what is read, pictures done, pictures in all
_CACHE_FORMAT = "hdit-reference/1"
_LARGEST = 1 << 28  # bytes of a state that needs no feature net
_FEW = 10_000  # below, scores at different n differ by more than models do
_AHEAD = 2  # batches made while the features of an earlier one are taken
_PATIENCE = timedelta(hours=12)  # one process may have much slower work than another


@dataclass(frozen=True)
class Score:
    """One metric's verdict; `value` means nothing without the two numbers of pictures."""

    metric: str
    value: float
    n: int
    n_reference: int
    details: dict[str, Any] = field(default_factory=dict)


def needs_inception(metrics: Sequence[type[Metric]]) -> bool:
    return any(kind.needs == "inception" for kind in metrics)


def check_counts(metrics: Sequence[type[Metric]], *, counts: Mapping[str, int], allow_small: bool) -> list[str]:
    """Whether there are enough pictures, before any work is done.

    Args:
        counts: number of pictures by what they are called.

    Returns:
        what to know about a score of few pictures.

    Raises:
        DataError: too few for the definition of a metric, or for a score that means something.
    """
    notes = []
    for kind in metrics:
        name, told = kind.name.upper(), ", ".join(f"{what}: {count:,}" for what, count in counts.items())
        fewest = min(counts.values())
        if fewest < kind.fewest:
            raise DataError(f"{name} needs at least {kind.fewest} pictures ({told})", hint="more pictures")
        if fewest < kind.trusted and not allow_small:
            raise DataError(
                f"{name} of few pictures misleads: it needs {kind.trusted:,} on both sides ({told})",
                hint=f"more pictures, another metric (--metrics {_unbiased(metrics)}), or --allow-small",
            )
        if kind.trusted > 2 and fewest < _FEW:
            notes.append(f"{name} is biased upwards by few pictures ({told}): compare it only at the same numbers")
    return notes


def _unbiased(metrics: Sequence[type[Metric]]) -> str:
    return ",".join(kind.name for kind in metrics if kind.trusted <= 2) or "kid,swd"


def check_sizes(metrics: Sequence[type[Metric]], pictures: PictureSet, reference: PictureSet) -> None:
    """Raises DataError where a metric compares pixels of sets of different sizes."""
    of_pixels = [kind.name for kind in metrics if kind.needs is None]
    if of_pixels and pictures.size != reference.size:
        (h, w), (height, width) = pictures.size, reference.size
        raise DataError(
            f"{pictures.name} is {h}x{w}, {reference.name} {height}x{width} (height x width): "
            f"{' and '.join(of_pixels)} compare{'s' if len(of_pixels) == 1 else ''} equal sizes",
            hint=f"hdit prepare REFERENCE --size {h}x{w}, or --metrics fid,kid",
        )


# One set, in one pass


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
        stop: asked after each batch.
        unfinished: where what was done is kept, once in a while and when the pass is broken off; None keeps nothing.
    """

    stop: StopRequest | None = None
    unfinished: Unfinished | None = None


class _Pass:
    """One process's share of a set on its way into the metrics, batch by batch, in order."""

    def __init__(
        self, pictures: PictureSet, metrics: Sequence[type[Metric]], *, net: Inception | None, part: str, breaks: Breaks
    ) -> None:
        self.pictures, self.net, self.part, self.unfinished = pictures, net, part, breaks.unfinished
        self.featured = needs_inception(metrics)
        self.chosen = {
            kind.name: set(some_of(pictures.count, min(pictures.count, kind.limit or pictures.count)).tolist())
            for kind in metrics
        }
        if self.unfinished is not None:
            self.progress = self.unfinished.resume(part, metrics, count=pictures.count)
        else:
            place = runtime.ranks()
            left = range(place.rank, pictures.count, place.world)
            self.progress = Progress({kind.name: kind() for kind in metrics}, [], left)
        self.todo = list(self.progress.left)

    def take(self, numbers: list[int], batch: list[np.ndarray]) -> None:
        """Features of one batch, and each metric's share of it."""
        features = self.net(batch) if self.net is not None and self.featured else None
        for name, metric in self.progress.states.items():
            rows = [row for row, number in enumerate(numbers) if number in self.chosen[name]]
            taken = [numbers[row] for row in rows]
            if not taken:
                continue
            if metric.needs == "inception":
                assert features is not None
                metric.update(taken, features[rows])
            else:
                _feed(metric, taken, [batch[row] for row in rows])
        self.progress.done += numbers
        self.progress.left = self.progress.left[len(numbers) :]
        if self.unfinished is not None and self.unfinished.due():
            self.unfinished.save(self.part, self.progress)


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
    metrics: Sequence[type[Metric]],
    *,
    net: Inception | None,
    on_progress: OnProgress,
    part: str = "pictures",
    breaks: Breaks | None = None,
) -> dict[str, Metric]:
    """Every metric's state of a set. With several processes, the states of the whole set on the first, nothing elsewhere.

    On a GPU the features of a batch are taken in a thread while the next one is made; on a CPU both want the same cores.

    Args:
        part: name of the set among those of one evaluation.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
        Interrupted: `breaks.stop` was asked to stop, on any process; what was done is kept.
    """
    breaks, world = breaks or Breaks(), runtime.ranks().world
    mine = _Pass(pictures, metrics, net=net, part=part, breaks=breaks)
    progress, before = mine.progress, mine.progress.found
    run = _overlapped if net is not None and net.device.type == "cuda" else _in_turn
    done = 0
    with closing(run(pictures.batches(mine.todo), mine.take)) as batches:
        for numbers, _ in batches:
            done += len(numbers)
            on_progress(pictures.name, min(before + done * world, pictures.count), pictures.count)
            if breaks.stop is not None and breaks.stop.asked:
                break
    if breaks.stop is not None:
        _stop_together(breaks, part, progress, count=pictures.count)
    merged = {kind.name: _merged_over_processes(kind, progress.states[kind.name]) for kind in metrics}
    return {name: metric for name, metric in merged.items() if metric is not None}


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


# The reference, whose states are kept


def told_of(kind: type[Metric], net: Inception | None) -> list[Any]:
    """A JSON value: what a metric's state of a set depends on besides the set."""
    features = [net.sha256, RESIZE] if net is not None and kind.needs else None
    return [kind.name, kind.limit, list(getattr(kind, "patch", ())), features]


def _cache_file(kind: type[Metric], reference: Stored, net: Inception | None) -> Path:
    key = key_of([_CACHE_FORMAT, *told_of(kind, net), reference.fingerprint, reference.count])
    return runtime.cache_folder() / "reference" / f"{kind.name}-{key}.safetensors"


def _from_cache(kind: type[Metric], path: Path, *, count: int) -> Metric | None:
    try:
        found = kind.merged([safetensors.numpy.load_file(path)])
    except (OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged: then it is made again
        return None
    return found if found.count == min(count, kind.limit or count) else None


def _to_cache(metric: Metric, path: Path) -> None:
    """Keeps a state; a very large one is made again sooner than read."""
    arrays = {name: np.ascontiguousarray(array) for name, array in metric.arrays().items()}
    if metric.needs or sum(array.nbytes for array in arrays.values()) <= _LARGEST:
        files.make_folder(path.parent)
        files.write_bytes(path, safetensors.numpy.save(arrays))


def collect_reference(
    reference: Stored,
    metrics: Sequence[type[Metric]],
    *,
    net: Inception | None,
    on_progress: OnProgress,
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> dict[str, Metric]:
    """As `collect`; states of a reference seen before come from the cache folder, and new ones go there.

    Args:
        kept: states that this process has in memory, by their place in the cache; new ones are added.
    """
    found: dict[str, Metric] = {}
    main = runtime.ranks().is_main
    places = {kind.name: _cache_file(kind, reference, net) for kind in metrics}
    if main:
        for kind in metrics:
            known = (kept or {}).get(places[kind.name]) or _from_cache(kind, places[kind.name], count=reference.count)
            if known:
                found[kind.name] = known
    known_names = runtime.gather(list(found))[0]  # the first process decides for all
    missing = [kind for kind in metrics if kind.name not in known_names]
    if missing:
        found |= collect(reference, missing, net=net, on_progress=on_progress, part="reference", breaks=breaks)
    for kind in missing if main else ():
        _to_cache(found[kind.name], places[kind.name])
    if kept is not None:
        kept |= {places[name]: metric for name, metric in found.items()}
    return found


def score(
    pictures: PictureSet,
    reference: Stored,
    metrics: Sequence[type[Metric]],
    *,
    net: Inception | None,
    on_progress: OnProgress,
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> list[Score]:
    """The scores, in the order of `metrics`; an empty list on all processes but the first. See `collect_reference`.

    Raises:
        DataError: a picture cannot be read, or the two sets do not fit together.
        NonFiniteError: the model or the feature net gave NaN or infinity.
        Interrupted: asked to stop; what was done is kept.
    """
    known = collect_reference(reference, metrics, net=net, on_progress=on_progress, breaks=breaks, kept=kept)
    states = collect(pictures, metrics, net=net, on_progress=on_progress, breaks=breaks)
    scores = []
    for kind in metrics if runtime.ranks().is_main else ():
        ours, theirs = states[kind.name], known[kind.name]
        result = ours.score(theirs)
        scores.append(Score(kind.name, result.pop("value"), ours.count, theirs.count, result))
    return scores
