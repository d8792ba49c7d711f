"""Scores of a set of pictures against a reference: what can be checked beforehand, and the verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hdit_cli.engine.scoring.one_pass import Breaks, Fed, OnProgress, collect
from hdit_cli.engine.scoring.picture_sets import PictureSet, StatisticsFile, Stored
from hdit_cli.engine.scoring.reconstructed import Reconstructed
from hdit_cli.engine.scoring.references import collect_reference
from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics import inception
from hdit_cli.metrics.feature_net import FeatureNet, facts, is_inception, serves
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.per_class import PerClassFID

_OF_ANY = "fd,kd,precision-recall,memorisation"
_FEW = 10_000  # below, scores at different n differ by more than models do


@dataclass(frozen=True)
class Score:
    """One metric's verdict; `value` means nothing without the two numbers of pictures.

    Attributes:
        n_reference: None where nobody knows it, or where there is no reference.
        better: "lower" or "higher"; None where neither is by itself.
        features: the feature net, where an evaluation has several and the metric needs one.
    """

    metric: str
    value: float
    n: int
    n_reference: int | None
    details: dict[str, Any] = field(default_factory=dict)
    better: str | None = "lower"
    features: dict[str, Any] | None = None


def net_words(features: Any) -> str:
    """What tells the scores of a feature net apart, from a line of a log; "" of the published Inception, or where it says none."""
    digest = features.get("sha256") if isinstance(features, dict) else None
    return "" if digest in (None, inception.SHA256) else f"{features.get('net')} {str(digest)[:8]}"


def check_net(metrics: Sequence[type[Metric]], net: FeatureNet) -> None:
    """Raises UsageError where a metric is not defined for the features of this net."""
    of_inception = [kind.name for kind in metrics if kind.needs == "inception"]
    if of_inception and not is_inception(net):
        raise UsageError(
            f"{','.join(of_inception)}: needs Inception's features by definition, and {net.path} is another net",
            hint=f"of any net are the metrics {_OF_ANY}",
        )
    if any(kind.needs == "spatial" for kind in metrics) and not net.spatial:
        raise UsageError(
            f"sfid: needs Inception's spatial features, and {net.path} gives none as it is run", hint="--features adm"
        )
    if any(kind.needs == "logits" for kind in metrics) and not net.classifier:
        raise UsageError(
            f"the Inception Score needs the net's classifier, and {net.path} has none", hint="leave is out of --metrics"
        )


def share_out(metrics: Sequence[type[Metric]], nets: Sequence[FeatureNet]) -> list[Fed]:
    """Which metrics each of the nets feeds: all that are defined for its features. Those of pixels go with the first.

    Raises:
        UsageError: a metric that no net can feed; of several nets, one without a metric, or one twice.
    """
    if len(nets) == 1:
        check_net(metrics, nets[0])
        return [Fed(metrics, nets[0])]
    names = ", ".join(dict.fromkeys(str(net.path) for net in nets))
    if len({(net.kind, net.sha256, net.resize) for net in nets}) < len(nets):
        raise UsageError(f"--features names one net twice: {names}", hint="each once")
    lacking = [kind.name for kind in metrics if kind.needs and not any(serves(net, kind.needs) for net in nets)]
    if lacking:
        adds = "adm" if "sfid" in lacking else "inception"
        raise UsageError(
            f"{','.join(lacking)}: needs Inception's features (is its classes, sfid those of a map); none of {names} gives them",
            hint=f"add {adds} to --features, or take --metrics {_OF_ANY}",
        )
    fed = [Fed([kind for kind in metrics if serves(net, kind.needs)], net) for net in nets]
    for each, net in zip(fed, nets, strict=True):
        if not each.metrics:
            wanted = ",".join(kind.name for kind in metrics)
            raise UsageError(
                f"--features names {net.path}, and none of the metrics {wanted} uses its features",
                hint=f"leave it out, or add some of --metrics {_OF_ANY}",
            )
    return [Fed([kind for kind in metrics if kind in fed[0].metrics or not kind.needs], nets[0]), *fed[1:]]


def check_counts(
    metrics: Sequence[type[Metric]],
    *,
    counts: Mapping[str, int],
    allow_small: bool,
    moments: StatisticsFile | None = None,
) -> list[str]:
    """Whether there are enough pictures, before any work is done.

    Args:
        counts: number of pictures by what they are called.
        moments: what metrics of moments compare with, whatever the number of the reference's pictures.

    Returns:
        what to know about a score of few pictures.

    Raises:
        DataError: too few for the definition of a metric, or for a score that means something.
    """
    notes = []
    for kind in metrics:
        alone = kind.alone or (moments is not None and moments.of(kind) is not None)
        known = {what: count for what, count in counts.items() if what == "pictures" or not alone}
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
        beyond = [kind.name for kind in metrics if not kind.alone and reference.of(kind) is None]
        if beyond == ["sfid"]:
            raise DataError(
                f"{reference.name} holds no mu_s and sigma_s, which sfid compares",
                hint="a reference file of guided-diffusion has them; or --reference a data set or folder",
            )
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
            f"{mixed.name} holds pictures of {mixed.sizes} sizes: {' and '.join(of_pixels)} {verb} equal sizes",
            hint="--metrics fid,kid, or a set of one size: `hdit prepare` makes one, without --buckets",
        )
    if of_pixels and pictures.size != reference.size:
        (h, w), (height, width) = pictures.size, reference.size
        raise DataError(
            f"{pictures.name} is {h}x{w}, {reference.name} {height}x{width} (height x width): "
            f"{' and '.join(of_pixels)} {verb} equal sizes",
            hint=f"`hdit prepare REFERENCE --size {h}x{w}`, or --metrics fid,kid",
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
    through_codec: dict[str, Metric] = field(default_factory=dict)


def collect_all(
    pictures: PictureSet,
    reference: Stored | StatisticsFile,
    fed: Sequence[Fed],
    *,
    on_progress: OnProgress,
    held_out: Stored | None = None,
    through_codec: Reconstructed | None = None,
    breaks: Breaks | None = None,
    kept: dict[Path, Metric] | None = None,
) -> list[States]:
    """The states of all sets, for each of `fed`; each set in one pass: the reference, the held-out pictures, then the pictures.

    Args:
        held_out: pictures that the model has not seen, for the memorisation check; None where there are none.
        through_codec: the reference as the model's codec reconstructs it; None for a model of pixels.
        breaks: how the passes may be broken off.
        kept: states of references in memory; see `collect_reference`.

    Raises:
        DataError: a picture cannot be read, or does not fit a metric.
        NonFiniteError: the model or the feature net gave NaN or infinity.
        Interrupted: asked to stop; what was done is kept where `breaks` says.
    """
    how: dict[str, Any] = {"on_progress": on_progress, "breaks": breaks}
    known = collect_reference(reference, fed, kept=kept, **how)
    beside: list[dict[str, Metric]] = [{} for _ in fed]
    remembering = [replace(each, metrics=[kind for kind in each.metrics if kind is Memorisation]) for each in fed]
    if held_out is not None and any(each.metrics for each in remembering):
        beside = collect_reference(held_out, remembering, part="held_out", kept=kept, **how)
    floor: list[dict[str, Metric]] = [{} for _ in fed]
    if through_codec is not None:
        to_floor = [replace(each, metrics=[kind for kind in each.metrics if kind is not Memorisation]) for each in fed]
        floor = collect_reference(through_codec, to_floor, part="through_codec", kept=kept, **how)
    return [States(*parts) for parts in zip(collect(pictures, fed, **how), known, beside, floor, strict=True)]


def verdicts(states: Sequence[States], fed: Sequence[Fed]) -> list[Score]:
    """The scores of each of `fed`, in the order of its metrics; on the first process only.

    Raises:
        DataError: the two sets do not fit together.
    """
    return [score for each, of in zip(fed, states, strict=True) for score in _verdicts(of, each, alone=len(fed) == 1)]


def _verdicts(states: States, fed: Fed, *, alone: bool) -> list[Score]:
    scores: list[Score] = []
    for kind in fed.metrics:
        ours = states.pictures[kind.name]
        theirs = ours if kind.alone else states.reference[kind.name]
        beside: dict[str, Any] = {"held_out": states.held_out.get(kind.name)} if kind is Memorisation else {}
        result = ours.score(theirs, **beside)
        count = None if kind.alone else theirs.count or None
        values = result.pop("values", None) or {kind.name: result.pop("value")}
        if (floor := states.through_codec.get(kind.name)) is not None and not kind.alone:
            found = floor.score(theirs)
            result["of_the_codec"] = found.get("values") or found["value"]
        net = None if alone or fed.net is None or not kind.needs else facts(fed.net)
        scores += [Score(name, value, ours.count, count, result, kind.better, net) for name, value in values.items()]
    return scores
