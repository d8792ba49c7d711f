"""States of reference sets, kept in the cache folder by the contents of the pictures and all that a state depends on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from hdit_cli import files, runtime
from hdit_cli.engine.one_pass import Breaks, OnProgress, by_state, collect, seen_as
from hdit_cli.engine.picture_sets import StatisticsFile, Stored
from hdit_cli.engine.unfinished import key_of
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.metric import Metric

_FORMAT = "hdit-reference/3"
_LARGEST = 1 << 28  # bytes of a state that needs no feature net: a larger one is made again sooner than read


def told_of(kind: type[Metric], net: FeatureNet | None) -> list[Any]:
    """A JSON value: what a state of a set depends on besides the set."""
    features = [net.kind, net.sha256, net.resize] if net is not None and kind.needs else None
    return [kind.state, kind.limit, list(getattr(kind, "patch", ())), features]


def _cache_file(kind: type[Metric], reference: Stored, net: FeatureNet | None) -> Path:
    cut = [list(reference.cut)] if reference.cut else []
    key = key_of([_FORMAT, *told_of(kind, net), reference.fingerprint, reference.count, *cut])
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
    metrics: Sequence[type[Metric]],
    *,
    net: FeatureNet | None,
    on_progress: OnProgress,
    part: str = "reference",
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> dict[str, Metric]:
    """As `collect`; states of a reference seen before come from the cache folder, and new ones go there.

    Metrics that need no reference are passed over.

    Args:
        kept: states that this process has in memory, by their place in the cache; new ones are added.
    """
    metrics = [kind for kind in metrics if not kind.alone]
    if isinstance(reference, StatisticsFile):
        return {kind.name: kind.of(reference.gaussian) for kind in metrics if issubclass(kind, FID)}
    kinds, main = by_state(metrics), runtime.ranks().is_main
    places = {name: _cache_file(kind, reference, net) for name, kind in kinds.items()}
    found: dict[str, Metric] = {}
    for name, kind in kinds.items() if main else ():
        known = (kept or {}).get(places[name]) or _from_cache(kind, places[name], count=reference.count)
        if known:
            found[name] = known
    known_names = runtime.gather(list(found))[0]  # the first process decides for all
    missing = [kind for name, kind in kinds.items() if name not in known_names]
    if missing:
        collected = collect(reference, missing, net=net, on_progress=on_progress, part=part, breaks=breaks)
        found |= {kind.state: collected[kind.name] for kind in missing if main}
    for kind in missing if main else ():
        _to_cache(found[kind.state], places[kind.state])
    if kept is not None:
        kept |= {places[name]: state for name, state in found.items()}
    return {kind.name: seen_as(kind, found[kind.state]) for kind in metrics if main}
