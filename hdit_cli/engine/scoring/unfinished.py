"""What an evaluation that was broken off has counted so far: the same command goes on from there.

The states of the metrics and the numbers of the pictures in them lie in `unfinished/<key>/` in the cache folder. The key is
a hash of all that the result depends on, weights and options: what belongs to another evaluation is never used.
Each process keeps a file of its own, `pictures-000-001.safetensors` (generation, rank). Where another number of processes
goes on, the first one takes everything over and writes the next generation; then the older one goes.
"""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from hdit_cli import files, runtime
from hdit_cli.errors import StorageError
from hdit_cli.metrics.metric import Metric

FORMAT = "hdit-unfinished/1"
EVERY = 60.0  # seconds between two saves
SHARE = 0.05  # of the time at most that saving may take
KEPT_DAYS = 30  # what nobody went on with for so long is removed
_LOCK = ".lock"
_NAME = re.compile(r"(\w+)-(\d{3})-(\d{3})\.safetensors")


def key_of(told: Any) -> str:
    """A hash of a JSON value."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class Progress:
    """One process's part of one set.

    Attributes:
        states: by kind of state, and by feature net where there are several.
        done: numbers of the pictures in them.
        left: numbers still to be read, in order.
        found: how many pictures were done when this process started, on all processes together.
    """

    states: dict[str, Metric]
    done: list[int]
    left: Sequence[int]
    found: int = 0


class Unfinished:
    """The saved state of one evaluation. Use it as a context on every process: it holds a lock meanwhile.

    Args:
        told: a JSON value, all that the result depends on.

    Raises:
        UsageError: on entering, where another process makes the very same evaluation.
        StorageError: on entering, where nothing can be kept.
    """

    def __init__(self, told: Any) -> None:
        self.folder = runtime.cache_folder() / "unfinished" / key_of([FORMAT, told])
        self._saved_at, self._took = time.monotonic(), 0.0
        self._generation = 0
        self._stack = ExitStack()

    def __enter__(self) -> "Unfinished":
        problem = ""
        if runtime.ranks().is_main:
            try:
                files.make_folder(self.folder)
                self._stack.enter_context(files.lock(self.folder / _LOCK, what="this very evaluation"))
                files.reap(self.folder)
                _remove_old(self.folder.parent, but=self.folder)
            except StorageError as error:
                problem = error.message
        if problem := runtime.gather(problem)[0]:
            raise StorageError(problem)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if runtime.ranks().is_main and not any(_NAME.fullmatch(file.name) for file in self.folder.iterdir()):
            files.remove_folder(self.folder)  # nothing to go on from
        self._stack.close()

    @property
    def exists(self) -> bool:
        """Whether there is something to go on from."""
        return self.folder.is_dir() and any(_NAME.fullmatch(file.name) for file in self.folder.iterdir())

    def resume(self, part: str, kinds: Mapping[str, type[Metric]], *, count: int) -> Progress:
        """Where this process goes on: with its own file where every process has one, else with a new share of what is left.

        Args:
            part: name of the set among those of the evaluation.
            kinds: a metric for each kind of state, by what it is called here.
            count: of pictures in the whole set.
        """
        place = runtime.ranks()
        names: list[str] = []
        known: set[int] = set()
        complete, generation = False, 0
        if place.is_main:
            found = _newest(self.folder, part)
            generation = _generation(found[0]) if found else 0
            sets = [_numbers(file, "done") for file in found]
            known = set().union(*sets)
            if sum(map(len, sets)) == len(known) and known <= set(range(count)):
                names = [file.name for file in found]
                complete = [_world(file) for file in found] == [place.world] * place.world
        names, known, complete, generation = runtime.gather((names, known, complete, generation))[0]
        self._generation = generation
        mine = [names[place.rank]] if complete else names if place.is_main else []
        loaded = [self._read(name, kinds) for name in mine]
        if not names or not all(runtime.gather(None not in loaded)):
            self._generation += 1  # what lies there is not read again
            return Progress({name: kind() for name, kind in kinds.items()}, [], range(place.rank, count, place.world))
        progress = _union([one for one in loaded if one is not None], kinds)
        progress.found = len(known)
        if not complete:
            progress.left = [number for number in range(count) if number not in known][place.rank :: place.world]
            self._take_over(part, progress, names)
        return progress

    def _take_over(self, part: str, progress: Progress, old: Sequence[str]) -> None:
        """The next generation, in which the first process has all that was done."""
        self._generation += 1
        if runtime.ranks().is_main:
            self.save(part, progress)
            for name in old:
                files.remove_file(self.folder / name)
        runtime.wait_for_all()

    def due(self) -> bool:
        """Whether it is time to save again: a large state is saved less often."""
        return time.monotonic() - self._saved_at >= max(EVERY, self._took / SHARE)

    def save(self, part: str, progress: Progress) -> None:
        """Writes this process's part, whole or not at all.

        Raises:
            StorageError: the disk is full, or failed.
        """
        started = time.monotonic()
        arrays = {
            f"{name}/{field}": np.ascontiguousarray(array)
            for name, metric in progress.states.items()
            for field, array in metric.arrays().items()
        }
        place = runtime.ranks()
        told = {"format": FORMAT, "world": str(place.world)}
        places = {"done": np.array(progress.done, dtype=np.int64), "left": np.array(progress.left, dtype=np.int64)}
        data = safetensors.numpy.save({**arrays, **places}, told)
        files.write_bytes(self.folder / f"{part}-{self._generation:03d}-{place.rank:03d}.safetensors", data)
        self._saved_at = time.monotonic()
        self._took = self._saved_at - started

    def remove(self) -> None:
        """The evaluation is complete: nothing of it is kept."""
        runtime.wait_for_all()
        if runtime.ranks().is_main:
            for file in self.folder.iterdir():
                if _NAME.fullmatch(file.name):
                    files.remove_file(file)

    def _read(self, file: str, kinds: Mapping[str, type[Metric]]) -> Progress | None:
        """One file; None where it does not read back."""
        try:
            arrays = safetensors.numpy.load_file(self.folder / file)
            states = {name: kind.merged([_of(name, arrays)]) for name, kind in kinds.items()}
            return Progress(states, arrays["done"].tolist(), arrays["left"].tolist())
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def _of(state: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = f"{state}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _union(parts: Sequence[Progress], kinds: Mapping[str, type[Metric]]) -> Progress:
    """One part made of several, or of none."""
    if len(parts) == 1:
        return parts[0]
    states = {name: kind.merged([part.states[name].arrays() for part in parts]) for name, kind in kinds.items()}
    return Progress(states, [number for part in parts for number in part.done], [])


def _numbers(file: Path, name: str) -> set[int]:
    with safe_open(file, framework="np") as handle:
        return set(handle.get_tensor(name).tolist())


def _generation(file: Path) -> int:
    return int(file.name.split("-")[1])


def _newest(folder: Path, part: str) -> list[Path]:
    """The files of the newest generation, by rank."""
    found = [(_NAME.fullmatch(file.name), file) for file in sorted(folder.iterdir())]
    mine = [file for match, file in found if match and match[1] == part and _world(file)]
    newest = max(map(_generation, mine), default=0)
    return [file for file in mine if _generation(file) == newest]


def _world(file: Path) -> int:
    """How many processes the file was one of; 0 where it cannot be read."""
    try:
        with safe_open(file, framework="np") as handle:
            told = handle.metadata() or {}
        return int(told["world"]) if told.get("format") == FORMAT else 0
    except (OSError, SafetensorError, KeyError, ValueError):
        return 0


def _remove_old(folder: Path, *, but: Path) -> None:
    """Evaluations that nobody went on with for a month."""
    oldest = time.time() - KEPT_DAYS * 86400
    for other in folder.iterdir():
        if other != but and other.is_dir() and other.stat().st_mtime < oldest and not files.is_held(other / _LOCK):
            files.remove_folder(other)
