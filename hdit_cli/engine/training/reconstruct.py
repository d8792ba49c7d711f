"""How a run of an autoencoder is watched: pictures beside their reconstructions, and numbers of both on held-out pictures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hdit_cli import files, runtime
from hdit_cli.data.loader import to_x0
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import step_name
from hdit_cli.engine.run.events import Drawn, Working
from hdit_cli.engine.sampling.generate import to_uint8
from hdit_cli.engine.sampling.grid import grid_png
from hdit_cli.engine.sampling.watched import BrokenOff, Stop, check
from hdit_cli.engine.scoring.picture_sets import some_of
from hdit_cli.engine.training.validate import Split, number, of_one_size, splits_of
from hdit_cli.metrics.sliced import PATCH, SWD
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.reconstruction import l1, psnr

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # x0 => picture, latent, detail


class Reconstructions:
    """Measures autoencoders on fixed pictures, their latents at the mean; several processes share the pictures.

    Args:
        recipe: validated and resolved.
        training, held_out: the two sets.
        batch_size: images of one forward pass.
        accelerator: gives device and precision.
    """

    def __init__(
        self, recipe: Recipe, *, training: ShardReader, held_out: ShardReader, batch_size: int, accelerator: Accelerator
    ) -> None:
        self.batch_size, self.accelerator = batch_size, accelerator
        self.splits = splits_of(recipe, training=training, held_out=held_out)

    def lines(
        self,
        models: Mapping[str, Model],
        *,
        stop: Stop | None = None,
        tell: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[dict[str, Any]]:
        """The numbers of each model on each split, on every process.

        Args:
            models: by what their weights are called.
            stop: asked after each batch.
            tell: called with (pictures done, pictures in all).

        Returns:
            for each model and split: weights, split, n; mean (L1 of a value of a picture); psnr in dB; swd of reconstructions to
            their pictures, where they are of one size; of a Gaussian latent_mean, latent_std and posterior_std of each channel and
            active (channels whose mean moves by more than 0.1), of codes perplexity and codes_used.

        Raises:
            BrokenOff: on every process, where one was asked to stop.
        """
        total, done, found = sum(len(split.chosen) for split in self.splits) * len(models), 0, []
        for name, model in models.items():
            training = model.task.training
            model.task.eval()
            try:
                for split in self.splits:
                    measured = self._measured(split, model, stop=stop, tell=partial(_further, tell, done, total))
                    found.append(
                        {
                            "weights": name,
                            "split": split.name,
                            "n": len(split.chosen),
                            "sigmas": [],
                            "loss": [],
                            **measured,
                        }
                    )
                    done += len(split.chosen)
            finally:
                model.task.train(training)
        return found

    def _measured(
        self, split: Split, model: Model, *, stop: Stop | None, tell: Callable[[int], None]
    ) -> dict[str, Any]:
        here, done, of_each, latents = runtime.ranks(), 0, {}, _Latents(model)
        swd = (SWD(), SWD()) if len(set(split.reader.sizes)) == 1 and min(split.reader.image_size) >= PATCH else None
        mine = np.arange(here.rank, len(split.chosen), here.world)
        broken_off = False
        try:
            for rows in of_one_size(mine, split.reader.bucket_numbers[split.chosen[mine]], most=self.batch_size):
                check(stop)
                pixels = pixels_of(split, rows)
                with torch.no_grad(), self.accelerator.autocast():
                    x0 = to_x0(pixels.to(model.device)).to(model.dtype)
                    way = model.network.through(x0, None)
                latents.add(way.latent, way.detail)
                made = way.picture.to(x0.dtype)
                pairs = zip(rows.tolist(), l1(made - x0).tolist(), psnr(x0, made).tolist(), strict=True)
                of_each |= {row: (error, decibels) for row, error, decibels in pairs}
                if swd is not None:
                    for metric, pictures in zip(swd, (to_uint8(x0), to_uint8(made)), strict=True):
                        metric.update(rows.tolist(), pictures.numpy())
                done += len(rows)
                tell(min(done * here.world, len(split.chosen)))
        except BrokenOff:
            broken_off = True
        share = None if broken_off else (of_each, latents.sums(), swd and tuple(metric.arrays() for metric in swd))
        parts = runtime.gather(share)
        if any(part is None for part in parts):
            raise BrokenOff
        each = {row: pair for part in parts for row, pair in part[0].items()}
        values = np.array([each[row] for row in range(len(split.chosen))])
        told: dict[str, Any] = {"mean": number(values[:, 0].mean()), "psnr": number(values[:, 1].mean())}
        if swd is not None:
            pictures, made = (SWD.merged([part[2][i] for part in parts]) for i in (0, 1))
            told["swd"] = number(made.score(pictures)["value"])
        return told | latents.told([part[1] for part in parts])


class _Latents:
    """Sums over latents: of each channel, or of each code."""

    def __init__(self, model: Model) -> None:
        self.gaussian = model.network.gaussian
        if self.gaussian:
            self.values = np.zeros((4, model.network.latents))  # number, sum and sum of squares of means, sum of stds
        else:
            self.values = np.zeros(len(model.network.codebook))

    def add(self, latent: Tensor, detail: Tensor) -> None:
        if self.gaussian:
            mean, std = latent.double(), detail.double()
            count = torch.full((mean.shape[1],), mean[:, 0].numel(), dtype=torch.float64, device=mean.device)
            rows = [count, mean.sum((0, 2, 3)), mean.square().sum((0, 2, 3)), std.sum((0, 2, 3))]
            self.values += torch.stack(rows).cpu().numpy()
        else:
            self.values += np.bincount(detail.flatten().cpu().numpy(), minlength=len(self.values))

    def sums(self) -> np.ndarray:
        return self.values

    def told(self, parts: Sequence[np.ndarray]) -> dict[str, Any]:
        total = np.sum(parts, axis=0)
        if self.gaussian:
            count, first, second, std = total
            mean = first / count
            deviation = np.sqrt(np.maximum(second / count - mean**2, 0))
            lists = {"latent_mean": mean, "latent_std": deviation, "posterior_std": std / count}
            return {name: [number(value) for value in values] for name, values in lists.items()} | {
                "active": int((deviation > 0.1).sum())
            }
        p = total[total > 0] / total.sum()
        return {"perplexity": number(np.exp(-(p * np.log(p)).sum())), "codes_used": float((total > 0).mean())}


def pixels_of(split: Split, rows: np.ndarray) -> Tensor:  # => uint8 (N, 3, H, W)
    """Pictures of a split by their number in it."""
    pixels = np.stack([split.reader.picture(int(each)) for each in split.chosen[rows]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _further(tell: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    tell(before + done, total)


def draw_reconstructions(
    models: Mapping[str, Model],
    recipe: Recipe,
    *,
    reader: ShardReader,
    folder: Path,
    step: int,
    n: int,
    stop: Stop | None = None,
    tell: Callable[[Working], None] = lambda working: None,
) -> Iterator[Drawn]:
    """Writes `step-00001000-<name>.png` for each model: pictures, the same at every step, each beside what came back of it.

    Args:
        reader: the pictures; those of the first one's size are shown.
        n: pictures of the grid, every other one a reconstruction.
        stop: asked between batches.

    Raises:
        BrokenOff: on every process, where one was asked to stop.
    """
    alike = np.flatnonzero(reader.bucket_numbers == reader.bucket_numbers[0])
    shown = max(1, min(n // 2, len(alike)))
    split, here = Split("shown", reader, alike[some_of(len(alike), shown)]), runtime.ranks()
    for name, model in models.items():
        training = model.task.training
        model.task.eval()
        broken_off, pairs = False, []
        try:
            for start in range(0, shown, recipe.sample.batch_size):
                check(stop)
                x0 = to_x0(pixels_of(split, np.arange(start, min(shown, start + recipe.sample.batch_size))))
                with torch.no_grad():
                    made = model.network.through(x0.to(model.device).to(model.dtype), None).picture
                pairs.append(torch.stack([to_uint8(x0), to_uint8(made)], 1).flatten(0, 1).numpy())
                tell(Working(f"drawing step {step} {name}", min(shown, start + len(x0)), shown, "image"))
        except BrokenOff:
            broken_off = True
        finally:
            model.task.train(training)
        if any(runtime.gather(broken_off)):
            raise BrokenOff
        path = folder / f"{step_name(step)}-{name}.png"
        if here.is_main:
            caption = f"step {step} · {name} · each picture, and its reconstruction beside it"
            columns = 2 * max(1, round((shown / 2) ** 0.5))
            files.write_bytes(path, grid_png(np.concatenate(pairs), columns=columns, caption=caption))
        yield Drawn(path)
