"""What `hdit eval-fid` does: finds the two sets of pictures, checks what can be checked at once, then scores."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import catalog, files, runtime
from hdit_cli.engine.checkpoint import list_steps
from hdit_cli.engine.collect import label_name, sampling_of
from hdit_cli.engine.generate import check, choose_labels
from hdit_cli.engine.grid import picture_png
from hdit_cli.engine.load import is_checkpoint_folder, load
from hdit_cli.engine.model import Model
from hdit_cli.engine.picture_sets import Generated, Stored, is_data_set, open_stored
from hdit_cli.engine.run import run_of
from hdit_cli.engine.scores import (
    Breaks,
    OnProgress,
    Score,
    check_counts,
    check_sizes,
    needs_inception,
    score,
    told_of,
)
from hdit_cli.engine.stop import StopRequest
from hdit_cli.engine.unfinished import Unfinished
from hdit_cli.errors import DataError, StorageError, UsageError
from hdit_cli.metrics import inception
from hdit_cli.metrics.inception import RESIZE, Inception
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.patch_grid import PatchGrid

FORMAT = "hdit-scores/1"
SCORES = "scores.jsonl"  # in a run folder: a line for each evaluation of its checkpoints


@dataclass(frozen=True)
class Request:
    """What is to be scored, against what, and how.

    Attributes:
        source: checkpoint file, run folder, folder of pictures, or prepared data set.
        n: number of pictures; None is the recipe's `eval.n`, or all pictures of a folder.
        metrics: names; None is the recipe's `eval.metrics`, or fid and kid.
        inception: weights file; None looks in the cache and downloads.
        reference: data set or folder; None is the data that the checkpoint names.
        allow_small: score even where there are too few pictures for it to mean much.
        label: class name, number, "all", or None for the proportions of the data.
        sampling: fields of `Sampling` that differ from the recipe's.
        save: folder for the generated pictures.
        patch: (h, w) in pixels, for patch-grid; None is the patch of the model.
    """

    source: Path
    n: int | None = None
    metrics: tuple[str, ...] | None = None
    inception: Path | None = None
    reference: Path | None = None
    allow_small: bool = False
    label: str | None = None
    weights: str = "ema"
    sampling: dict[str, Any] = field(default_factory=dict)
    save: Path | None = None
    patch: tuple[int, int] | None = None


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
            "scores": [asdict(score) for score in self.scores],
            "notes": self.notes,
            **self.facts,
        }


def is_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (path / "ckpt.safetensors").is_file() or (path / "recipe.toml").is_file() or bool(list_steps(path))


@dataclass
class Session:
    """What several evaluations share, so that it is read and computed once.

    Attributes:
        models: by source and weights.
        nets: feature nets by the file asked for.
        stored: data sets and folders; their fingerprint is computed once.
        references: states of references by their place in the cache.
        stop: asked after each batch.
    """

    models: dict[tuple[Path, str], Model] = field(default_factory=dict)
    nets: dict[Path | None, Inception] = field(default_factory=dict)
    stored: dict[Path, Stored] = field(default_factory=dict)
    references: dict[Path, Metric] = field(default_factory=dict)
    stop: StopRequest | None = None


@dataclass(frozen=True)
class Job:
    """An evaluation that was checked against all it needs, before any picture is made."""

    request: Request
    model: Model | None
    metrics: list[type[Metric]]
    pictures: Generated | Stored
    reference: Stored
    net: Inception | None
    notes: list[str]

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
            "reference": [self.reference.fingerprint, self.reference.count],
            "metrics": [told_of(kind, self.net) for kind in self.metrics],
            "save": None if self.request.save is None else str(self.request.save.resolve()),
            "versions": versions,
        }
        if isinstance(self.pictures, Stored):
            return {**told, "pictures": [self.pictures.fingerprint, self.pictures.count]}
        model, labels = self.pictures.model, self.pictures.labels
        pictures = {
            "weights": self.weights,
            "recipe": [model.recipe["model"], model.recipe["diffusion"]],
            "sampling": asdict(self.pictures.sampling),
            "labels": None if labels is None else files.sha256_of(labels.numpy().tobytes()),
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
    metrics = _metrics(names, request, model)
    reference, notes = _reference(request, model, session)
    pictures = _generated(request, model) if model else open_stored(request.source, n=request.n)
    counts = {"pictures": pictures.count, "reference": reference.count}
    notes += check_counts(metrics, counts=counts, allow_small=request.allow_small)
    check_sizes(metrics, pictures, reference)
    net = None
    if needs_inception(metrics):
        if request.inception not in session.nets:
            session.nets[request.inception] = feature_net(request.inception, on_download=on_download)
        net = session.nets[request.inception]
        if not net.published:
            notes.append(
                f"{net.path} is not the published Inception file: compare only with scores made with the same file"
            )
    return Job(request, model, metrics, pictures, reference, net, notes)


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
        _prepare_folder(job.request.save, goes_on=unfinished is not None and unfinished.exists)
        stop = session.stop
        if stop is None and threading.current_thread() is threading.main_thread():  # only there signals can be caught
            stop = stack.enter_context(StopRequest(seconds=None))
        breaks = Breaks(stop, unfinished)
        scores = score(
            job.pictures,
            job.reference,
            job.metrics,
            net=job.net,
            on_progress=on_progress,
            breaks=breaks,
            kept=session.references,
        )
        if unfinished is not None:
            unfinished.remove()
    if not runtime.ranks().is_main:
        return None
    evaluation = Evaluation(scores, _facts(job), job.notes)
    if job.model is not None:
        evaluation.notes.extend(_keep(evaluation, job.request.source))
    return evaluation


def digest(model: Model) -> str:
    """SHA-256 of a model's weights by name, wherever they came from."""
    told = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        told.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


def _keep(evaluation: Evaluation, source: Path) -> list[str]:
    """Adds the scores to the log of the run that the checkpoint lies in; a note where that cannot be done.

    A line: step, weights, n, scores (metric => value), details (the numbers of pictures and the rest), sampling, reference,
    features, environment (versions, hardware), date (UTC).
    """
    run = run_of(source)
    if run is None:
        return []
    facts = evaluation.facts
    line = {
        "step": facts["model"]["step"],
        "weights": facts["model"]["weights"],
        "n": max(score.n for score in evaluation.scores),
        "scores": {score.metric: score.value for score in evaluation.scores},
        "details": {s.metric: {"n": s.n, "n_reference": s.n_reference, **s.details} for s in evaluation.scores},
        "sampling": facts["sampling"],
        "reference": facts["reference"],
        "features": facts["features"],
        "environment": facts["environment"],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        files.append_line(run / SCORES, json.dumps(line))
    except StorageError as error:  # the scores took long to make: they are printed, whatever becomes of the log
        return [f"the scores were not added to {run / SCORES}: {error.message}"]
    return []


def _metrics(names: Sequence[str], request: Request, model: Model | None) -> list[type[Metric]]:
    """The metrics by name, each once; patch-grid for the patch size asked for, or the model's."""
    kinds: list[type[Metric]] = [catalog.get("metric", name) for name in dict.fromkeys(names)]
    if PatchGrid not in kinds:
        if request.patch is not None:
            raise UsageError("--patch is for the metric patch-grid", hint="--metrics patch-grid, or leave it out")
        return kinds
    patch = request.patch or (model.network.patch if model else None)
    if patch is None:
        raise UsageError(
            f"patch-grid needs a patch size, and {request.source} is no model that would tell it", hint="--patch 4"
        )
    return [PatchGrid.of(patch) if kind is PatchGrid else kind for kind in kinds]


def model_of(request: Request, session: Session) -> Model | None:
    """The model to sample from; None where the source is pictures."""
    source = request.source
    if source.is_dir() and not is_checkpoint_folder(source) and (is_data_set(source) or not is_run(source)):
        _refuse_sampling(request)
        if request.reference is None:
            raise UsageError(f"{source} names no data to compare with", hint="--reference DIR: a data set, or a folder")
        return None
    key = (source, request.weights)
    if key not in session.models:
        session.models.clear()  # one at a time: they may be large
        session.models[key] = load(source, weights=request.weights)
    return session.models[key]


def _refuse_sampling(request: Request) -> None:
    """Pictures that are there already are not sampled: options that say how would do nothing."""
    wanted = {"class": request.label, "save": request.save, "weights": request.weights, **request.sampling}
    unset = {"weights": "ema", "seed": 0}
    given = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value not in (None, unset.get(name))]
    if given:
        raise UsageError(
            f"{request.source} is a folder of pictures: nothing is sampled there", hint=f"leave out {', '.join(given)}"
        )


def _reference(request: Request, model: Model | None, session: Session) -> tuple[Stored, list[str]]:
    """The pictures to compare with, and what is odd about them."""
    if request.reference is not None:
        return _opened(request.reference, session), []
    assert model is not None
    if not model.data_path:
        raise DataError("the checkpoint names no data to compare with", hint="--reference DIR: a data set, or a folder")
    path = Path(model.data_path)
    if not is_data_set(path):
        raise DataError(
            f"the data set that the checkpoint was trained on is not at {path}",
            hint="go to the folder where it was trained, or --reference DIR",
        )
    stored = _opened(path, session)
    trained_on = model.data.get("fingerprint")
    if trained_on and trained_on != stored.fingerprint:
        return stored, [f"{path} has changed since the checkpoint was trained on it"]
    return stored, []


def _opened(path: Path, session: Session) -> Stored:
    if path not in session.stored:
        session.stored[path] = open_stored(path)
    return session.stored[path]


def _generated(request: Request, model: Model) -> Generated:
    """The pictures that the model will make."""
    section = model.recipe["eval"]
    sampling = sampling_of(model, **{"batch_size": section["batch_size"], **request.sampling})
    check(model, sampling)
    if model.channels not in (1, 3):
        raise UsageError(f"the model makes pictures of {model.channels} channels", hint="scores need 1 or 3")
    n = request.n or section["n"]
    labels = choose_labels(model, n=n, wanted=request.label, seed=sampling.seed)
    keep = None if request.save is None else _writer(request.save)
    return Generated(model, n, labels, sampling, keep=keep)


def _prepare_folder(save: Path | None, *, goes_on: bool) -> None:
    if save is None:
        return
    if runtime.ranks().is_main and not goes_on:
        if save.exists() and (not save.is_dir() or any(save.iterdir())):
            raise UsageError(f"{save} exists and is not an empty folder", hint="--save elsewhere")
        files.make_folder(save)
    runtime.wait_for_all()


def _writer(folder: Path) -> Callable[[list[int], list[np.ndarray]], None]:
    def keep(numbers: list[int], pictures: list[np.ndarray]) -> None:
        for number, picture in zip(numbers, pictures, strict=True):
            files.write_bytes(folder / f"{number:06d}.png", picture_png(picture))

    return keep


def feature_net(path: Path | None, *, on_download: Callable[[int, int], None]) -> Inception:
    """The net, its weights downloaded by the first process where nobody named a file and none is in the cache."""
    if path is None and runtime.ranks().is_main and inception.locate() is None:
        inception.download(progress=on_download)
    runtime.wait_for_all()
    device = runtime.device()
    # TorchScript on MPS lacks operators of this net; the CPU takes it there
    return Inception(path, device=device if device.type == "cuda" else torch.device("cpu"))


def _facts(job: Job) -> dict[str, Any]:
    request, pictures, reference, net = job.request, job.pictures, job.reference, job.net
    facts: dict[str, Any] = {
        "source": str(request.source),
        "size": list(pictures.size),
        "reference": {
            "path": reference.name,
            "fingerprint": reference.fingerprint,
            "count": reference.count,
            "size": list(reference.size),
        },
        "features": told_features(net),
    }
    if isinstance(pictures, Generated):
        model = pictures.model
        facts["sampling"] = {**asdict(pictures.sampling), "label": label_name(model, request.label)}
        facts["model"] = {"step": model.step, "images_seen": model.images_seen, "weights": model.weights}
        facts["model"] |= {"origin": model.origin, "sha256": job.weights}
    else:
        facts["fingerprint"] = pictures.fingerprint
    return {**facts, "processes": runtime.ranks().world, "environment": environment()}


def told_features(net: Inception | None) -> dict[str, Any] | None:
    """What a score says of the net that its features come from."""
    if net is None:
        return None
    return {"file": str(net.path), "sha256": net.sha256, "published": net.published, "resize": RESIZE}


def environment() -> dict[str, str]:
    """Versions and hardware that a score was made with."""
    versions = {name: runtime.version(name) or "unknown" for name in ("numpy", "pillow")}
    return {**runtime.environment(), **versions}
