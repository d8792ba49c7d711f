"""What `hdit eval-fid` does: finds the two sets of pictures, checks what can be checked at once, then scores."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import catalog, files, runtime
from hdit_cli.data.shards import HELD_OUT
from hdit_cli.engine.checkpoint import list_steps
from hdit_cli.engine.collect import label_name, sampling_of
from hdit_cli.engine.generate import check, choose_labels
from hdit_cli.engine.grid import picture_png
from hdit_cli.engine.load import load
from hdit_cli.engine.model import Model
from hdit_cli.engine.picture_sets import (
    Generated,
    PictureSet,
    StatisticsFile,
    Stored,
    is_data_set,
    open_reference,
    open_stored,
)
from hdit_cli.engine.scores import OnProgress, Score, check_counts, check_net, check_reference, needs_net, score
from hdit_cli.errors import DataError, StorageError, UsageError
from hdit_cli.metrics import feature_net, inception
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.memorisation import Memorisation
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
        features: feature net, as `feature_net.parse` reads it; the Inception net looks in the cache and downloads.
        reference: data set, folder or file of moments; None is the data that the checkpoint names.
        allow_small: score even where there are too few pictures for it to mean much.
        label: class name, number, "all", or None for the proportions of the data.
        sampling: fields of `Sampling` that differ from the recipe's.
        save: folder for the generated pictures.
        patch: (h, w) in pixels, for patch-grid; None is the patch of the model.
    """

    source: Path
    n: int | None = None
    metrics: tuple[str, ...] | None = None
    features: str = "inception"
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


def evaluate(
    request: Request, *, on_progress: OnProgress, on_download: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation | None:
    """Scores what was asked for; several processes share the work.

    Args:
        on_progress: called with (what, pictures done, pictures in all).
        on_download: called with (bytes done, bytes in all) while the Inception weights arrive.

    Returns:
        the evaluation on the first process, None on the others.

    Raises:
        UsageError: an option that does not fit what is scored.
        DataError: pictures or weights are missing, damaged or too few.
        CheckpointError: not a checkpoint.
        NonFiniteError: the model or the feature net gave NaN or infinity.
    """
    model = _model(request)
    names = request.metrics or (tuple(model.recipe["eval"]["metrics"]) if model else ("fid", "kid"))
    metrics = _metrics(names, request, model)
    reference, notes = _reference(request, model)
    pictures = _generated(request, model) if model else open_stored(request.source, n=request.n)
    counts = {"pictures": pictures.count}
    if isinstance(reference, Stored):
        counts["reference"] = reference.count
    notes += check_counts(metrics, counts=counts, allow_small=request.allow_small)
    check_reference(metrics, pictures, reference)
    net = _feature_net(request.features, on_download=on_download) if needs_net(metrics) else None
    if net is not None:
        check_net(metrics, net)
        notes += _notes_on(net, reference)
    held_out, more = _held_out(reference) if Memorisation in metrics else (None, [])
    _prepare_folder(request.save)
    scores = score(pictures, reference, metrics, net=net, on_progress=on_progress, held_out=held_out)
    if not runtime.ranks().is_main:
        return None
    evaluation = Evaluation(scores, _facts(request, pictures, reference, net), notes + more + _notes_on_bias(scores))
    if model is not None:
        evaluation.notes.extend(_keep(evaluation, request.source))
    return evaluation


def _keep(evaluation: Evaluation, source: Path) -> list[str]:
    """Adds the scores to the log of the run that the checkpoint lies in; a note where that cannot be done.

    A line: step, weights, n, scores (metric => value), details (the numbers of pictures and the rest), sampling, reference,
    features, date (UTC).
    """
    place = source.absolute()
    run = next((folder for folder in (place, *list(place.parents)[:3]) if (folder / "recipe.toml").is_file()), None)
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


def _model(request: Request) -> Model | None:
    """The model to sample from; None where the source is pictures."""
    source = request.source
    if source.is_dir() and (is_data_set(source) or not is_run(source)):
        _refuse_sampling(request)
        if request.reference is None:
            raise UsageError(f"{source} names no data to compare with", hint="--reference DIR: a data set, or a folder")
        return None
    return load(source, weights=request.weights)


def _refuse_sampling(request: Request) -> None:
    """Pictures that are there already are not sampled: options that say how would do nothing."""
    wanted = {"class": request.label, "save": request.save, "weights": request.weights, **request.sampling}
    unset = {"weights": "ema", "seed": 0}
    given = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value not in (None, unset.get(name))]
    if given:
        raise UsageError(
            f"{request.source} is a folder of pictures: nothing is sampled there", hint=f"leave out {', '.join(given)}"
        )


def _reference(request: Request, model: Model | None) -> tuple[Stored | StatisticsFile, list[str]]:
    """The pictures to compare with, and what is odd about them."""
    if request.reference is not None:
        return open_reference(request.reference), []
    assert model is not None
    if not model.data_path:
        raise DataError("the checkpoint names no data to compare with", hint="--reference DIR: a data set, or a folder")
    path = Path(model.data_path)
    if not is_data_set(path):
        raise DataError(
            f"the data set that the checkpoint was trained on is not at {path}",
            hint="go to the folder where it was trained, or --reference DIR",
        )
    stored = open_stored(path)
    trained_on = model.data.get("fingerprint")
    if trained_on and trained_on != stored.fingerprint:
        return stored, [f"{path} has changed since the checkpoint was trained on it"]
    return stored, []


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


def _prepare_folder(save: Path | None) -> None:
    if save is None:
        return
    if runtime.ranks().is_main:
        if save.exists() and (not save.is_dir() or any(save.iterdir())):
            raise UsageError(f"{save} exists and is not an empty folder", hint="--save elsewhere")
        files.make_folder(save)
    runtime.wait_for_all()


def _writer(folder: Path) -> Callable[[list[int], list[np.ndarray]], None]:
    def keep(numbers: list[int], pictures: list[np.ndarray]) -> None:
        for number, picture in zip(numbers, pictures, strict=True):
            files.write_bytes(folder / f"{number:06d}.png", picture_png(picture))

    return keep


def _feature_net(named: str, *, on_download: Callable[[int, int], None]) -> FeatureNet:
    """The net; Inception is downloaded by the first process where nobody named a file and none is in the cache."""
    kind, path = feature_net.parse(named)
    if kind == "inception" and path is None and runtime.ranks().is_main and inception.locate() is None:
        inception.download(progress=on_download)
    runtime.wait_for_all()
    device = runtime.device()
    # TorchScript on MPS lacks operators of Inception; the CPU takes all nets there
    return catalog.get("features", kind)(path, device=device if device.type == "cuda" else torch.device("cpu"))


def _notes_on(net: FeatureNet, reference: Stored | StatisticsFile) -> list[str]:
    notes = []
    if not net.published:
        notes.append(
            f"{net.path} is not the published Inception file: compare only with scores made with the same file"
        )
    if isinstance(reference, StatisticsFile):
        notes.append(
            f"{reference.name} does not say which net and resize made it: a score against it means something only if they "
            f"are {net.kind} and {net.resize}, as here"
        )
    return notes


def _notes_on_bias(scores: list[Score]) -> list[str]:
    """What is owed to the number of pictures alone."""
    return [
        f"{score.metric.upper()} at n = {score.n:,}: {score.details['of_a_perfect_model']:.3g} of it is what a perfect model "
        "would get too, were features Gaussian: the bias of so many pictures"
        for score in scores
        if "of_a_perfect_model" in score.details
    ]


def _held_out(reference: Stored | StatisticsFile) -> tuple[Stored | None, list[str]]:
    """The pictures that the data set keeps out of training; a note where there are none."""
    inside = Path(reference.name) / HELD_OUT
    if is_data_set(inside):
        return open_stored(inside), []
    return None, [
        f"{reference.name} holds no held-out pictures to compare distances with; `hdit prepare --hold-out 0.05` makes some"
    ]


def _facts(
    request: Request, pictures: PictureSet, reference: Stored | StatisticsFile, net: FeatureNet | None
) -> dict[str, Any]:
    known = isinstance(reference, Stored)
    facts: dict[str, Any] = {
        "source": str(request.source),
        "size": list(pictures.size),
        "reference": {
            "path": reference.name,
            "fingerprint": reference.fingerprint,
            "count": reference.count if known else None,
            "size": list(reference.size) if known else None,
        },
        "features": None if net is None else feature_net.facts(net),
    }
    if pictures.classes:
        facts["classes"] = list(pictures.classes)
    if isinstance(pictures, Generated):
        model = pictures.model
        facts["sampling"] = {**asdict(pictures.sampling), "label": label_name(model, request.label)}
        facts["model"] = {"step": model.step, "images_seen": model.images_seen, "weights": model.weights}
        facts["model"]["origin"] = model.origin
    elif isinstance(pictures, Stored):
        facts["fingerprint"] = pictures.fingerprint
    return {**facts, "processes": runtime.ranks().world, "environment": runtime.environment()}
