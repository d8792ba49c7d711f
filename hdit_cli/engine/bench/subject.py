"""A recipe made ready to be timed: the real stepper with batches, the real sampler, and their counted work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import runtime
from hdit_cli.data.loader import Batch, Loader
from hdit_cli.data.order import split
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import DTYPES, Model, build_network, build_task, count
from hdit_cli.engine.sampling.generate import check, choose_labels, stream
from hdit_cli.engine.training.setup import check_fit, new_accelerator, new_model
from hdit_cli.engine.training.step import Stepper
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
        self.reader = ShardReader(data) if data else None
        runtime.set_deterministic(recipe.train.deterministic)
        runtime.fast_matmul()
        runtime.keep_freed_memory()
        if self.reader:
            check_fit(recipe, self.reader)
            model = new_model(recipe, self.reader, path=str(data))
        else:
            model = _model(recipe)
        self.classes = model.network.classes
        self.stepper = Stepper(recipe, model=model, accelerator=new_accelerator(recipe))
        self.model, self.device = model, self.stepper.device
        self.gmacs = count(recipe, classes=self.classes)["gmacs"]
        self.batches = self._load() if self.reader else self._noise()

    @property
    def train_flops(self) -> float:
        """Of one step: forward and twice as much backward, two for each multiply-accumulate; nothing that is computed again."""
        return 6e9 * self.gmacs * self.recipe.train.batch_size

    @property
    def product_dtype(self) -> torch.dtype:
        """What the network multiplies in."""
        bf16 = self.recipe.train.precision == "bf16"
        return torch.bfloat16 if bf16 else DTYPES[self.recipe.train.precision]

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
        for _ in stream(self.model, indices=range(n), labels=labels, sampling=sampling):
            pass
        self.model.task.train()

    def loader(self, *, steps: int) -> Loader:
        """The data set's batches from the start of a run, of one process.

        Raises:
            ValueError: there is no data set.
        """
        if self.reader is None:
            raise ValueError("no data set to load")
        section = self.recipe.train
        return Loader(
            self.reader,
            batch_size=section.batch_size,
            seed=section.seed,
            position=0,
            steps=steps,
            slots=split(section.batch_size, world=1, rank=0, accumulate=section.accumulate),
            workers=self.recipe.data.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _load(self) -> list[Batch]:
        with self.loader(steps=1) as loader:
            return next(iter(loader))

    def _noise(self) -> list[Batch]:
        section, (height, width) = self.recipe.train, self.recipe.model.size
        generator = torch.Generator().manual_seed(0)
        found = []
        for slots in split(section.batch_size, world=1, rank=0, accumulate=section.accumulate):
            n = len(slots)
            pixels = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)
            label = torch.arange(n) % max(1, self.classes)
            found.append(Batch(pixels, label, np.asarray(slots, dtype=np.int64)))
        return found

    @contextmanager
    def compiled(self, forward: Any) -> Iterator[None]:
        """The network runs as `forward`, a compiled call of its own, inside."""
        network: Any = self.model.network
        before = network._compiled_call_impl
        network._compiled_call_impl = forward
        try:
            yield
        finally:
            network._compiled_call_impl = before


def _model(recipe: Recipe) -> Model:
    """New, with weights as a run of the recipe would begin with, for a data set of `CLASSES` classes."""
    torch.manual_seed(runtime.key(recipe.train.seed, "init") % 2**63)
    wanted = recipe.model.classes
    network = build_network(recipe, classes=CLASSES if wanted == "data" else int(wanted))
    network.to(DTYPES[recipe.train.precision])
    names = [str(i) for i in range(network.classes)]
    return Model(build_task(network, recipe), recipe.to_dict(), names, weights="raw")
