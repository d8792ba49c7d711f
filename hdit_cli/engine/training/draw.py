"""The grids of a run: the same noise and classes at every step, so that they can be laid over each other."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from hdit_cli import files, runtime
from hdit_cli.engine.memory.out_of_memory import in_drawing
from hdit_cli.engine.model import Model
from hdit_cli.engine.run.checkpoint import step_name
from hdit_cli.engine.run.events import Drawn, Working
from hdit_cli.engine.sampling.classes import class_name
from hdit_cli.engine.sampling.generate import choose_labels, stream
from hdit_cli.engine.sampling.grid import grid_png
from hdit_cli.engine.sampling.watched import BrokenOff, Stop, Watched, check
from hdit_cli.errors import OutOfMemory
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.sampling import Sampling, of_section

Tell = Callable[[Working], None]


def draw_grids(
    models: Mapping[str, Model],
    recipe: Recipe,
    *,
    folder: Path,
    step: int,
    n: int | None = None,
    stop: Stop | None = None,
    tell: Tell = lambda working: None,
) -> Iterator[Drawn]:
    """Writes `step-00001000-<name>.png` for each model, as `[sample]` says; every process makes its share of the pictures.

    Yields:
        each grid once it is written.

    Args:
        n: only the first n of the pictures; None draws all.
        stop: asked between two steps of the sampler.
        tell: hears how far each grid is.

    Raises:
        BrokenOff: on every process, where one was asked to stop.
    """
    section, here = recipe.sample, runtime.ranks()
    shown = section.n if n is None else min(n, section.n)
    sampling = Sampling(
        seed=recipe.train.seed,
        batch_size=section.batch_size,
        cfg_channels=recipe.task.cfg_channels,
        **of_section(recipe.sample.model_dump()),
    )
    for name, model in models.items():
        training = model.task.training
        model.task.eval()
        wanted = "all" if model.network.classes else None
        labels = choose_labels(model, n=section.n, wanted=wanted, seed=sampling.seed)
        mine = range(here.rank, shown, here.world)
        watched = Watched(
            images=len(mine),
            batch_size=sampling.batch_size,
            steps=model.task.steps(sampling),
            stop=stop,
            tell=partial(_tell, tell, what=f"drawing step {step} {name}", world=here.world, total=shown),
        )
        parts: dict[int, np.ndarray] | None = None
        try:
            check(stop)
            parts = {
                i: image
                for batch, images in stream(model, indices=mine, labels=labels, sampling=sampling, on_step=watched)
                for i, image in zip(batch, images.numpy(), strict=True)
            }
        except OutOfMemory as error:
            raise in_drawing(recipe) from error
        except BrokenOff:
            pass  # told to the other processes below: each must hear of it
        finally:
            model.task.train(training)
        shares = runtime.gather(parts)
        if any(share is None for share in shares):
            raise BrokenOff
        found = {i: image for share in shares for i, image in share.items()}
        path = folder / f"{step_name(step)}-{name}.png"
        if here.is_main:
            pictures = np.stack([found[i] for i in range(shown)])
            names = None if labels is None else [class_name(model, int(label)) for label in labels[:shown]]
            files.write_bytes(path, grid_png(pictures, labels=names, caption=f"step {step} · {name}"))
        yield Drawn(path)


def _tell(tell: Tell, done: int, *, what: str, world: int, total: int) -> None:
    tell(Working(what, min(done * world, total), total, "image"))
