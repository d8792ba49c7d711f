"""Validation: the training loss on held-out pictures and on as many training pictures, the two curves that show overfitting.

Pictures, noise levels and noise are the same at every step, so that what changes between two lines is the weights alone.
The noise levels stand at the middles of equal shares of the training density: the mean over them estimates the training
loss. No augmentation, no dropped classes, no dropout; the precision is that of training.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hdit_cli import runtime
from hdit_cli.data.loader import to_x0
from hdit_cli.data.reader import ShardReader
from hdit_cli.data.shards import HELD_OUT, MANIFEST
from hdit_cli.data.stored import StoredReader
from hdit_cli.engine.model import Model, build_task
from hdit_cli.engine.sampling.watched import BrokenOff, Stop, check
from hdit_cli.engine.scoring.picture_sets import some_of
from hdit_cli.engine.training.setup import centred, check_sizes, stored_latents
from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe


def open_held_out(recipe: Recipe, training: ShardReader) -> ShardReader | None:
    """The set to validate on: the one that the recipe names, or the one inside the data set; None where there is none.

    Raises:
        DataError: it cannot be read.
        UsageError: it does not fit the training data, or is the training data.
    """
    section = recipe.validation
    inside = training.folder / HELD_OUT
    if not section.every or not (section.path or (inside / MANIFEST).is_file()):
        return None
    held_out = ShardReader(Path(section.path) if section.path else inside)
    held_out, training = centred(recipe, held_out), centred(recipe, training)
    if held_out.image_size != training.image_size:
        (h, w), (height, width) = held_out.image_size, training.image_size
        raise UsageError(
            f"the validation set {held_out.folder} holds {h}x{w} images, the training data {height}x{width}",
            hint=f"hdit prepare SRC --size {height}x{width}",
        )
    check_sizes(recipe, held_out)
    if recipe.model.classes and held_out.classes != training.classes:
        raise UsageError(
            f"the validation set {held_out.folder} has other classes than the training data",
            hint="`hdit prepare --hold-out 0.05` makes both from one source",
        )
    if held_out.fingerprint == training.fingerprint:
        raise UsageError(
            f"the validation set {held_out.folder} is the training data: that shows no overfitting",
            hint="`hdit prepare --hold-out 0.05` keeps pictures out of training",
        )
    return held_out


@dataclass(frozen=True)
class Split:
    """Pictures `chosen` (int64 (n,)) of a data set, and what the codec made of them where the set has no pictures."""

    name: str
    reader: ShardReader
    chosen: np.ndarray
    stored: StoredReader | None = None


def _stored(recipe: Recipe, reader: ShardReader) -> StoredReader | None:
    return None if reader.has_pictures else stored_latents(recipe, reader)


def splits_of(recipe: Recipe, *, training: ShardReader, held_out: ShardReader) -> list[Split]:
    """The pictures that a run is validated on: as many of each set, always the same ones."""
    n = min(recipe.validation.images, len(held_out))
    return [
        Split(name, reader, some_of(len(reader), min(n, len(reader))), _stored(recipe, reader))
        for name, reader in (("held-out", held_out), ("training", training))
    ]


class Validator:
    """Measures models on fixed pictures and fixed noise; several processes share the pictures.

    Args:
        recipe: validated and resolved.
        training, held_out: the two sets.
        batch_size: images of one forward pass.
        accelerator: gives device and precision.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        training: ShardReader,
        held_out: ShardReader,
        batch_size: int,
        accelerator: Accelerator,
    ) -> None:
        self.seed, self.batch_size, self.accelerator = recipe.train.seed, batch_size, accelerator
        section = recipe.validation
        self.sigmas = build_task(nn.Identity(), recipe).levels(section.levels)  # (levels,), ascending
        self.splits = splits_of(recipe, training=training, held_out=held_out)

    def lines(
        self,
        models: Mapping[str, Model],
        *,
        stop: Stop | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[dict[str, Any]]:
        """The losses of each model on each split, on every process.

        Args:
            models: by what their weights are called.
            stop: asked after each noise level.
            tell: called with (pictures done, pictures in all).

        Returns:
            for each model and split: weights, split, n, sigmas (ascending), loss and what else the task measures (mean at each
            sigma), mean (of the loss over all).

        Raises:
            BrokenOff: on every process, where one was asked to stop.
        """
        modes = {name: model.task.training for name, model in models.items()}
        for model in models.values():
            model.task.eval()
        total, tables = sum(len(split.chosen) for split in self.splits), {}
        try:
            for place, split in enumerate(self.splits):
                before = sum(len(earlier.chosen) for earlier in self.splits[:place])
                tables[split.name] = self._losses(
                    split, models, stop=stop, tell=partial(_further, tell, before=before, total=total)
                )
        finally:
            for name, model in models.items():
                model.task.train(modes[name])
        return [
            {
                "weights": name,
                "split": split.name,
                "n": len(split.chosen),
                "sigmas": self.sigmas.tolist(),
                **self._means(name, tables[split.name]),
                "mean": number(tables[split.name][name, "loss"].mean()),
            }
            for name in models
            for split in self.splits
        ]

    @staticmethod
    def _means(name: str, tables: Mapping[tuple[str, str], np.ndarray]) -> dict[str, list[float | None]]:
        """The mean over pictures at each noise level of all that is measured of a model."""
        own = {what: table.mean(0) for (model, what), table in tables.items() if model == name}
        return {what: [number(value) for value in means] for what, means in own.items()}

    def _losses(
        self, split: Split, models: Mapping[str, Model], *, stop: Stop | None, tell: Callable[[int], None]
    ) -> dict[tuple[str, str], np.ndarray]:
        """Per model and thing that is measured float64 (n, levels), put together from all processes."""
        here, done = runtime.ranks(), 0
        mine = np.arange(here.rank, len(split.chosen), here.world)
        shape = (len(split.chosen), len(self.sigmas))
        tables = {(name, what): np.zeros(shape) for name, model in models.items() for what in model.task.measures}
        broken_off = False
        try:
            for rows in of_one_size(mine, split.reader.bucket_numbers[split.chosen[mine]], most=self.batch_size):
                for key, values in self._batch(split, rows, models, stop=stop):
                    tables[key][rows] = values
                done += len(rows)
                tell(min(done * here.world, len(split.chosen)))
        except BrokenOff:
            broken_off = True
        parts = runtime.gather(None if broken_off else tables)
        if any(part is None for part in parts):
            raise BrokenOff
        return {key: sum((part[key] for part in parts), start=np.zeros_like(tables[key])) for key in tables}

    @torch.no_grad()
    def _batch(
        self, split: Split, rows: np.ndarray, models: Mapping[str, Model], *, stop: Stop | None
    ) -> Iterator[tuple[tuple[str, str], np.ndarray]]:
        """((name, what), float64 (N, levels)) of each model and each thing that its task measures."""
        chosen = split.chosen[rows]
        found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in models}
        first = next(iter(models.values()))
        x0 = self._x0(split, chosen, first)
        conditions = self._conditions(split, chosen, classes=first.network.classes, like=x0)
        for level, sigma in enumerate(self.sigmas.tolist()):
            check(stop)
            index = rows * len(self.sigmas) + level
            noise = first.task.noise(self.seed, "validation", index, like=x0)
            at = torch.full((len(rows),), sigma, dtype=first.dtype, device=x0.device)
            for name, model in models.items():
                with self.accelerator.autocast():
                    found[name].append(model.task.measured(x0, noise, at, conditions))
        for name, measured in found.items():
            for what in measured[0]:
                yield (name, what), torch.stack([each[what] for each in measured], 1).cpu().double().numpy()

    def _x0(self, split: Split, chosen: np.ndarray, model: Model) -> Tensor:
        """What the network sees of pictures; of latents that are stored without their pictures, the mean."""
        if split.stored is not None:
            found = split.stored.views(chosen, np.zeros(len(chosen), dtype=bool))
            latents: Any = model.latents
            if split.stored.facts.vocabulary:
                return latents.latent(torch.from_numpy(found[:, 0].astype(np.int64)).to(model.device), None)
            mean = torch.from_numpy(found).to(model.device).to(torch.promote_types(model.dtype, torch.float32))
            return latents.latent(mean, None).to(model.dtype)
        pixels = np.stack([split.reader.picture(int(number)) for number in chosen])  # NHWC
        return model.codec.encode(to_x0(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(model.device)).to(model.dtype))

    def _conditions(self, split: Split, chosen: np.ndarray, *, classes: int, like: Tensor) -> dict[str, Tensor]:
        if not classes:
            return {}
        label = split.reader.labels[chosen].astype(np.int64)
        label[label < 0] = classes
        return {"label": torch.from_numpy(label).to(like.device)}


def of_one_size(rows: np.ndarray, buckets: np.ndarray, *, most: int) -> Iterator[np.ndarray]:
    """Rows int64 (n,) in pieces of at most `most`, each of one bucket, which `buckets` (n,) tells."""
    for bucket in np.unique(buckets):
        here = rows[buckets == bucket]
        yield from np.split(here, range(most, len(here), most))


def _further(tell: Callable[[int, int], None], done: int, *, before: int, total: int) -> None:
    tell(before + done, total)


def number(value: float | np.floating[Any]) -> float | None:
    """A number as JSON knows it."""
    return float(value) if math.isfinite(value) else None
