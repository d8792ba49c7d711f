"""Scores of a set of pictures against a reference: what can be checked beforehand, and the verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdit_cli.engine.one_pass import Breaks, OnProgress, collect
from hdit_cli.engine.picture_sets import PictureSet, StatisticsFile, Stored
from hdit_cli.engine.references import collect_reference
from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics.feature_net import FeatureNet, is_inception
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.per_class import PerClassFID

_FEW = 10_000  # below, scores at different n differ by more than models do


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


def check_net(metrics: Sequence[type[Metric]], net: FeatureNet) -> None:
    """Raises UsageError where a metric is not defined for the features of this net."""
    of_inception = [kind.name for kind in metrics if kind.needs == "inception"]
    if of_inception and not is_inception(net):
        raise UsageError(
            f"{','.join(of_inception)}: of Inception features by definition, and {net.path} is another net",
            hint="of any net are the metrics fd,kd,precision-recall,memorisation",
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


@dataclass(frozen=True)
class States:
    """What every metric remembers of the sets, by name of the metric; all empty on all processes but the first."""

    pictures: dict[str, Metric]
    reference: dict[str, Metric]
    held_out: dict[str, Metric] = field(default_factory=dict)


def collect_all(
    pictures: PictureSet,
    reference: Stored | StatisticsFile,
    metrics: Sequence[type[Metric]],
    *,
    net: FeatureNet | None,
    on_progress: OnProgress,
    held_out: Stored | None = None,
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> States:
    """The states of all sets, each in one pass: the reference, the held-out pictures, then the pictures themselves.

    Args:
        held_out: pictures that the model has not seen, for the memorisation check; None where there are none.
        breaks: how the passes may be broken off.
        kept: states of references in memory; see `collect_reference`.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
        NonFiniteError: the model or the feature net gave NaN or infinity.
        Interrupted: asked to stop; what was done is kept where `breaks` says.
    """
    how: dict[str, Any] = {"net": net, "on_progress": on_progress, "breaks": breaks}
    known = collect_reference(reference, metrics, kept=kept, **how)
    beside: dict[str, Metric] = {}
    if held_out is not None and Memorisation in metrics:
        beside = collect_reference(held_out, [Memorisation], part="held_out", kept=kept, **how)
    return States(collect(pictures, metrics, **how), known, beside)


def verdicts(states: States, metrics: Sequence[type[Metric]]) -> list[Score]:
    """The scores, in the order of `metrics`; on the first process only.

    Raises:
        DataError: the two sets do not fit together.
    """
    scores: list[Score] = []
    for kind in metrics:
        ours = states.pictures[kind.name]
        theirs = ours if kind.alone else states.reference[kind.name]
        beside: dict[str, Any] = {"held_out": states.held_out.get(kind.name)} if kind is Memorisation else {}
        result = ours.score(theirs, **beside)
        count = None if kind.alone else theirs.count or None
        values = result.pop("values", None) or {kind.name: result.pop("value")}
        scores += [Score(name, value, ours.count, count, result, kind.better) for name, value in values.items()]
    return scores
