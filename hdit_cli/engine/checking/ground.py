"""What every check stands on: a device, a folder that goes when the check ends, small recipes, a small data set, a small run."""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hdit_cli import files, runtime
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.engine.memory.out_of_memory import changed
from hdit_cli.engine.run.events import Event
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import Interrupted, StorageError
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.recipe.recipe import DEFAULT_NETWORK
from hdit_cli.recipe.source import shipped

_NAME = "hdit-check"
_PICTURES, _SIDE = 8, 32
STEPS, SAVED = 4, 2  # of the small run, and where its first checkpoint lies


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        text: one sentence.
        numbers: for JSON.
        wrong: one sentence where something is not as it must be, else "".
        hint: what to do then.
        skipped: nothing was checked; `text` says why.
    """

    text: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""
    hint: str = ""
    skipped: bool = False


class Ground:
    """Where checks run.

    Args:
        folder: to write to.
        device: to check.
        tell: hears what is done next.
    """

    def __init__(self, folder: Path, device: torch.device, *, tell: Callable[[str], None] = lambda text: None) -> None:
        self.folder, self.device, self.tell = folder, device, tell

    @cached_property
    def data(self) -> Path:
        """A prepared data set of eight pictures in two classes."""
        source, out = self.folder / "pictures", self.folder / "data"
        generator = np.random.default_rng(0)
        for number in range(_PICTURES):
            pixels = generator.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            path = source / f"class {number % 2}" / f"{number}.png"
            files.make_folder(path.parent)
            files.write_bytes(path, stream.getvalue())
        prepare(source, out=out, options=PrepareOptions(size=(_SIDE, _SIDE)), workers=1)
        return out

    @property
    def run_recipe(self) -> Recipe:
        """Of the small run: four steps, a checkpoint after the second and the last, the same bits each time."""
        return changed(
            small_recipes()[DEFAULT_NETWORK],
            {
                "train.steps": STEPS, "train.save_every": SAVED, "train.sample_every": 0, "train.log_every": 1,
                "train.batch_size": 4, "train.precision": "fp32", "train.deterministic": True, "train.compile": False,
                "optimizer.warmup": 0, "data.workers": 0,
            },
        )  # fmt: skip

    def train(self, name: str, *, watch: Callable[[Event], None] = lambda event: None) -> Path:
        """Trains the small run in a folder of that name, or goes on with it.

        Raises:
            Interrupted: a signal came, at which a run stops and saves.
        """
        run = self.folder / name
        fresh_accelerate()
        before = torch.are_deterministic_algorithms_enabled()
        try:
            finished = train(run, self.run_recipe, data=self.data, watch=watch)
        finally:
            runtime.set_deterministic(before)
        if finished.stopped_by:
            raise Interrupted("interrupted", hint="the same command starts again")
        return run

    @cached_property
    def unbroken(self) -> Path:
        """The small run, trained in one go."""
        return self.train("unbroken")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder among the system's temporary files, which goes with all that is in it when the block ends, however it ends.

    What a check left that was killed goes at the next one.

    Raises:
        StorageError: there is no such folder.
    """

    class Over(Exception):
        pass

    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        hint = "set TMPDIR to a folder with 100 MB of room"
        raise StorageError("no folder for temporary files can be written to", hint=hint) from error
    files.reap(place, of=_NAME)
    with suppress(Over), files.staged_folder(place / _NAME) as folder:
        yield folder
        raise Over  # a staged folder that does not end well is removed


def small_recipes() -> dict[str, Recipe]:
    """A shipped recipe that trains in seconds for each type of network."""
    found: dict[str, Recipe] = {}
    for name in shipped():
        if name.startswith("smoke/"):
            recipe = load_recipe(name)
            found.setdefault(recipe.model.type, recipe)
    return found


def fresh_accelerate() -> None:
    """Lets the next `Accelerator` have another precision: it is one for a process, and a command has only one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
