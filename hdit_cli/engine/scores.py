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
from hdit_cli.engine.picture_sets import PictureSet, StatisticsFile, Stored, some_of
from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics.feature_net import FeatureNet, is_inception
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.per_class import PerClassFID

OnProgress = Callable[[str, int, int], None]  # what is read, pictures done, pictures in all
_CACHE_FORMAT = "hdit-reference/2"
_FEW = 10_000  # below, scores at different n differ by more than models do
_PATIENCE = timedelta(hours=12)  # one process may have much slower work than another


@dataclass(frozen=True)
class Score:
    """One metric's verdict; `value` means nothing without the two numbers of pictures.

    Attributes:
        n_reference: None where nobody knows it, or where there is no reference.
        better: "lower" or "higher"; None where neither is by itself.
    """

    metric: str
    value: float
    n: int
    n_reference: int | None
    details: dict[str, Any] = field(default_factory=dict)
    better: str | None = "lower"


def needs_net(metrics: Sequence[type[Metric]]) -> bool:
    return any(kind.needs for kind in metrics)


def check_net(metrics: Sequence[type[Metric]], net: FeatureNet) -> None:
    """Raises UsageError where a metric is not defined for the features of this net."""
    of_inception = [kind.name for kind in metrics if kind.needs == "inception"]
    if of_inception and not is_inception(net):
        raise UsageError(
            f"{','.join(of_inception)}: of Inception features by definition, and {net.path} is another net",
            hint="of any net: --metrics fd,kd,precision-recall,memorisation",
        )
    if any(kind.needs == "logits" for kind in metrics) and not net.classifier:
        raise UsageError(
            f"the Inception Score needs the net's classifier, and {net.path} has none", hint="leave is out of --metrics"
        )


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
        known = {what: count for what, count in counts.items() if what == "pictures" or not kind.alone}
        name, told = kind.name.upper(), ", ".join(f"{what}: {count:,}" for what, count in known.items())
        fewest = min(known.values())
        if fewest < kind.fewest:
            raise DataError(f"{name} needs at least {kind.fewest} pictures ({told})", hint="more pictures")
        if fewest < kind.trusted and not allow_small:
            raise DataError(
                f"{name} of few pictures misleads: it needs {kind.trusted:,} on both sides ({told})",
                hint=f"more pictures, another metric (--metrics {_unbiased(metrics)}), or --allow-small",
            )
        if kind.bias and fewest < _FEW:
            notes.append(f"{name} is biased {kind.bias} by few pictures ({told}): compare it only at the same numbers")
    return notes


def _unbiased(metrics: Sequence[type[Metric]]) -> str:
    return ",".join(kind.name for kind in metrics if not kind.bias) or "kid,swd"


def check_reference(metrics: Sequence[type[Metric]], pictures: PictureSet, reference: Stored | StatisticsFile) -> None:
    """Raises DataError where a metric cannot compare the two sets."""
    if isinstance(reference, StatisticsFile):
        beyond = [kind.name for kind in metrics if not (kind.alone or issubclass(kind, FID))]
        if beyond:
            raise DataError(
                f"{reference.name} holds moments, and {', '.join(beyond)} need every picture's features",
                hint="--reference a data set or folder, or --metrics fid",
            )
        return
    _check_labels(metrics, pictures, reference)
    of_pixels = [kind.name for kind in metrics if kind.needs is None]
    if of_pixels and pictures.size != reference.size:
        (h, w), (height, width) = pictures.size, reference.size
        raise DataError(
            f"{pictures.name} is {h}x{w}, {reference.name} {height}x{width} (height x width): "
            f"{' and '.join(of_pixels)} compare{'s' if len(of_pixels) == 1 else ''} equal sizes",
            hint=f"hdit prepare REFERENCE --size {h}x{w}, or --metrics fid,kid",
        )


def _check_labels(metrics: Sequence[type[Metric]], pictures: PictureSet, reference: PictureSet) -> None:
    if not any(issubclass(kind, PerClassFID) for kind in metrics):
        return
    for of in (pictures, reference):
        if of.labels is None or not of.classes:
            raise DataError(
                f"fid-per-class needs classes, and those of {of.name} are not known",
                hint="a conditional model and a data set with classes, or leave it out of --metrics",
            )
    if pictures.classes != reference.classes:
        raise DataError(
            f"{pictures.name} and {reference.name} have different classes", hint="leave fid-per-class out of --metrics"
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
    pictures: PictureSet, metrics: Sequence[type[Metric]], *, net: FeatureNet | None, on_progress: OnProgress
) -> dict[str, Metric]:
    """Every metric's state of a set. With several processes, the states of the whole set on the first, nothing elsewhere.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
    """
    place = runtime.ranks()
    kinds = {kind.state: kind for kind in metrics}  # metrics that remember the same share it
    states: dict[str, Metric] = {name: kind() for name, kind in kinds.items()}
    chosen = {
        name: set(some_of(pictures.count, min(pictures.count, kind.limit or pictures.count)).tolist())
        for name, kind in kinds.items()
    }
    labels, done = pictures.labels, 0
    for numbers, batch in pictures.batches(range(place.rank, pictures.count, place.world)):
        features = net(batch) if net is not None and needs_net(metrics) else None
        for name, metric in states.items():
            rows = [row for row, number in enumerate(numbers) if number in chosen[name]]
            taken = [numbers[row] for row in rows]
            if not taken:
                continue
            if metric.needs is None:
                _feed(metric, taken, [batch[row] for row in rows])
                continue
            assert net is not None and features is not None
            x = net.logits(features[rows]) if metric.needs == "logits" else features[rows]
            assert x is not None
            metric.update(taken, x, label=None if labels is None else labels[taken])
        done += len(numbers)
        on_progress(pictures.name, min(done * place.world, pictures.count), pictures.count)
    merged = {name: _merged_over_processes(kind, states[name]) for name, kind in kinds.items()}
    return {kind.name: _as(kind, state) for kind in metrics if (state := merged[kind.state]) is not None}


def _as(kind: type[Metric], state: Metric) -> Metric:
    """The state as this metric, which shares its arrays."""
    return state if type(state) is kind else kind.merged([state.arrays()])


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


def _cache_file(kind: type[Metric], reference: Stored, net: FeatureNet) -> Path:
    told = [_CACHE_FORMAT, kind.state, kind.limit, reference.fingerprint, reference.count]
    told += [net.kind, net.sha256, net.resize]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return runtime.cache_folder() / "reference" / f"{kind.state}-{key[:32]}.safetensors"


def _from_cache(kind: type[Metric], path: Path, *, count: int) -> Metric | None:
    try:
        found = kind.merged([safetensors.numpy.load_file(path)])
    except (OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged: then it is made again
        return None
    return found if found.count == count else None


def collect_reference(
    reference: Stored | StatisticsFile,
    metrics: Sequence[type[Metric]],
    *,
    net: FeatureNet | None,
    on_progress: OnProgress,
) -> dict[str, Metric]:
    """As `collect`; features of a reference seen before come from the cache folder, and new ones go there.

    Metrics that need no reference are passed over.
    """
    metrics = [kind for kind in metrics if not kind.alone]
    if isinstance(reference, StatisticsFile):
        return {kind.name: kind.of(reference.gaussian) for kind in metrics if issubclass(kind, FID)}
    kinds = {kind.state: kind for kind in metrics}
    found: dict[str, Metric] = {}
    main = runtime.ranks().is_main
    if net is not None and main:
        for name, kind in kinds.items():
            known = kind.needs and _from_cache(kind, _cache_file(kind, reference, net), count=_held(kind, reference))
            if known:
                found[name] = known
    known_names = runtime.gather(list(found))[0]  # the first process decides for all
    missing = [kind for name, kind in kinds.items() if name not in known_names]
    if missing:
        collected = collect(reference, missing, net=net, on_progress=on_progress)
        found |= {kind.state: collected[kind.name] for kind in missing if main}
    if net is not None and main:
        for kind in missing:
            if kind.needs:
                path = _cache_file(kind, reference, net)
                files.make_folder(path.parent)
                arrays = {name: np.ascontiguousarray(array) for name, array in found[kind.state].arrays().items()}
                files.write_bytes(path, safetensors.numpy.save(arrays))
    return {kind.name: _as(kind, found[kind.state]) for kind in metrics if main}


def _held(kind: type[Metric], reference: Stored) -> int:
    """How many pictures of a reference a metric holds."""
    return min(reference.count, kind.limit or reference.count)


def score(
    pictures: PictureSet,
    reference: Stored | StatisticsFile,
    metrics: Sequence[type[Metric]],
    *,
    net: FeatureNet | None,
    on_progress: OnProgress,
    held_out: Stored | None = None,
) -> list[Score]:
    """The scores, in the order of `metrics`; an empty list on all processes but the first.

    Args:
        held_out: pictures that the model has not seen, for the memorisation check; None where there are none.

    Raises:
        DataError: a picture cannot be read, or the two sets do not fit together.
        NonFiniteError: the model or the feature net gave NaN or infinity.
    """
    known = collect_reference(reference, metrics, net=net, on_progress=on_progress)
    beside: dict[str, Any] = {}
    if held_out is not None and Memorisation in metrics:
        beside["held_out"] = collect_reference(held_out, [Memorisation], net=net, on_progress=on_progress).get(
            Memorisation.name
        )
    states = collect(pictures, metrics, net=net, on_progress=on_progress)
    scores: list[Score] = []
    for kind in metrics if runtime.ranks().is_main else ():
        ours = states[kind.name]
        theirs = ours if kind.alone else known[kind.name]
        result = ours.score(theirs, **(beside if kind is Memorisation else {}))
        count = None if kind.alone else theirs.count or None
        values = result.pop("values", None) or {kind.name: result.pop("value")}
        scores += [Score(name, value, ours.count, count, result, kind.better) for name, value in values.items()]
    return scores
