"""Scores a set of pictures against a reference, in one pass over each, on any number of processes.

Process r takes the pictures r, r + world, r + 2 world, ...: each exactly once. The states of all are merged on the first
one, which alone gets the scores.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from torch import distributed

from hdit_cli import catalog, files, runtime
from hdit_cli.engine.picture_sets import PictureSet, Stored, some_of
from hdit_cli.errors import DataError, Interrupted
from hdit_cli.metrics.inception import RESIZE, Inception
from hdit_cli.metrics.metric import Arrays, Metric

OnProgress = Callable[[str, int, int], None]  # what is read, pictures done, pictures in all
_CACHE_FORMAT = "hdit-reference/1"
_FEW = 10_000  # below, scores at different n differ by more than models do


@dataclass(frozen=True)
class Score:
    """One metric's verdict; `value` means nothing without the two numbers of pictures."""

    metric: str
    value: float
    n: int
    n_reference: int
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The scores, what they were made with, and what to know when reading them."""

    scores: list[Score]
    features: dict[str, Any] | None
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def kinds(names: Sequence[str]) -> list[type[Metric]]:
    """The metrics of these names.

    Raises:
        UsageError: no such metric.
    """
    return [catalog.get("metric", name) for name in names]


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
        for what, count in counts.items():
            name = kind.name.upper()
            if count < kind.fewest:
                raise DataError(f"{name} needs at least {kind.fewest} pictures, {what}: {count}")
            if count < kind.trusted and not allow_small:
                raise DataError(
                    f"{name} of fewer than {kind.trusted:,} pictures means little, {what}: {count:,}",
                    hint=f"more pictures (-n), another metric (--metrics {_unbiased(metrics)}), or --allow-small",
                )
            if kind.trusted > 2 and count < _FEW:
                notes.append(
                    f"{name} is biased upwards by few pictures ({what}: {count:,}); "
                    "compare it only with scores at the same numbers"
                )
    return notes


def _unbiased(metrics: Sequence[type[Metric]]) -> str:
    return ",".join(kind.name for kind in metrics if kind.trusted <= 2) or "kid,swd"


def check_sizes(metrics: Sequence[type[Metric]], pictures: PictureSet, reference: PictureSet) -> None:
    """Raises DataError where a metric compares pixels of sets of different sizes."""
    if any(kind.needs is None for kind in metrics) and pictures.size != reference.size:
        (h, w), (height, width) = pictures.size, reference.size
        raise DataError(
            f"{pictures.name} is {h}x{w}, {reference.name} {height}x{width} (height x width): swd compares equal sizes",
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
    if not distributed.is_initialized():
        return mine
    parts: list[Arrays] | None = [] if runtime.ranks().is_main else None
    for name, array in mine.arrays().items():
        gathered: list[Any] | None = [None] * runtime.ranks().world if parts is not None else None
        distributed.gather_object((name, array), gathered)
        for rank, (found, value) in enumerate(gathered or ()):
            assert parts is not None and found == name
            parts.extend([{}] * 0 if rank < len(parts) else [{}])
            parts[rank][found] = value
    return None if parts is None else kind.merged(parts)
