"""What `hdit eval-fid` does: checks what can be checked at once, then scores; broken off, it goes on where it was."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hdit_cli import files, runtime
from hdit_cli.engine.classes import label_name
from hdit_cli.engine.collect import sampling_of
from hdit_cli.engine.model import Model
from hdit_cli.engine.nearest import draw_nearest
from hdit_cli.engine.one_pass import Breaks, Fed, OnProgress, needs_net
from hdit_cli.engine.pace import PACE
from hdit_cli.engine.picture_sets import Generated, StatisticsFile, Stored, open_stored
from hdit_cli.engine.references import told_of
from hdit_cli.engine.request import (
    Request,
    Session,
    held_out_of,
    metrics_of,
    model_of,
    not_opened,
    open_nets,
    pictures_of,
    prepare_folder,
    reference_of,
)
from hdit_cli.engine.run import run_of
from hdit_cli.engine.scores import Score, States, check_counts, check_reference, collect_all, share_out, verdicts
from hdit_cli.engine.settings import check_asked
from hdit_cli.engine.settings import notes as notes_on_guidance
from hdit_cli.engine.stop import StopRequest
from hdit_cli.engine.unfinished import Unfinished
from hdit_cli.errors import StorageError, UsageError
from hdit_cli.metrics import feature_net
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.frechet import FID
from hdit_cli.metrics.memorisation import Memorisation
from hdit_cli.metrics.per_class import PerClassFID

FORMAT = "hdit-scores/1"
SCORES = "scores.jsonl"  # in a run folder: a line for each evaluation of its checkpoints
NEAREST = "memorisation.png"


@dataclass(frozen=True)
class Evaluation:
    """Scores with all that they depend on.

    Attributes:
        facts: what was scored, against what, with which features, sampler, seed, software.
        notes: what to know when reading the scores.
    """

    scores: list[Score]
    facts: dict[str, Any]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "format": FORMAT,
            "scores": [_told(score) for score in self.scores],
            "notes": self.notes,
            **self.facts,
        }


def _told(score: Score) -> dict[str, Any]:
    told = asdict(score)
    return {name: value for name, value in told.items() if name != "features" or value}


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

    @property
    def nets(self) -> list[FeatureNet]:
        """The feature nets; none where no metric needs one."""
        return [each.net for each in self.fed if each.net is not None]

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the model's weights."""
        assert self.model is not None
        return digest(self.model)

    def told(self) -> dict[str, Any]:
        """A JSON value: all that the states of both sets depend on."""
        facts = _facts(self)
        versions = {name: facts["environment"][name] for name in ("hdit", "torch", "numpy", "pillow", "device")}
        told = {
            "reference": self.reference.fingerprint,
            "cut": self.reference.cut if isinstance(self.reference, Stored) else None,
            "held_out": self.held_out and self.held_out.fingerprint,
            "metrics": [told_of(kind, each.net) for each in self.fed for kind in each.metrics],
            "save": None if self.request.save is None else str(self.request.save.resolve()),
            "versions": versions,
        }
        if isinstance(self.pictures, Stored):
            return {**told, "pictures": [self.pictures.fingerprint, self.pictures.count]}
        model, labels = self.pictures.model, self.pictures.labels
        asked = {name: self.request.sampling.get(name) for name in PACE}  # what was found depends on the free memory
        pictures = {
            "weights": self.weights,
            "recipe": [model.recipe["model"], model.recipe["diffusion"]],
            "sampling": {**asdict(self.pictures.sampling), **asked},
            "labels": None if labels is None else files.sha256_of(labels.tobytes()),
            "n": self.pictures.count,
        }
        return {**told, "pictures": pictures}


def plan(
    request: Request, session: Session, *, on_download: Callable[[int, int], None] = lambda done, total: None
) -> Job:
    """Finds the two sets of pictures and the feature net, and checks what can be checked at once.

    Raises:
        UsageError, DataError, CheckpointError: as `evaluate`.
    """
    model = model_of(request, session)
    names = request.metrics or (tuple(model.recipe["eval"]["metrics"]) if model else ("fid", "kid"))
    metrics = metrics_of(names, request, model)
    moments = all(kind.alone or issubclass(kind, FID) for kind in metrics)
    reference, notes = reference_of(request, model, session, moments=moments)
    pictures = pictures_of(request, model) if model else open_stored(request.source, n=request.n)
    notes += [note for each in (reference, pictures) if isinstance(each, Stored) for note in each.notes]
    notes += notes_on_guidance(pictures.model, pictures.sampling) if isinstance(pictures, Generated) else []
    if isinstance(pictures, Stored):
        known = reference.classes if isinstance(reference, Stored) and PerClassFID in metrics else []
        notes += pictures.name_classes(known)
    counts = {"pictures": pictures.count}
    if isinstance(reference, Stored):
        counts["reference"] = reference.count
    notes += check_counts(metrics, counts=counts, allow_small=request.allow_small)
    check_reference(metrics, pictures, reference)
    fed = [Fed(metrics)]
    if needs_net(metrics) or (request.features and len(feature_net.split(request.features)) > 1):
        fed = share_out(metrics, open_nets(request, model, session, on_download=on_download))
        notes += not_opened(request, model)
        notes += _notes_on([each.net for each in fed if each.net is not None], reference)
    held_out = None
    if Memorisation in metrics:
        held_out, more = held_out_of(reference)
        notes += more
    return Job(request, model, fed, pictures, reference, held_out, notes)


def evaluate(
    request: Request,
    *,
    on_progress: OnProgress,
    on_download: Callable[[int, int], None] = lambda done, total: None,
    on_model: Callable[[Model], None] = lambda model: None,
    session: Session | None = None,
) -> Evaluation | None:
    """Scores what was asked for; several processes share the work.

    Args:
        on_progress: called with (what, pictures done, pictures in all).
        on_download: called with (bytes done, bytes in all) while the Inception weights arrive.
        on_model: called before anything is generated.
        session: what this evaluation shares with others; None nothing.

    Returns:
        the evaluation on the first process, None on the others.

    Raises:
        UsageError: an option that does not fit what is scored, or another process makes this very evaluation.
        DataError: pictures or weights are missing, damaged or too few.
        CheckpointError: not a checkpoint.
        NonFiniteError: the model or the feature net gave NaN or infinity.
        Interrupted: by a signal; what was done is kept, and the same request goes on.
    """
    session = session or Session()
    model = model_of(request, session)
    if model is not None:
        check_asked([sampling_of(model, **request.sampling)], request.sampling)
    job = plan(request, session, on_download=on_download)
    if job.model is not None:
        on_model(job.model)
    return run(job, session, on_progress=on_progress)


def run(job: Job, session: Session, *, on_progress: OnProgress) -> Evaluation | None:
    """Does the work of a job; see `evaluate`."""
    with ExitStack() as stack:
        unfinished: Unfinished | None = Unfinished(job.told())
        try:
            stack.enter_context(unfinished)
        except StorageError as error:
            job.notes.append(f"a break would have lost the work: {error.message}")
            unfinished = None
        prepare_folder(job.request.save, goes_on=unfinished is not None and unfinished.exists)
        stop = session.stop
        if stop is None and threading.current_thread() is threading.main_thread():  # only there signals can be caught
            stop = stack.enter_context(StopRequest(seconds=None))
        breaks = Breaks(stop, unfinished)
        states = collect_all(
            job.pictures,
            job.reference,
            job.fed,
            on_progress=on_progress,
            held_out=job.held_out,
            breaks=breaks,
            kept=session.references,
        )
        scores = verdicts(states, job.fed) if runtime.ranks().is_main else []
        if unfinished is not None:
            unfinished.remove()
    if not runtime.ranks().is_main:
        return None
    evaluation = Evaluation(scores, _facts(job), job.notes + _notes_on_bias(scores))
    _draw_nearest(job, evaluation, states)
    if job.model is not None:
        evaluation.notes.extend(_keep(evaluation, job.request.source))
    return evaluation


def _draw_nearest(job: Job, evaluation: Evaluation, states: Sequence[States]) -> None:
    """Draws the closest samples and their nearest training pictures, where there is a place for that.

    Of several nets, each has a picture with its name and the beginning of its SHA-256.
    """
    drawn = [(each.net, of) for each, of in zip(job.fed, states, strict=True) if Memorisation in each.metrics]
    if not drawn:
        return
    run = run_of(job.request.source) if job.model is not None else None
    path = job.request.grid or (run and run / NEAREST)
    if path is None:
        evaluation.notes.append("--grid FILE draws the closest samples beside their nearest training pictures")
        return
    files.make_folder(path.parent)
    places = []
    for net, of in drawn:
        assert net is not None
        place = path if len(job.fed) == 1 else path.with_stem(f"{path.stem}-{net.kind}-{net.sha256[:8]}")
        files.write_bytes(place, draw_nearest(job.pictures, job.reference, of))
        places.append(str(place))
    evaluation.facts["nearest"] = places[0] if len(job.fed) == 1 else places


def digest(model: Model) -> str:
    """SHA-256 of a model's weights by name, wherever they came from."""
    told = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _keep(evaluation: Evaluation, source: Path) -> list[str]:
    """Adds the scores to the log of the run that the checkpoint lies in; a note where that cannot be done.

    A line for each feature net: step, weights, n, scores (metric => value), details (the numbers of pictures and the rest),
    sampling, reference, features, environment (versions, hardware), date (UTC).
    """
    run = run_of(source)
    if run is None:
        return []
    facts = evaluation.facts
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    nets = facts["features"] if isinstance(facts["features"], list) else [facts["features"]]
    lines = []
    for net in nets:
        scores = [s for s in evaluation.scores if s.features == net or (s.features is None and net is nets[0])]
        line = {
            "step": facts["model"]["step"],
            "weights": facts["model"]["weights"],
            "n": max(score.n for score in scores),
            "scores": {score.metric: score.value for score in scores},
            "details": {s.metric: {"n": s.n, "n_reference": s.n_reference, **s.details} for s in scores},
            "sampling": facts["sampling"],
            "reference": facts["reference"],
            "features": net,
            "environment": facts["environment"],
            "date": date,
        }
        lines.append(json.dumps(line))
    try:
        for line in lines:
            files.append_line(run / SCORES, line)
    except (
        StorageError,
        UsageError,
    ) as error:  # the scores took long to make: they are printed, whatever becomes of the log
        return [f"the scores were not added to {run / SCORES}: {error.message}"]
    return []


def _notes_on(nets: Sequence[FeatureNet], reference: Stored | StatisticsFile) -> list[str]:
    """What to know of the nets.

    Raises:
        UsageError: moments of a single net for several.
    """
    notes = [
        f"{net.path} is not the published Inception file: compare only with scores made with the same file"
        for net in nets
        if not net.published
    ]
    if isinstance(reference, StatisticsFile):
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


def _notes_on_bias(scores: list[Score]) -> list[str]:
    """What is owed to the number of pictures alone."""
    notes = []
    for score in (each for each in scores if "of_a_perfect_model" in each.details):
        of = "" if score.features is None else f" of {score.features['file']}"
        notes.append(
            f"{score.metric.upper()}{of} at n = {score.n:,}: {score.details['of_a_perfect_model']:.3g} of it is what a perfect "
            "model would get too, were features Gaussian: the bias of so many pictures"
        )
    return notes


def _facts(job: Job) -> dict[str, Any]:
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
        model = pictures.model
        facts["sampling"] = {**asdict(pictures.sampling), "label": label_name(model, request.label)}
        facts["model"] = {"step": model.step, "images_seen": model.images_seen, "weights": model.weights}
        facts["model"] |= {"origin": model.origin, "sha256": job.weights}
    else:
        facts["fingerprint"] = pictures.fingerprint
    return {**facts, "processes": runtime.ranks().world, "environment": environment(request.device)}


def environment(on: torch.device | None = None) -> dict[str, str]:
    """Versions and hardware that a score was made with, on a device; None is the one that is chosen by itself."""
    versions = {name: runtime.version(name) or "unknown" for name in ("numpy", "pillow")}
    return {**runtime.environment(on), **versions}
