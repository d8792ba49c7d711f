"""How many samples `hdit eval-fid` makes where nobody says: on a CPU as many as ten minutes allow.

The number is measured once and kept in the cache folder until the evaluation is complete, so that one that was broken off
goes on with the same number, however fast the machine is then.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hdit_cli import files, precision, runtime
from hdit_cli.engine.model import Model
from hdit_cli.engine.scoring.unfinished import key_of
from hdit_cli.errors import StorageError
from hdit_cli.tasks.sampling import Sampling

SECONDS = 600.0
FEWEST = 16  # below, a score says nothing at all
_FORMAT = "hdit-count/1"
_TWICE = ("heun", "dpm-2")  # samplers that ask the network twice in a step


@dataclass(frozen=True)
class Count:
    """A number of samples.

    Attributes:
        seconds: that one takes.
        file: where the number is kept; None where it is not.
    """

    n: int
    seconds: float
    file: Path | None = None

    def note(self, whole: int) -> str:
        """Why there are fewer than `whole`; "" where there are not."""
        if self.n >= whole:
            return ""
        minutes = max(1, round(self.n * self.seconds / runtime.ranks().world / 60))
        why = (
            "what this CPU makes in about ten minutes"
            if minutes <= 10
            else f"the fewest that say anything, {minutes} minutes"
        )
        return f"{self.n:,} samples ({why}) instead of the recipe's {whole:,}; -n says another number"

    def forget(self) -> None:
        """The evaluation is complete."""
        if self.file is not None and runtime.ranks().is_main:
            files.remove_folder(self.file.parent)


def affordable(model: Model, sampling: Sampling, *, most: int, told: Any) -> Count:
    """The number of samples for a model on a CPU; every process gets the same.

    Args:
        most: what the recipe says.
        told: a JSON value, all that tells this evaluation from others.
    """
    file = runtime.cache_folder() / "unfinished" / key_of([_FORMAT, told]) / "count.json"
    kept = runtime.gather(_read(file) if runtime.ranks().is_main else None)[0]
    if kept is not None:
        return Count(kept[0], kept[1], file)
    seconds = max(runtime.gather(_measured(model, sampling)))
    n = min(most, max(FEWEST, _rounded(SECONDS * runtime.ranks().world / seconds)))
    if runtime.ranks().is_main:
        with suppress(StorageError):  # it is then measured again
            files.make_folder(file.parent)
            files.write_json(file, {"format": _FORMAT, "n": n, "seconds": seconds})
    return Count(n, seconds, file)


def _read(file: Path) -> tuple[int, float] | None:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return int(kept["n"]), float(kept["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rounded(value: float) -> int:
    """Down to two digits: the next measurement is never quite the same."""
    unit = 10 ** max(0, len(str(int(value))) - 2)
    return int(value) // unit * unit


def _measured(model: Model, sampling: Sampling) -> float:
    """Seconds that a sample takes on this process, from the faster one of two small batches through the network."""
    steps = model.task.steps(sampling) * (2 if sampling.sampler in _TWICE else 1)
    images = min(4, sampling.batch_size)
    calls = images * (2 if sampling.guides else 1)  # guidance asks for each image twice
    taken = []
    chosen = precision.resolved(sampling.precision, dtype=model.dtype, device=model.device)
    call = precision.within(chosen, model.device, model.task.called)
    with torch.inference_mode():
        like = torch.empty(0, device=model.device, dtype=model.dtype)
        inputs = model.task.example(calls, model.shape(sampling.size), like=like)
        for _ in range(2):
            started = time.perf_counter()
            call(*inputs)
            runtime.wait_for_device(model.device)
            taken.append(time.perf_counter() - started)
    return min(taken) * steps / images
