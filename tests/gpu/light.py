"""What the parts of `first_light.sh` stand on: a device, data, a file of results that grows, stand-ins for a rehearsal."""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hdit_cli.catalog import get
from hdit_cli.engine.bench.clock import timed
from hdit_cli.engine.memory import estimate as estimates
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.errors import OutOfMemory, is_out_of_memory
from hdit_cli.models.attention import dispatch
from hdit_cli.models.attention.request import Request
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.runtime import wait_for_device

SMALL = "smoke/tiny"  # what a rehearsal trains in the place of a large recipe


class Light:
    """One part at work.

    Args:
        rehearse: run on what there is, as small as can be; what needs CUDA is told and left out.
        data: a prepared data set of 256x256 pixels; None, or a rehearsal, makes do with noise.
        work: folder for what a part writes.
        result: JSON file, written anew with each number, so that a part that is stopped has told what it had.
    """

    def __init__(self, *, rehearse: bool, data: Path | None, work: Path, result: Path) -> None:
        self.rehearse, self.data, self.work, self.result = rehearse, data, work, result
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if not rehearse and self.device.type != "cuda":
            raise SystemExit("no CUDA device here; --rehearse runs what can be run without one")
        self.facts: dict[str, Any] = {"rehearsal": rehearse}
        self.start = time.perf_counter()

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def note(self, **facts: Any) -> None:
        """Writes down numbers, at once."""
        self.facts |= facts
        self.facts["seconds"] = round(time.perf_counter() - self.start, 2)
        staged = self.result.with_suffix(".new")
        staged.write_text(json.dumps(self.facts, indent=1))
        os.replace(staged, self.result)

    def recipe(self, name: str, **values: Any) -> Recipe:
        """A shipped recipe with other values, `train__batch_size=8`; in a rehearsal the small one, at a batch of at most 4."""
        found = load_recipe(SMALL if self.rehearse else name)
        switch = {key.replace("__", "."): value for key, value in values.items()}
        if self.rehearse:
            switch["train.batch_size"] = min(4, switch.get("train.batch_size", 4))
        return changed(found, switch)

    def count(self, wanted: int, rehearsed: int) -> int:
        """How often something is done."""
        return rehearsed if self.rehearse else wanted

    @contextmanager
    def finding(self, name: str) -> Iterator[dict[str, Any]]:
        """Facts of a name. Out of memory is one of them, and what else goes wrong too: the next name is tried all the same."""
        facts: dict[str, Any] = {}
        try:
            yield facts
        except Exception as error:
            kind = (
                "out of memory" if is_out_of_memory(error) or isinstance(error, OutOfMemory) else type(error).__name__
            )
            facts["failed"] = f"{kind}: {' '.join(str(error).split())[:400]}"
        finally:
            self.note(**{name: facts})
            gc.collect()
            if self.on_cuda:
                torch.cuda.empty_cache()

    def times(self, call: Callable[[], object], *, runs: int, warmup: int = 2) -> dict[str, float]:
        """Milliseconds of a call, the device waited for before and after each."""
        for _ in range(warmup):
            call()
        found = [1e3 * timed(call, self.device) for _ in range(runs)]
        return {"median_ms": statistics.median(found), "least_ms": min(found), "most_ms": max(found)}

    def peak_of(self, call: Callable[[], object]) -> int | None:
        """Bytes at the fullest moment of a call beyond what was there before it; None off CUDA."""
        if not self.on_cuda:
            return None
        wait_for_device(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        wait_for_device(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before


def refusal(name: str, device: torch.device, *, dtype: torch.dtype, width: int, kernel: int) -> str:
    """Why a backend does not serve such a call, or ""."""
    return get("attention", name).refuse(Request(device.type, dtype, width, kernel))


@contextmanager
def only(name: str) -> Iterator[None]:
    """Neighborhood attention runs by one backend inside, whatever would be chosen."""
    before = dispatch.choose
    dispatch.choose = lambda request: name  # type: ignore[assignment]
    estimates._step.cache_clear()  # what was followed with another backend
    try:
        yield
    finally:
        dispatch.choose = before
        estimates._step.cache_clear()
