"""What an evaluation is, before any picture is made: two sets of pictures, metrics, nets, and what is to be known of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from hdit_cli import files, runtime
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.classes import label_name
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.pace import PACE
from hdit_cli.engine.sampling.settings import notes as notes_on_guidance
from hdit_cli.engine.scoring.able import able
from hdit_cli.engine.scoring.affordable import Count, affordable
from hdit_cli.engine.scoring.one_pass import Fed, needs_net
from hdit_cli.engine.scoring.picture_sets import Generated, StatisticsFile, Stored, open_stored
from hdit_cli.engine.scoring.reconstructed import Reconstructed, Trained
from hdit_cli.engine.scoring.references import told_of
from hdit_cli.engine.scoring.request import (
    Request,
    Session,
    held_out_of,
    metrics_of,
    model_of,
    named_nets,
    not_opened,
    open_nets,
    pictures_of,
    reference_of,
    refuse_sampling,
)
from hdit_cli.engine.scoring.scores import check_counts, check_reference, share_out
from hdit_cli.errors import UsageError
from hdit_cli.metrics import feature_net
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.frechet import FID, SFID
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.per_class import PerClassFID
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.recipe.section import plain
from hdit_cli.tasks.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """An evaluation that was checked against all it needs, before any picture is made."""

    request: Request
    model: Model | None
    fed: list[Fed]
    pictures: Generated | Stored
    reference: Stored | StatisticsFile
    held_out: Stored | None
    notes: list[str]
    count: Count | None = None  # how many samples, where nobody said

    @property
    def nets(self) -> list[FeatureNet]:
        """The feature nets; none where no metric needs one."""
        return [each.net for each in self.fed if each.net is not None]

    @cached_property
    def through_codec(self) -> Reconstructed | None:
        """The reference as the codec of a model of latents reconstructs it: what a model of its very latents makes."""
        if self.model is None or not isinstance(self.model.latents, Frozen) or not isinstance(self.reference, Stored):
            return None
        times, sizes = self.model.latents.factor, self.reference.every_size
        fits = all(side % times == 0 for size in sizes for side in size)
        return Reconstructed(self.reference, self.model.latents) if fits else None

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the model's weights."""
        assert self.model is not None
        return digest(self.model)

    def told(self) -> dict[str, Any]:
        """A JSON value: all that the states of both sets depend on."""
        facts = facts_of(self)
        versions = {name: facts["environment"][name] for name in ("hdit", "torch", "numpy", "pillow", "device")}
        told = {
            "reference": self.reference.fingerprint,
            "cut": self.reference.cut if isinstance(self.reference, Stored) else None,
            "held_out": self.held_out and self.held_out.fingerprint,
            "metrics": [told_of(kind, each.net) for each in self.fed for kind in each.metrics],
            "save": None if self.request.save is None else str(files.real_path(self.request.save)),
            "versions": versions,
        }
        if isinstance(self.pictures, Stored):
            return {**told, "pictures": [self.pictures.fingerprint, self.pictures.count]}
        model, labels = self.pictures.model, self.pictures.labels
        asked = {name: self.request.sampling.get(name) for name in PACE}  # what was found depends on the free memory
        pictures = {
            "weights": self.weights,
            **({"codec": model.latents.fingerprint()} if model.latents is not None else {}),
            "recipe": [model.recipe["model"], model.recipe["diffusion"]],
            "sampling": {**_keyed(self.pictures.sampling), **asked},
            "labels": None if labels is None else files.sha256_of(labels.tobytes()),
            "n": self.pictures.count,
        }
        return {**told, "pictures": pictures}


def _keyed(sampling: Sampling) -> dict[str, Any]:
    """A sampling in what tells evaluations apart. One in float32 says no precision, as none did when all were so."""
    told = plain(sampling.told())
    if told["precision"] in ("auto", "fp32"):
        del told["precision"]
    return told


def _number(
    request: Request, model: Model, session: Session, on_note: Callable[[str], None]
) -> tuple[int, Count | None, list[str]]:
    """How many samples: what was asked for, else the recipe's number, on a CPU less where that takes too long."""
    whole = int(model.recipe["eval"]["n"])
    if request.n is not None or model.device.type != "cpu":
        return request.n or whole, None, []
    count = session.count
    if count is None:
        sampling = sampling_of(model, **request.sampling)
        options = [request.label, request.metrics, request.features, request.reference, request.save]
        count = affordable(model, sampling, most=whole, told=[digest(model), _keyed(sampling), *map(str, options)])
        session.count = replace(count, file=None)
        if count.note(whole):
            on_note(count.note(whole))
    note = count.note(whole)
    return min(count.n, whole), count, [note] if note else []


def plan(
    request: Request,
    session: Session,
    *,
    on_download: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Job:
    """Finds the two sets of pictures and the feature net, and checks what can be checked at once.

    Where nobody named metrics, those of the recipe that cannot be are left out, which a note says.

    Args:
        on_note: called with what should be known before the work begins.

    Raises:
        UsageError, DataError, CheckpointError: as `evaluate`.
    """
    model = model_of(request, session)
    names = request.metrics or (tuple(model.recipe["eval"]["metrics"]) if model else ("fid", "kid"))
    metrics = metrics_of(names, request, model)
    if SFID in metrics and not any(feature_net.parse(each)[0] == "adm" for each in named_nets(request, model)):
        raise UsageError(
            "sfid needs Inception's spatial features, which the usual net does not give", hint="--features adm"
        )
    moments = all(kind.alone or issubclass(kind, FID) for kind in metrics)
    reference, notes = reference_of(request, model, session, moments=moments)
    count = None
    pictures: Generated | Stored
    if model is not None and model.reconstructs:
        pictures = _given_back(request, model, reference)
    elif model is not None:
        number, count, more = _number(request, model, session, on_note)
        request, notes = replace(request, n=number), notes + more
        pictures = pictures_of(request, model)
    else:
        pictures = open_stored(request.source, n=request.n)
    notes += [note for each in (reference, pictures) if isinstance(each, Stored) for note in each.notes]
    notes += notes_on_guidance(pictures.model, pictures.sampling) if isinstance(pictures, Generated) else []
    if isinstance(pictures, Stored):
        known = reference.classes if isinstance(reference, Stored) and PerClassFID in metrics else []
        notes += pictures.name_classes(known)
    counts, beside = {"pictures": pictures.count}, None
    if isinstance(reference, Stored):
        counts["reference"], beside = reference.count, reference.moments
    if request.metrics is None:

        def check(kind: type[Metric]) -> None:
            check_counts([kind], counts=counts, allow_small=request.allow_small, moments=beside)
            check_reference([kind], pictures, reference)

        opened = partial(open_nets, request, model, session, on_download=on_download)
        if request.features and needs_net(metrics):
            opened()  # a net that was named is not passed over
        metrics, more = able(metrics, check=check, open_nets=opened)
        notes += more
    notes += check_counts(metrics, counts=counts, allow_small=request.allow_small, moments=beside)
    check_reference(metrics, pictures, reference)
    fed = [Fed(metrics)]
    if needs_net(metrics) or (request.features and len(feature_net.split(request.features)) > 1):
        fed = share_out(metrics, open_nets(request, model, session, on_download=on_download))
        notes += not_opened(request, model)
        notes += _notes_on([each.net for each in fed if each.net is not None], reference, metrics)
    if beside is not None and (of := [kind.name for kind in metrics if beside.of(kind)]):
        notes.append(
            f"{', '.join(of)}: against the moments in {reference.name}; all else against its {counts['reference']:,} pictures"
        )
    held_out = None
    if Memorisation in metrics:
        held_out, more = held_out_of(reference)
        notes += more
    return Job(request, model, fed, pictures, reference, held_out, notes, count)


def _given_back(request: Request, model: Model, reference: Stored | StatisticsFile) -> Reconstructed:
    """The reference as an autoencoder gives it back.

    Raises:
        UsageError: the reference has no pictures, or pictures that the autoencoder cannot be given; what is asked for is for models
            that make pictures.
    """
    refuse_sampling(request, "is an autoencoder: it gives pictures back and nothing is sampled")
    if not isinstance(reference, Stored):
        raise UsageError(
            f"{reference.name} holds no pictures that an autoencoder could give back",
            hint="--reference a data set or folder",
        )
    for height, width in reference.every_size:
        if why := model.network.fits(height, width):
            raise UsageError(
                f"the pictures of {reference.name}: {why}", hint="`hdit prepare` makes them of one size that fits"
            )
    name = f"{reference.name} through {request.source}"
    return Reconstructed(reference, Trained(model, digest(model)), name=name, n=request.n)


def digest(model: Model) -> str:
    """SHA-256 of a model's weights by name, wherever they came from."""
    told = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _notes_on(
    nets: Sequence[FeatureNet], reference: Stored | StatisticsFile, metrics: Sequence[type[Metric]]
) -> list[str]:
    """What to know of the nets.

    Raises:
        UsageError: moments of a single net for several.
    """
    notes = [
        f"{net.path} is not the published Inception file: compare only with scores made with the same file"
        for net in nets
        if not net.published
    ]
    moments = reference.moments if isinstance(reference, Stored) else reference
    if moments is not None and any(moments.of(kind) for kind in metrics):
        if len(nets) > 1:
            raise UsageError(
                f"{reference.name} holds the moments of one net's features, and --features names {len(nets)}",
                hint="--reference a data set or folder, or one net",
            )
        net = nets[0]
        notes.append(
            f"{reference.name} does not say which net and resize made it: a score against it means something only if they "
            f"are {net.kind} and {net.resize}, as here"
        )
    return notes


def facts_of(job: Job) -> dict[str, Any]:
    request, pictures, reference = job.request, job.pictures, job.reference
    nets = [feature_net.facts(net) for net in job.nets]
    stored = reference if isinstance(reference, Stored) else None
    facts: dict[str, Any] = {
        "source": str(request.source),
        "size": list(pictures.size),
        "reference": {
            "path": reference.name,
            "fingerprint": reference.fingerprint,
            "count": stored.count if stored else None,
            "size": list(stored.size) if stored else None,
        },
        "features": nets if len(nets) > 1 else nets[0] if nets else None,
    }
    for told, of in ((facts, pictures), (facts["reference"], reference)):
        if isinstance(of, Stored) and of.sizes > 1:
            told["sizes"] = [list(size) for size in of.every_size]
    if pictures.classes:
        facts["classes"] = list(pictures.classes)
    if isinstance(pictures, Generated):
        facts["sampling"] = {**plain(pictures.sampling.told()), "label": label_name(pictures.model, request.label)}
    if (model := job.model) is not None:
        facts["model"] = {"step": model.step, "images_seen": model.images_seen, "weights": model.weights}
        facts["model"] |= {"origin": model.origin, "sha256": job.weights}
        if model.latents is not None:
            facts["model"]["codec"] = model.latents.fingerprint()
    if isinstance(pictures, Stored):
        facts["fingerprint"] = pictures.fingerprint
    return {**facts, "processes": runtime.ranks().world, "environment": environment(request.device)}


def environment(on: torch.device | None = None) -> dict[str, str]:
    """Versions and hardware that a score was made with, on a device; None is the one that is chosen by itself."""
    versions = {name: runtime.version(name) or "unknown" for name in ("numpy", "pillow")}
    return {**runtime.environment(on), **versions}
