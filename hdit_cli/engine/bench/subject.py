"""A recipe made ready to be timed: the real stepper with batches, the real sampler, and their counted work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import counter, runtime
from hdit_cli.data.loader import Batch, Loader
from hdit_cli.data.order import split
from hdit_cli.data.stored_loader import StoredLoader
from hdit_cli.engine.model import DTYPES, Model, build_network, build_task, count
from hdit_cli.engine.run.codec_file import load_codec
from hdit_cli.engine.sampling.generate import check, choose_labels, stream
from hdit_cli.engine.training.setup import batches_of, new_accelerator, new_model, open_data, picture_size
from hdit_cli.engine.training.step import Stepper, compile_step
from hdit_cli.precision import has_tf32
from hdit_cli.recipe import Recipe
from hdit_cli.tasks.sampling import Sampling

CLASSES = 10  # of a recipe that takes them from data, where there is none


class Subject:
    """A new model of a recipe, its stepper, and batches of pictures: a data set's, or noise.

    Raises:
        UsageError: recipe and data do not fit.
        DataError: the data cannot be read.
    """

    def __init__(self, recipe: Recipe, *, data: Path | None) -> None:
        self.recipe = recipe
        self.reader = open_data(recipe, data) if data else None
        runtime.set_deterministic(recipe.train.deterministic)
        runtime.fast_matmul()
        runtime.keep_freed_memory()
        if self.reader:
            model = new_model(recipe, self.reader, path=str(data))
        else:
            model = _model(recipe)
        self.classes = model.network.classes
        self.stepper = Stepper(recipe, model=model, accelerator=new_accelerator(recipe))
        self.model, self.device = model, self.stepper.device
        self.gmacs = count(recipe, classes=self.classes)["gmacs"]
        self.batches = self._load() if self.reader else self._noise()
        self.through: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda call: call  # of the sampler's calls

    @property
    def train_flops(self) -> float:
        """Of one step: forward and twice as much backward, two for each multiply-accumulate; nothing that is computed again."""
        return 6e9 * self.gmacs * self.recipe.train.batch_size

    @property
    def precision(self) -> str:
        """What the network multiplies in as it is trained, as `precision.resolved` gives it: float32 is TF32 where that is."""
        word = self.recipe.train.precision
        return "tf32" if word == "fp32" and has_tf32(self.device) else word

    def compile(self) -> list[str]:
        """From now on steps are compiled, if `train` would compile them; what is to be known of it."""
        return compile_step(self.stepper, sizes=len(self.reader.sizes) if self.reader else 1)

    @property
    def compiled(self) -> bool:
        """Whether steps run compiled."""
        compiled = self.stepper.compiled
        return bool(compiled) and all(each.run is not each.plain for each in compiled)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Steps run without a compiler inside, as they would if nobody had compiled them."""
        task: Any = self.model.task
        before = task.losses, self.stepper.normals
        if self.stepper.compiled:
            task.losses, self.stepper.normals = before[0].plain, counter.normals
        try:
            yield
        finally:
            task.losses, self.stepper.normals = before

    def step(self) -> None:
        """One training step, all of it but reading the data: the same pictures at the next places of a run."""
        first = self.stepper.state.step * self.recipe.train.batch_size
        self.stepper.step([replace(batch, index=batch.index + first) for batch in self.batches])

    def sample(self, sampling: Sampling) -> None:
        """One batch of images."""
        check(self.model, sampling)
        n = sampling.batch_size
        self.model.task.eval()
        labels = choose_labels(self.model, n=n, wanted=None, seed=0)
        how = {"sampling": sampling, "through": self.through}
        for _ in stream(self.model, indices=range(n), labels=labels, **how):
            pass
        self.model.task.train()

    def loader(self, *, steps: int) -> Loader | StoredLoader:
        """The data set's batches from the start of a run, of one process.

        Raises:
            ValueError: there is no data set.
        """
        if self.reader is None:
            raise ValueError("no data set to load")
        section = self.recipe.train
        return batches_of(
            self.recipe,
            self.reader,
            position=0,
            steps=steps,
            slots=split(section.batch_size, world=1, rank=0, accumulate=section.accumulate),
            workers=self.recipe.data.workers,
            device=self.device,
        )

    def _load(self) -> list[Batch]:
        with self.loader(steps=1) as loader:
            return next(iter(loader))

    def _noise(self) -> list[Batch]:
        section, (height, width) = self.recipe.train, picture_size(self.recipe)
        generator = torch.Generator().manual_seed(0)
        found = []
        for slots in split(section.batch_size, world=1, rank=0, accumulate=section.accumulate):
            n = len(slots)
            pixels = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)
            label = torch.arange(n) % max(1, self.classes)
            found.append(Batch(pixels, label, np.asarray(slots, dtype=np.int64)))
        return found


def _model(recipe: Recipe) -> Model:
    """New, with weights as a run of the recipe would begin with, for a data set of `CLASSES` classes."""
    torch.manual_seed(runtime.key(recipe.train.seed, "init") % 2**63)
    wanted = recipe.model.classes
    network = build_network(recipe, classes=CLASSES if wanted == "data" else int(wanted))
    network.to(DTYPES[recipe.train.precision])
    names = [str(i) for i in range(network.classes)]
    latents = load_codec(recipe.codec.path) if recipe.codec.path else None
    return Model(build_task(network, recipe), recipe.to_dict(), names, weights="raw", latents=latents)
