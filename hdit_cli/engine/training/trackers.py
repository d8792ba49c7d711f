"""TensorBoard and Weights & Biases, through Accelerate's tracker classes: they watch a run's events, and change nothing.

They get what `metrics.jsonl`, `validation.jsonl` and `timing.jsonl` say, and the grids. They write their files by
themselves, on the main process: TensorBoard into `RUN/tensorboard`, W&B into `RUN/wandb`. A tracker that fails is warned
about and left out for the rest of the run. A run that goes on goes on in the same curves: TensorBoard hides what came
after the checkpoint, W&B finds its run by the id in `RUN/wandb.json` and keeps the lines it has.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from accelerate import tracking
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image

from hdit_cli import files
from hdit_cli.engine.run.events import Drawn, Evaluated, Event, Logged, Started, Stepped, Validated, Warned
from hdit_cli.errors import HditError, UsageError
from hdit_cli.recipe import Recipe, without_folders

_INSTALLED: dict[str, Callable[[], bool | None]] = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
}
_WANDB_ID = "wandb.json"


def check_trackers(recipe: Recipe) -> None:
    """Raises UsageError where the recipe names a tracker that is not installed."""
    missing = [name for name in recipe.log.trackers if not _INSTALLED[name]()]
    if missing:
        raise UsageError(
            f"log.trackers names {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint=f"pip install 'hdit-cli[{','.join(missing)}]', or --set log.trackers=[]",
        )


class Trackers:
    """Call it with each event of a run. Use it as a context: leaving it closes what is open.

    Args:
        folder: the run folder; it must exist when the first event comes.
        recipe: validated and resolved.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.step, self.rate = 0, 0.0
        self.open: dict[str, tracking.GeneralTracker] = {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in self._each(lambda name, tracker: tracker.finish()):
            pass  # the run is over: nobody is left to warn

    def __call__(self, event: Event) -> list[Warned]:
        """Passes an event on; returns what went wrong.

        Raises:
            UsageError: a tracker cannot start; nothing was trained.
        """
        match event:
            case Started(step=step, steps=steps):
                self.step = step
                if step < steps:
                    self.start()
            case Stepped(step=step, images_per_second=rate):
                self.step, self.rate = step, rate
            case Logged(values=values):
                return self.log({**_scalars(values), "speed/images_per_second": self.rate})
            case Validated(lines=lines):
                return self.log(_validation_scalars(lines))
            case Evaluated(lines=lines):
                return self.log(_evaluation_scalars(lines))
            case Drawn(path=path):
                return self.picture(path)
        return []

    def start(self) -> None:
        """Opens every tracker of the recipe.

        Raises:
            UsageError: one of them cannot start.
        """
        for name in self.recipe.log.trackers:
            try:
                self.open[name] = self._tensorboard() if name == "tensorboard" else self._wandb()
            except HditError:
                raise
            except Exception as error:  # of a foreign package: no key, no network, no permission, ...
                hint = "--set log.trackers=[] trains without"
                if name == "wandb":
                    hint = f"`wandb login`, or WANDB_MODE=offline in the environment; {hint}"
                raise UsageError(f"{name} cannot start: {_sentence(error)}", hint=hint) from error

    def _tensorboard(self) -> tracking.GeneralTracker:
        # what an interrupted run wrote after its checkpoint is hidden; the grid and validation of step 0 come before a step
        purge = self.step + 1 if self.step else 0
        tracker = tracking.TensorBoardTracker("tensorboard", logging_dir=self.folder, purge_step=purge)
        tracker.start()
        if not self.step:
            tracker.log({"recipe": "".join(f"    {line}\n" for line in self.recipe.to_toml().splitlines())}, step=0)
        return tracker

    def _wandb(self) -> tracking.GeneralTracker:
        path = self.folder / _WANDB_ID
        if not path.is_file():
            files.write_json(path, {"id": secrets.token_hex(8)})
        tracker = tracking.WandBTracker(
            "hdit",  # the project
            name=files.real_path(self.folder).name,
            id=json.loads(path.read_bytes())["id"],
            resume="allow",
            dir=str(self.folder),
        )
        tracker.start()
        tracker.store_init_configuration(without_folders(self.recipe.to_dict()))  # it goes to a server
        return tracker

    def log(self, values: dict[str, float]) -> list[Warned]:
        """Numbers at the step of the newest event."""
        return [*self._each(lambda name, tracker: tracker.log(values, step=self.step))]

    def picture(self, path: Path) -> list[Warned]:
        """A grid at the step of the newest event."""
        name = f"samples/{path.stem.rpartition('-')[2]}"

        def show(kind: str, tracker: tracking.GeneralTracker) -> None:
            with Image.open(path, formats=("PNG",)) as image:
                pixels = np.asarray(image.convert("RGB"))
            layout = {"dataformats": "NHWC"} if kind == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=self.step, **layout)  # type: ignore[attr-defined]

        return [*self._each(show)]

    def _each(self, do: Callable[[str, tracking.GeneralTracker], None]) -> Iterator[Warned]:
        """Does something with each open tracker; one that fails is warned about and dropped: training matters more."""
        for name, tracker in list(self.open.items()):
            try:
                do(name, tracker)
            except Exception as error:  # of a foreign package
                del self.open[name]
                yield Warned(f"{name} failed and gets nothing more from this run: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _scalars(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl; what is not known is left out."""
    plain = {f"train/{name}": v for name, v in values.items() if isinstance(v, (int, float)) and name != "step"}
    by_sigma = {f"train-by-sigma/{sigma:.3g}": loss for sigma, loss in values.get("loss_by_sigma", [])}
    return {**plain, **by_sigma}


def _evaluation_scalars(lines: list[dict[str, Any]]) -> dict[str, float]:
    told = [line["eval"] for line in lines]
    return {f"eval/{name}-{each['weights']}": value for each in told for name, value in each["scores"].items()}


def _validation_scalars(lines: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float | None] = {}
    for line in lines:
        name = f"{line['split']}-{line['weights']}"
        found[f"validation/{name}"] = line["mean"]
        others = line.keys() - {"step", "images", "n", "mean"}
        found |= {
            f"validation-{each}/{name}": line[each] for each in sorted(others) if isinstance(line[each], (int, float))
        }
        for sigma, loss in zip(line["sigmas"], line["loss"], strict=True):
            found[f"validation-by-sigma/{name}/{sigma:.3g}"] = loss
    return {name: value for name, value in found.items() if value is not None}
