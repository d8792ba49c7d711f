"""From what was asked for to what is scored: a model or pictures, a reference, metrics, a feature net."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import catalog, files, runtime
from hdit_cli.data.shards import HELD_OUT
from hdit_cli.engine.load import is_checkpoint_folder, load
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import list_steps
from hdit_cli.engine.run.file_kind import SAMPLES, looked_at
from hdit_cli.engine.run.stop import StopRequest
from hdit_cli.engine.sampling.classes import Wanted
from hdit_cli.engine.sampling.collect import sampling_of
from hdit_cli.engine.sampling.generate import choose_labels
from hdit_cli.engine.sampling.grid import picture_png
from hdit_cli.engine.sampling.pace import PACE, paced
from hdit_cli.engine.scoring.affordable import Count
from hdit_cli.engine.scoring.picture_sets import (
    Generated,
    StatisticsFile,
    Stored,
    is_data_set,
    open_reference,
    open_stored,
)
from hdit_cli.errors import DataError, UsageError
from hdit_cli.metrics import feature_net, inception
from hdit_cli.metrics.feature_net import FeatureNet
from hdit_cli.metrics.metric import Metric
from hdit_cli.metrics.patch_grid import PatchGrid

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class Request:
    """What is to be scored, against what, and how.

    Attributes:
        source: checkpoint file, run folder, folder of pictures, or prepared data set.
        n: number of pictures; None is the recipe's `eval.n`, or all pictures of a folder.
        metrics: names; None is the recipe's `eval.metrics`, or fid and kid.
        features: feature nets, as `feature_net.split` reads them; the Inception net looks in the cache and downloads. None is
            the recipe's `eval.features`, or inception.
        reference: data set, folder or file of moments; None is the data that the checkpoint names.
        allow_small: score even where there are too few pictures for it to mean much.
        label: class name or number, several of them, "all", or None for the proportions of the data.
        sampling: fields of `Sampling` that differ from the recipe's.
        save: folder for the generated pictures.
        patch: (h, w) in pixels, for patch-grid; None is the patch of the model.
        grid: PNG of the memorisation check; None is `memorisation.png` in the run, if there is one.
        device: where model and feature nets compute; None chooses.
        codec: file of the codec of a model of latents; None looks for it beside the checkpoint.
    """

    source: Path
    n: int | None = None
    metrics: tuple[str, ...] | None = None
    features: str | None = None
    reference: Path | None = None
    allow_small: bool = False
    label: Wanted = None
    weights: str = "ema"
    sampling: dict[str, Any] = field(default_factory=dict)
    save: Path | None = None
    patch: tuple[int, int] | None = None
    grid: Path | None = None
    device: torch.device | None = None
    codec: Path | None = None


@dataclass
class Session:
    """What several evaluations share, so that it is read and computed once.

    Attributes:
        models: by source and weights.
        nets: feature nets as they were asked for.
        stored: data sets and folders, by what their pictures are cut to; their fingerprint is computed once.
        references: states of references by their place in the cache.
        stop: asked after each batch.
        count: of samples, where nobody said how many.
    """

    models: dict[tuple[Path, str], Model] = field(default_factory=dict)
    nets: dict[str, FeatureNet] = field(default_factory=dict)
    stored: dict[tuple[Path, Size | None], Stored | StatisticsFile] = field(default_factory=dict)
    references: dict[Path, Metric] = field(default_factory=dict)
    stop: StopRequest | None = None
    count: Count | None = None


def is_run(path: Path) -> bool:
    """Whether a folder is that of a training run."""
    return (path / "ckpt.safetensors").is_file() or (path / "recipe.toml").is_file() or bool(list_steps(path))


def metrics_of(names: Sequence[str], request: Request, model: Model | None) -> list[type[Metric]]:
    """The metrics by name, each once; patch-grid for the patch size asked for, or the model's."""
    kinds: list[type[Metric]] = [catalog.get("metric", name) for name in dict.fromkeys(names)]
    if PatchGrid not in kinds:
        if request.patch is not None:
            raise UsageError("--patch is for the metric patch-grid", hint="--metrics patch-grid, or leave it out")
        return kinds
    patch = request.patch or (model.seams if model else None)
    if patch is None:
        raise UsageError(
            f"patch-grid needs a patch size, and {request.source} is not a model that has one", hint="--patch 4"
        )
    return [PatchGrid.of(patch) if kind is PatchGrid else kind for kind in kinds]


def holds_pictures(source: Path) -> bool:
    """Whether pictures are there already, in a folder, a data set, or a file of samples."""
    if looked_at(source) is SAMPLES:
        return True
    return source.is_dir() and not is_checkpoint_folder(source) and (is_data_set(source) or not is_run(source))


def model_of(request: Request, session: Session) -> Model | None:
    """The model to sample from; None where the source is pictures."""
    source = request.source
    if holds_pictures(source):
        refuse_sampling(request, "holds pictures: nothing is sampled there")
        if request.reference is None:
            raise UsageError(f"{source} names no data to compare with", hint="--reference DIR: a data set, or a folder")
        return None
    key = (source, request.weights)
    if key not in session.models:
        session.models.clear()  # one at a time: they may be large
        session.models[key] = load(source, weights=request.weights, device=request.device, codec=request.codec)
    return session.models[key]


def refuse_sampling(request: Request, why: str) -> None:
    """Pictures that are there already, or that are given back, are not sampled: options that say how would do nothing."""
    wanted = {"class": request.label, "save": request.save, "codec": request.codec} | request.sampling
    unset: dict[str, Any] = {"seed": 0}
    if holds_pictures(request.source):
        wanted, unset = wanted | {"weights": request.weights}, unset | {"weights": "ema"}
    given = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value not in (None, unset.get(name))]
    if given:
        raise UsageError(f"{request.source} {why}", hint=f"leave out {', '.join(given)}")


def reference_of(
    request: Request, model: Model | None, session: Session, *, moments: bool
) -> tuple[Stored | StatisticsFile, list[str]]:
    """The pictures to compare with, and what is odd about them.

    Args:
        moments: whether moments do, for all that is asked.
    """
    if request.reference is not None:
        key = (request.reference, None)
        if key not in session.stored:
            session.stored[key] = open_reference(request.reference, moments=moments)
        return session.stored[key], []
    assert model is not None
    if not model.data_path:
        raise DataError("the checkpoint names no data to compare with", hint="--reference DIR: a data set, or a folder")
    path = Path(model.data_path)
    if not is_data_set(path):
        raise DataError(
            f"the data set that the checkpoint was trained on is not at {path}",
            hint="go to the folder where it was trained, or --reference DIR",
        )
    cut = model.image_size if model.recipe["data"].get("crop", "none") != "none" else None
    if (path, cut) not in session.stored:
        session.stored[path, cut] = open_stored(path, cut=cut)  # pictures, whatever a header calls the folder
    stored = session.stored[path, cut]
    notes = [f"the reference is the centre of each picture, {cut[0]}x{cut[1]}"] if cut else []
    trained_on = model.data.get("fingerprint")
    if trained_on and trained_on != stored.fingerprint:
        notes.append(f"{path} has changed since the checkpoint was trained on it")
    return stored, notes


def pictures_of(request: Request, model: Model) -> Generated:
    """The pictures that the model will make."""
    section = model.recipe["eval"]
    asked = {name: request.sampling.get(name) for name in PACE}
    wanted = {**request.sampling, "batch_size": asked["batch_size"] or section["batch_size"]}
    n = request.n or section["n"]
    sampling = paced(model, sampling_of(model, **wanted), images=n, **asked)
    if why := model.codec.pictures():
        raise UsageError(f"this model makes no pictures to score: {why}", hint="--codec FILE gives it its codec")
    labels = choose_labels(model, n=n, wanted=request.label, seed=sampling.seed)
    keep = None if request.save is None else _writer(request.save)
    return Generated(model, n, labels, sampling, keep=keep)


def prepare_folder(save: Path | None, *, goes_on: bool) -> None:
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


def open_net(
    named: str,
    *,
    on_download: Callable[[int, int], None] = lambda done, total: None,
    on: torch.device | None = None,
) -> FeatureNet:
    """The net; Inception is downloaded by the first process where nobody named a file and none is in the cache.

    Args:
        on: the device it computes on; None chooses.
    """
    kind, path = feature_net.parse(named)
    problem: DataError | None = None
    if kind == "inception" and path is None and runtime.ranks().is_main and inception.locate() is None:
        try:
            inception.download(progress=on_download)
        except DataError as error:
            problem = error
    problem = runtime.gather(problem)[0]  # every process hears of it: they go on, or end, together
    if problem is not None:
        raise problem
    device = on or runtime.device()
    # TorchScript on MPS lacks operators of Inception; the CPU takes all nets there
    return catalog.get("features", kind)(path, device=device if device.type == "cuda" else torch.device("cpu"))


def named_nets(request: Request, model: Model | None) -> list[str]:
    """The nets asked for, else the recipe's, else Inception, by name."""
    default = (model.recipe["eval"].get("features") if model else None) or "inception"
    return feature_net.split(request.features) if request.features else [default]


def open_nets(
    request: Request, model: Model | None, session: Session, *, on_download: Callable[[int, int], None]
) -> list[FeatureNet]:
    """The nets asked for, else the recipe's, else Inception.

    Raises:
        DataError: one is missing, or is no feature net.
    """
    wanted = named_nets(request, model)
    for each in wanted:
        if each in session.nets:
            continue
        try:
            session.nets[each] = open_net(each, on_download=on_download, on=request.device)
        except DataError as error:
            raise DataError(error.message, hint="; ".join([error.hint, *not_opened(request, model)])) from error
    return [session.nets[each] for each in wanted]


def not_opened(request: Request, model: Model | None) -> list[str]:
    """A sentence where the checkpoint names a feature net by its file, which only a user may: it might run."""
    if model is None or not model.left_out or request.features:
        return []
    return [
        f"the checkpoint asks for the feature net {model.left_out}, and a file that a checkpoint names is not opened, since "
        f"it may run: {model.recipe['eval']['features']} is taken; if you trust it, --features {shlex.quote(model.left_out)}"
    ]


def held_out_of(reference: Stored | StatisticsFile) -> tuple[Stored | None, list[str]]:
    """The pictures that the data set keeps out of training; a note where there are none."""
    inside = Path(reference.name) / HELD_OUT
    if is_data_set(inside):
        return open_stored(inside, cut=reference.cut if isinstance(reference, Stored) else None), []
    return None, [
        f"{reference.name} holds no held-out pictures to compare distances with; `hdit prepare --hold-out 0.05` makes some"
    ]
