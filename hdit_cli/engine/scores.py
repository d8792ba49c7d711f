"""Scores of a set of pictures against a reference, in one pass over each, on any number of processes.

Process r takes the pictures r, r + world, r + 2 world, ...: each exactly once. The states of all are merged on the first
process, which alone gets the scores.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from torch import distributed

from hdit_cli import files, runtime
from hdit_cli.engine.picture_sets import PictureSet, Stored, some_of
from hdit_cli.errors import DataError
from hdit_cli.metrics.inception import RESIZE, Inception
from hdit_cli.metrics.metric import Metric

OnProgress = Callable[[str, int, int], None]  # what is read, pictures done, pictures in all
_CACHE_FORMAT = "hdit-reference/1"
_FEW = 10_000  # below, scores at different n differ by more than models do
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
    verb = "compares" if len(of_pixels) == 1 else "compare"
    for mixed in (each for each in (pictures, reference) if of_pixels and each.sizes > 1):
        raise DataError(
            f"{mixed.name} holds pictures of {mixed.sizes} sizes (buckets): {' and '.join(of_pixels)} {verb} equal sizes",
            hint="--metrics fid,kid, or --reference with a set of one size: `hdit prepare` without --buckets",
        )
    if of_pixels and pictures.size != reference.size:
        (h, w), (height, width) = pictures.size, reference.size
        raise DataError(
            f"{pictures.name} is {h}x{w}, {reference.name} {height}x{width} (height x width): "
            f"{' and '.join(of_pixels)} {verb} equal sizes",
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


def collect(
    pictures: PictureSet, metrics: Sequence[type[Metric]], *, net: Inception | None, on_progress: OnProgress
) -> dict[str, Metric]:
    """Every metric's state of a set. With several processes, the states of the whole set on the first, nothing elsewhere.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
    """
    place = runtime.ranks()
    states: dict[str, Metric] = {kind.name: kind() for kind in metrics}
    chosen = {
        kind.name: set(some_of(pictures.count, min(pictures.count, kind.limit or pictures.count)).tolist())
        for kind in metrics
    }
    done = 0
    for numbers, batch in pictures.batches(range(place.rank, pictures.count, place.world)):
        features = net(batch) if net is not None and needs_inception(metrics) else None
        for name, metric in states.items():
            rows = [row for row, number in enumerate(numbers) if number in chosen[name]]
            taken = [numbers[row] for row in rows]
            if not taken:
                continue
            if metric.needs == "inception":
                assert features is not None
                metric.update(taken, features[rows])
            else:
                _feed(metric, taken, [batch[row] for row in rows])
        done += len(numbers)
        on_progress(pictures.name, min(done * place.world, pictures.count), pictures.count)
    merged = {kind.name: _merged_over_processes(kind, states[kind.name]) for kind in metrics}
    return {name: metric for name, metric in merged.items() if metric is not None}


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


# The reference, whose features are kept


def _cache_file(kind: type[Metric], reference: Stored, net: Inception) -> Path:
    told = [_CACHE_FORMAT, kind.name, reference.fingerprint, reference.count, net.sha256, RESIZE]
    if reference.cut is not None:
        told.append(list(reference.cut))
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return runtime.cache_folder() / "reference" / f"{kind.name}-{key[:32]}.safetensors"


def _from_cache(kind: type[Metric], path: Path, *, count: int) -> Metric | None:
    try:
        found = kind.merged([safetensors.numpy.load_file(path)])
    except (OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged: then it is made again
        return None
    return found if found.count == count else None


def collect_reference(
    reference: Stored, metrics: Sequence[type[Metric]], *, net: Inception | None, on_progress: OnProgress
) -> dict[str, Metric]:
    """As `collect`; features of a reference seen before come from the cache folder, and new ones go there."""
    found: dict[str, Metric] = {}
    main = runtime.ranks().is_main
    if net is not None and main:
        for kind in metrics:
            known = kind.needs and _from_cache(kind, _cache_file(kind, reference, net), count=reference.count)
            if known:
                found[kind.name] = known
    known_names = runtime.gather(list(found))[0]  # the first process decides for all
    missing = [kind for kind in metrics if kind.name not in known_names]
    if missing:
        found |= collect(reference, missing, net=net, on_progress=on_progress)
    if net is not None and main:
        for kind in missing:
            if kind.needs:
                path = _cache_file(kind, reference, net)
                files.make_folder(path.parent)
                arrays = {name: np.ascontiguousarray(array) for name, array in found[kind.name].arrays().items()}
                files.write_bytes(path, safetensors.numpy.save(arrays))
    return found


def score(
    pictures: PictureSet,
    reference: Stored,
    metrics: Sequence[type[Metric]],
    *,
    net: Inception | None,
    on_progress: OnProgress,
) -> list[Score]:
    """The scores, in the order of `metrics`; an empty list on all processes but the first.

    Raises:
        DataError: a picture cannot be read, or the two sets do not fit together.
        NonFiniteError: the model or the feature net gave NaN or infinity.
    """
    known = collect_reference(reference, metrics, net=net, on_progress=on_progress)
    states = collect(pictures, metrics, net=net, on_progress=on_progress)
    scores = []
    for kind in metrics if runtime.ranks().is_main else ():
        ours, theirs = states[kind.name], known[kind.name]
        result = ours.score(theirs)
        scores.append(Score(kind.name, result.pop("value"), ours.count, theirs.count, result))
    return scores
