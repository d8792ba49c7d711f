"""A few real steps of a recipe that write nothing: how long they take, what they need, which batch is fastest."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hdit_cli import runtime
from hdit_cli.data.loader import Batch, Loader
from hdit_cli.data.order import split
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import ROOM, changed, check_room, in_training, told
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.training.setup import at_largest, new_accelerator, new_model, open_data, random_cut
from hdit_cli.engine.training.step import Stepper, compile_step
from hdit_cli.errors import is_out_of_memory
from hdit_cli.recipe import Recipe

PATIENCE = 30.0  # seconds after which no further step is begun
_TIMED = 5  # steps
_GROWTH = 1.03  # a batch must be so much faster than all smaller ones to count as faster
_LARGEST = 65_536  # images of a batch that is tried


class Bench:
    """A new model with its optimizer on this process's device, and the means to take steps with it.

    Raises:
        UsageError: recipe and data do not fit.
        DataError: the data cannot be read.
    """

    def __init__(self, recipe: Recipe, *, data: Path) -> None:
        self.recipe, self.reader = recipe, open_data(recipe, data)
        runtime.set_deterministic(recipe.train.deterministic)
        runtime.fast_matmul()
        self.stepper = Stepper(
            recipe, model=new_model(recipe, self.reader, path=str(data)), accelerator=new_accelerator(recipe)
        )
        self.device = self.stepper.device

    def loader(self, recipe: Recipe, *, processes: int, steps: int, workers: int) -> Loader:
        """Batches of one process of `processes`, from where the bench stands; the steps follow `recipe` from now on."""
        section = recipe.train
        self.stepper.recipe = recipe
        return Loader(
            self.reader,
            batch_size=section.batch_size,
            seed=section.seed,
            position=self.stepper.state.step * section.batch_size,
            steps=steps,
            slots=split(section.batch_size, world=processes, rank=0, accumulate=section.accumulate),
            workers=workers,
            pin_memory=self.device.type == "cuda",
            cut=random_cut(recipe),
        )

    def step(self, batches: Iterator[list[Batch]]) -> float:
        """One step, the wait for its pictures included; seconds."""
        runtime.wait_for_device(self.device)
        start = time.perf_counter()
        self.stepper.step(next(batches))
        runtime.wait_for_device(self.device)
        return time.perf_counter() - start

    def measured_step(self, batches: Iterator[list[Batch]]) -> int:
        """One step, the bytes of tensors at its fullest moment, all of them."""
        held = 0 if self.device.type == "cuda" else self.held()
        with Peak(self.device) as peak:
            self.step(batches)
        return held + peak.bytes

    def held(self) -> int:
        """Bytes of weights, averages and moments."""
        state = self.stepper.state
        networks = [state.held, state.ema.network, *(ema.network for ema in state.averages.by_std.values())]
        weights = sum(tensor.nbytes for network in networks for tensor in network.parameters())
        return weights + sum(tensor.nbytes for tensor in state.optimizer_tensors().values())

    def clear(self) -> None:
        """Gives gradients and cached memory back."""
        self.stepper.state.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def try_steps(recipe: Recipe, *, data: Path, processes: int = 1) -> dict[str, Any]:
    """Takes a first step, one whose memory is measured, and up to five that are timed; a slow machine takes fewer.

    Args:
        processes: that will share a batch; the steps are those of the first, alone.

    Returns:
        timed_steps, seconds_per_step, seconds_per_1000_steps, hours (of all steps of the recipe, without saving and
        drawing), images_per_second (of all processes), peak_bytes (None where the first step took too long for a second).

    Raises:
        OutOfMemory: a step does not fit; three switches that help.
    """
    with told(lambda: in_training(recipe)):
        bench = Bench(recipe, data=data)
        compile_step(bench.stepper, sizes=len(bench.reader.sizes))
        check_room(at_largest(recipe, bench.reader), classes=len(bench.reader.classes), processes=processes)
        with bench.loader(recipe, processes=processes, steps=2 + _TIMED, workers=recipe.data.workers) as loader:
            batches = iter(loader)
            seconds, peak = [bench.step(batches)], None
            if seconds[0] < PATIENCE:
                peak = bench.measured_step(batches)
                first = bench.step(batches)
                seconds = [first]
                while len(seconds) < _TIMED and sum(seconds) + first < PATIENCE:
                    seconds.append(bench.step(batches))
    each = sorted(seconds)[len(seconds) // 2]  # the median: another program may have been busy
    return {
        "timed_steps": len(seconds),
        "seconds_per_step": each,
        "seconds_per_1000_steps": each * 1000,
        "hours": each * recipe.train.steps / 3600,
        "images_per_second": recipe.train.batch_size / each,
        "peak_bytes": peak,
    }


@dataclass(frozen=True)
class Try:
    """A micro-batch that was tried.

    Attributes:
        peak_bytes: measured, or estimated where it was not run.
        images_per_second: of one process; None where it does not fit.
        fits: whether it does.
    """

    images: int
    peak_bytes: int
    images_per_second: float | None = None

    @property
    def fits(self) -> bool:
        return self.images_per_second is not None


@dataclass(frozen=True)
class Found:
    """What `find_batch` found: all tries by size, the fastest, and the two keys that use it for the recipe's own batch.

    Attributes:
        limit: bytes that a try had to stay within; None where only the device itself said no.
    """

    tries: list[Try]
    fastest: Try
    batch_size: int
    accumulate: int
    limit: int | None


def find_batch(
    recipe: Recipe, *, data: Path, processes: int = 1, memory: int | None = None, watch: Callable[[Try], None]
) -> Found:
    """Doubles the micro-batch until it does not fit or is no faster, then looks between the last two sizes.

    Args:
        processes: that will share a batch; one is tried, alone.
        memory: bytes the device is taken to have; None takes what is free, and on CUDA goes on until it is full.
        watch: called with each try.

    Raises:
        OutOfMemory: a single image does not fit.
    """
    device = runtime.device()
    room = memory or (None if device.type == "cuda" else runtime.free_memory(device))
    limit = None if room is None else int(room * ROOM)
    with told(lambda: in_training(_alone(recipe, 1))):
        bench = Bench(recipe, data=data)
    tries: list[Try] = []

    def attempt(images: int) -> Try:
        tries.append(_attempt(bench, _alone(recipe, images), limit=limit))
        watch(tries[-1])
        return tries[-1]

    _double(attempt)
    fitting = [each.images for each in tries if each.fits]
    if not fitting:
        raise in_training(_alone(recipe, 1))
    low, high = max(fitting), min((each.images for each in tries if not each.fits), default=0)
    while high - low > max(1, low // 4):
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle).fits else (low, middle)
    fastest = max(tries, key=lambda each: each.images_per_second or 0.0)
    share = recipe.train.batch_size // processes
    accumulate = next(a for a in range(1, share + 1) if share % a == 0 and share // a <= fastest.images)
    return Found(sorted(tries, key=lambda each: each.images), fastest, recipe.train.batch_size, accumulate, limit)


def _double(attempt: Callable[[int], Try]) -> None:
    """Tries 1, 2, 4, ... images until one does not fit or takes too long, or two in a row are no faster than those before."""
    images, best, slower = 1, 0.0, 0
    while images <= _LARGEST and slower < 2:
        start = time.perf_counter()
        tried = attempt(images)
        if tried.images_per_second is None or time.perf_counter() - start > PATIENCE:
            return
        slower = 0 if tried.images_per_second > best * _GROWTH else slower + 1
        best = max(best, tried.images_per_second)
        images *= 2


def _alone(recipe: Recipe, images: int) -> Recipe:
    """The recipe with a batch of so many images in one piece."""
    return changed(recipe, {"train.batch_size": images, "train.accumulate": 1})


def _attempt(bench: Bench, recipe: Recipe, *, limit: int | None) -> Try:
    """Two steps, the first measured and the second timed; none where the estimate is over the limit."""
    images, classes = recipe.train.batch_size, len(bench.reader.classes)
    largest = at_largest(recipe, bench.reader)
    needed = estimate(largest, images=images, device=bench.device.type, classes=classes)["total"]
    if limit is not None and needed > limit:
        return Try(images, needed)
    try:
        with bench.loader(recipe, processes=1, steps=2, workers=0) as loader:
            batches = iter(list(loader))  # decoded before, so that the step alone is timed
        peak = bench.measured_step(batches)
        seconds = bench.step(batches)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Try(images, needed)
    finally:
        bench.clear()
    return Try(images, peak, images / seconds) if limit is None or peak <= limit else Try(images, peak)
