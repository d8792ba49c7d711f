"""The grids of a run: the same noise and classes at every step, so that they can be laid over each other."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hdit_cli import files, runtime
from hdit_cli.engine.checkpoint import step_name
from hdit_cli.engine.classes import class_name
from hdit_cli.engine.events import Drawn
from hdit_cli.engine.generate import Sampling, choose_labels, stream
from hdit_cli.engine.grid import grid_png
from hdit_cli.engine.model import Model
from hdit_cli.engine.out_of_memory import in_drawing
from hdit_cli.errors import OutOfMemory
from hdit_cli.recipe import Recipe


def draw_grids(models: Mapping[str, Model], recipe: Recipe, *, folder: Path, step: int) -> list[Drawn]:
    """Writes `step-00001000-<name>.png` for each model, as `[sample]` says; every process makes its share of the pictures."""
    section, here = recipe.sample, runtime.ranks()
    sampling = Sampling(
        seed=recipe.train.seed,
        batch_size=section.batch_size,
        **{name: getattr(section, name) for name in ("steps", "sampler", "schedule", "eta", "rho", "cfg")},
    )
    drawn = []
    for name, model in models.items():
        training = model.denoiser.training
        model.denoiser.eval()
        wanted = "all" if model.network.classes else None
        labels = choose_labels(model, n=section.n, wanted=wanted, seed=sampling.seed)
        mine = range(here.rank, section.n, here.world)
        try:
            parts = {
                i: image
                for batch, images in stream(model, indices=mine, labels=labels, sampling=sampling)
                for i, image in zip(batch, images.numpy(), strict=True)
            }
        except OutOfMemory as error:
            raise in_drawing(recipe) from error
        model.denoiser.train(training)
        found = {i: image for part in runtime.gather(parts) for i, image in part.items()}
        path = folder / f"{step_name(step)}-{name}.png"
        if here.is_main:
            images = np.stack([found[i] for i in range(section.n)])
            names = None if labels is None else [class_name(model, int(label)) for label in labels]
            files.write_bytes(path, grid_png(images, labels=names, caption=f"step {step} · {name}"))
        drawn.append(Drawn(path))
    return drawn
