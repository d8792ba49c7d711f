"""States of reference sets, kept in the cache folder by the contents of the pictures and all that a state depends on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from hdit_cli import files, runtime
from hdit_cli.engine.scoring.one_pass import Breaks, Fed, OnProgress, by_state, collect, seen_as
from hdit_cli.engine.scoring.picture_sets import StatisticsFile, Stored
from hdit_cli.engine.scoring.unfinished import key_of
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.metric import Metric

_FORMAT = "hdit-reference/3"
_LARGEST = 1 << 28  # bytes of a state that needs no feature net: a larger one is made again sooner than read


def told_of(kind: type[Metric], net: FeatureNet | None) -> list[Any]:
    """A JSON value: what a state of a set depends on besides the set."""
    features = [net.kind, net.sha256, net.resize] if net is not None and kind.needs else None
    return [kind.state, kind.limit, list(getattr(kind, "patch", ())), features]


def _cache_file(kind: type[Metric], reference: Stored, net: FeatureNet | None) -> Path:
    cut = [list(reference.cut)] if reference.cut else []
    key = key_of([_FORMAT, *told_of(kind, net), reference.fingerprint, reference.count, *cut, *reference.reading])
    return runtime.cache_folder() / "reference" / f"{kind.state}-{key}.safetensors"


def _from_cache(kind: type[Metric], path: Path, *, count: int) -> Metric | None:
    try:
        found = kind.merged([safetensors.numpy.load_file(path)])
    except (OSError, SafetensorError, KeyError, ValueError):  # not there, or damaged: then it is made again
        return None
    return found if found.count == min(count, kind.limit or count) else None


def _to_cache(state: Metric, path: Path) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in state.arrays().items()}
    if state.needs or sum(array.nbytes for array in arrays.values()) <= _LARGEST:
        files.make_folder(path.parent)
        files.write_bytes(path, safetensors.numpy.save(arrays))


def collect_reference(
    reference: Stored | StatisticsFile,
    fed: Sequence[Fed],
    *,
    on_progress: OnProgress,
    part: str = "reference",
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> list[dict[str, Metric]]:
    """As `collect`; states of a reference seen before come from the cache folder, and new ones go there.

    Metrics that need no reference are passed over.

    Args:
        kept: states that this process has in memory, by their place in the cache; new ones are added.
    """
    fed = [replace(each, metrics=[kind for kind in each.metrics if not kind.alone]) for each in fed]
    if isinstance(reference, StatisticsFile):
        return [_known(reference, each) for each in fed]
    by_moments: list[dict[str, Metric]] = [{} for _ in fed]
    if reference.moments is not None:
        by_moments = [_known(reference.moments, each) for each in fed]
        fed = [
            replace(each, metrics=[kind for kind in each.metrics if kind.name not in known])
            for each, known in zip(fed, by_moments, strict=True)
        ]
    main = runtime.ranks().is_main
    states: dict[Path, Metric] = {}
    for place, kind in _places(reference, fed).items() if main else ():
        known = (kept or {}).get(place) or _from_cache(kind, place, count=reference.count)
        if known:
            states[place] = known
    there = set(runtime.gather([place.name for place in states])[0])  # the first process decides for all
    missing = [
        replace(each, metrics=[k for p, k in _places(reference, [each]).items() if p.name not in there]) for each in fed
    ]
    if any(each.metrics for each in missing):
        collected = collect(reference, missing, on_progress=on_progress, part=part, breaks=breaks)
        for each, found in zip(missing, collected, strict=True) if main else ():
            for place, kind in _places(reference, [each]).items():
                states[place] = found[kind.name]
                _to_cache(found[kind.name], place)
    if kept is not None:
        kept |= states
    return [
        {
            **known,
            **{
                kind.name: seen_as(kind, states[_cache_file(kind, reference, each.net)])
                for kind in each.metrics
                if main
            },
        }
        for each, known in zip(fed, by_moments, strict=True)
    ]


def _known(reference: StatisticsFile, fed: Fed) -> dict[str, Metric]:
    """What a file of moments says, by name of the metric."""
    found = {kind.name: reference.of(kind) for kind in fed.metrics}
    return {name: metric for name, metric in found.items() if metric is not None}


def _places(reference: Stored, fed: Sequence[Fed]) -> dict[Path, type[Metric]]:
    """A metric for each state, by the state's place in the cache."""
    return {_cache_file(kind, reference, each.net): kind for each in fed for kind in by_state(each.metrics).values()}
