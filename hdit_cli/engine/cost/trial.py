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
from hdit_cli.data.stored_loader import StoredLoader
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.memory.out_of_memory import ROOM, changed, check_room, in_training, told
from hdit_cli.engine.memory.peak import Peak
from hdit_cli.engine.training.exchange import as_first_of, exchanged_bytes
from hdit_cli.engine.training.setup import at_largest, batches_of, new_accelerator, new_model, open_data
from hdit_cli.engine.training.step import Stepper, compile_step
from hdit_cli.errors import is_out_of_memory
from hdit_cli.recipe import Recipe

PATIENCE = 30.0  # seconds after which no further step is begun
_TIMED = 5  # steps
_SHAPES = 32  # sizes of a batch that are tried at most: each is a graph of its own
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
        self.stepper, self.notes = self._new_stepper()
        self.device = self.stepper.device

    def _new_stepper(self) -> tuple[Stepper, list[str]]:
        model = new_model(self.recipe, self.reader, path=str(self.reader.folder))
        stepper = Stepper(self.recipe, model=model, accelerator=new_accelerator(self.recipe))
        return stepper, compile_step(stepper, sizes=len(self.reader.sizes) * _SHAPES)

    def loader(self, recipe: Recipe, *, processes: int, steps: int, workers: int) -> Loader | StoredLoader:
        """Batches of one process of `processes`, from where the bench stands; the steps follow `recipe` from now on."""
        section = recipe.train
        self.stepper.recipe = recipe
        return batches_of(
            recipe,
            self.reader,
            position=self.stepper.state.step * section.batch_size,
            steps=steps,
            slots=split(section.batch_size, world=processes, rank=0, accumulate=section.accumulate),
            workers=workers,
            device=self.device,
        )

    def step(self, batches: Iterator[list[Batch]]) -> float:
        """One step, the wait for its pictures included; seconds."""
        runtime.wait_for_device(self.device)
        start = time.perf_counter()
        self.stepper.step(next(batches))
        runtime.wait_for_device(self.device)
        return time.perf_counter() - start

    @property
    def measures(self) -> bool:
        """Whether memory can be measured: divided weights come and go in memory that stays the same tensor, unseen on a CPU."""
        return self.device.type == "cuda" or self.stepper.shards is None

    def measured_step(self, batches: Iterator[list[Batch]]) -> int:
        """One step, the bytes of tensors at its fullest moment, all of them."""
        held = 0 if self.device.type == "cuda" else self.held()
        with Peak(self.device) as peak:
            self.step(batches)
        return held + peak.bytes

    def held(self) -> int:
        """Bytes of weights, averages and moments, and of what gradients are exchanged in."""
        return self.stepper.state.held_bytes() + exchanged_bytes(self.stepper.losses_of)

    def clear(self, *, broken_off: bool = False) -> None:
        """Gives gradients and cached memory back; after a step that was broken off, divided weights begin anew."""
        self.stepper.state.optimizer.zero_grad(set_to_none=True)
        if broken_off and self.stepper.shards:
            del self.stepper
            self.stepper, _ = self._new_stepper()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def try_steps(recipe: Recipe, *, data: Path, processes: int = 1) -> dict[str, Any]:
    """Takes a first step, one whose memory is measured, and up to five that are timed; a slow machine takes fewer.

    Args:
        processes: that will share a batch; the steps are those of the first, alone, and what it would exchange takes no time.

    Returns:
        timed_steps, seconds_per_step, seconds_per_1000_steps, hours (of all steps of the recipe, without saving and
        drawing), images_per_second (of all processes), peak_bytes (None where the first step took too long for a second, or
        where it cannot be measured), notes (sentences on how the steps were run).

    Raises:
        OutOfMemory: a step does not fit; three switches that help.
    """
    with told(lambda: in_training(recipe)), as_first_of(processes):
        bench = Bench(recipe, data=data)
        check_room(at_largest(recipe, bench.reader), classes=len(bench.reader.classes), processes=processes)
        with bench.loader(recipe, processes=processes, steps=2 + _TIMED, workers=recipe.data.workers) as loader:
            batches = iter(loader)
            seconds, peak = [bench.step(batches)], None
            if seconds[0] < PATIENCE:
                peak = bench.measured_step(batches) if bench.measures else None
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
        "notes": [*bench.notes, *bench.stepper.notes()],
    }


@dataclass(frozen=True)
class Try:
    """A micro-batch that was tried.

    Attributes:
        peak_bytes: measured, or estimated where it was not run or cannot be measured.
        images_per_second: of one process; None where it does not fit.
        seconds: that its steps took, without what was compiled for them.
        fits: whether it does.
    """

    images: int
    peak_bytes: int
    images_per_second: float | None = None
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return self.images_per_second is not None


@dataclass(frozen=True)
class Found:
    """What `find_batch` found: all tries by size, the fastest, and the two keys that use it for the recipe's own batch.

    Attributes:
        limit: bytes that a try had to stay within; None where only the device itself said no.
        notes: sentences on how the steps were run.
    """

    tries: list[Try]
    fastest: Try
    batch_size: int
    accumulate: int
    limit: int | None
    notes: list[str]


def find_batch(
    recipe: Recipe, *, data: Path, processes: int = 1, memory: int | None = None, watch: Callable[[Try], None]
) -> Found:
    """Doubles the micro-batch until it does not fit or is no faster, then looks between the last two sizes.

    The steps are those that the run would take: compiled where it would compile, in its precision, with gradients that are
    exchanged or accumulated, with divided weights; what other processes would send takes no time.

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
    smallest = changed(recipe, {"train.batch_size": processes, "train.accumulate": 1})
    tries: list[Try] = []
    share = recipe.train.batch_size // processes
    with as_first_of(processes):
        with told(lambda: in_training(smallest)):
            bench = Bench(recipe, data=data)

        def attempt(images: int) -> Try:
            pieces = 2 if images < share else 1  # of more, all but the last are like the first
            switch = {"train.batch_size": images * pieces * processes, "train.accumulate": pieces}
            tries.append(_attempt(bench, changed(recipe, switch), processes=processes, limit=limit))
            watch(tries[-1])
            return tries[-1]

        _double(attempt)
        fitting = [each.images for each in tries if each.fits]
        if not fitting:
            raise in_training(smallest)
        low, high = max(fitting), min((each.images for each in tries if not each.fits), default=0)
        while high - low > max(1, low // 4):
            middle = (low + high) // 2
            low, high = (middle, high) if attempt(middle).fits else (low, middle)
    fastest = max(tries, key=lambda each: each.images_per_second or 0.0)
    accumulate = next(a for a in range(1, share + 1) if share % a == 0 and share // a <= fastest.images)
    notes = [*bench.notes, *bench.stepper.notes()]
    ordered = sorted(tries, key=lambda each: each.images)
    return Found(ordered, fastest, recipe.train.batch_size, accumulate, limit, notes)


def _double(attempt: Callable[[int], Try]) -> None:
    """Tries 1, 2, 4, ... images until one does not fit or takes too long, or two in a row are no faster than those before."""
    images, best, slower = 1, 0.0, 0
    while images <= _LARGEST and slower < 2:
        tried = attempt(images)
        if tried.images_per_second is None or tried.seconds > PATIENCE:
            return
        slower = 0 if tried.images_per_second > best * _GROWTH else slower + 1
        best = max(best, tried.images_per_second)
        images *= 2


def _attempt(bench: Bench, recipe: Recipe, *, processes: int, limit: int | None) -> Try:
    """Two steps, the first measured and the second timed, after one for which code is compiled; none over the limit."""
    section, classes = recipe.train, len(bench.reader.classes)
    share = section.batch_size // processes
    images = share // section.accumulate
    how: dict[str, Any] = {"device": bench.device.type, "processes": processes, "classes": classes}
    needed = estimate(at_largest(recipe, bench.reader), images=images, **how)["total"]
    if limit is not None and needed > limit:
        return Try(images, needed)
    broken_off = True
    try:
        with bench.loader(recipe, processes=processes, steps=3, workers=0) as loader:
            batches = iter(list(loader))  # decoded before, so that the step alone is timed
        if bench.stepper.compiled:
            bench.step(batches)
        start = time.perf_counter()
        peak = bench.measured_step(batches) if bench.measures else needed
        seconds = bench.step(batches)
        broken_off = False
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Try(images, needed)
    finally:
        bench.clear(broken_off=broken_off)
    fits = limit is None or peak <= limit
    return Try(images, peak, share / seconds if fits else None, time.perf_counter() - start)
