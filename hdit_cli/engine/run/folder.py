"""The run folder: recipe, logs, and the rule what may change when a run goes on."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe, diff
from hdit_cli.recipe.source import parse, read_text

# a resumed run may differ in these: they say when to stop, what to write down and how a step is cut into pieces that fit
MAY_CHANGE = (
    "name",
    "data.path",  # the fingerprint must stay
    "codec.path",  # likewise
    "task.perceptual:",  # likewise
    "data.workers",
    "train.steps",  # unless the learning rate follows a curve that ends there
    "train.accumulate",  # like the number of processes: the same losses but for rounding and dropout
    "train.compile",  # the same losses but for rounding
    "train.save_every",
    "train.sample_every",
    "train.log_every",
    "train.keep",
    "train.stop_after",
    "train.shard",  # where weights lie, not what they are
    "ema.snapshot_every",
    "optimizer.lr:",  # told and logged: a common thing to turn down by hand
    "train.nonfinite",  # and its cap: decide about steps that have not been
    "sample.",
    "eval.",
    "validation.",
    "log.",
)
_TRACKERS = ("tensorboard", "wandb")  # folders that these packages write to
VALIDATION, GRIDS = "validation", "grids"  # what a step may owe, where it was broken off
_VALIDATED = 4  # lines of a validation: two weights, two sets of pictures
_CHECKPOINTING = re.compile(r"model\.(.+\.)?checkpoint:")  # the same values, computed again


def _may_change(line: str, recipe: Recipe) -> bool:
    """Whether a run may go on under this difference, a line of `diff`."""
    if line.startswith("train.steps:") and recipe.optimizer.schedule == "cosine":
        return False
    return line.startswith(MAY_CHANGE) or _CHECKPOINTING.match(line) is not None


def differences(old: dict[str, Any], recipe: Recipe) -> list[str]:
    """What makes `recipe` another training than the one that `old` was written for, perhaps by an earlier version."""
    with suppress(UsageError):  # keys younger than the run have the values they stand for when left out
        old = Recipe.from_dict(old).to_dict()
    return [line for line in diff(old, recipe.to_dict()) if not _may_change(line, recipe)]


class RunFolder:
    """One run's folder. Everything in it is written through `files`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.validation_file = path / "validation.jsonl"
        self.timing_file = path / "timing.jsonl"
        self.reproducible = (self.metrics_file, self.validation_file)  # logs that are functions of the seed
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self.averages = path / "ema"
        self.folders = (self.samples, self.checkpoints)

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises UsageError, with the differences, if the folder's recipe computes something else than `recipe`."""
        if not self.recipe_file.is_file():
            return
        try:
            old = parse(read_text(self.recipe_file), label=self.recipe_file.name).values
        except UsageError as error:
            raise UsageError(
                f"{self.recipe_file} cannot be read: {error.message}", hint="restore it, or use --fresh"
            ) from error
        if not any(self.checkpoints.glob("step-*")):  # nothing to go on from, so nothing that must fit
            return
        changed = differences(old, recipe)
        if changed == [line for line in changed if line.startswith("train.steps:")] != []:
            raise UsageError(
                f"with optimizer.schedule=cosine every learning rate of {self.path} depends on {changed[0]}",
                hint="undo the change, or start over with --fresh (the old run is kept)",
            )
        if changed:
            raise UsageError(
                f"the recipe differs from the one {self.path} was started with:\n    " + "\n    ".join(changed),
                hint="undo the change, choose another --run, or start over with --fresh (the old run is kept)",
            )

    def refuse_links(self) -> None:
        """Raises UsageError where a log, the lock or a folder inside the run is a link; the run folder itself may be one."""
        files.refuse_link(self.path / ".lock", self.timing_file, *self.reproducible)
        files.refuse_link(*self.folders, self.averages, *(self.path / name for name in _TRACKERS))

    def start(self, recipe: Recipe) -> None:
        """Creates the folders and writes the resolved recipe; call it under the lock."""
        self.refuse_links()
        for folder in (self.path, *self.folders):
            files.make_folder(folder)
        for folder in (self.path, *self.folders, self.averages):
            files.reap(folder)
        for file in (self.timing_file, *self.reproducible):
            files.unshare(file)
        files.write_text(self.recipe_file, recipe.to_toml())

    def still_owed(self, owed: Sequence[str], *, step: int) -> list[str]:
        """Of what a checkpoint says its step owes, what the folder does not hold: an earlier start may have done it."""
        done = set()
        if all((self.samples / f"step-{step:08d}-{name}.png").is_file() for name in ("raw", "ema")):
            done.add(GRIDS)
        if VALIDATION in owed and self.validation_file.is_file():
            last = self.validation_file.read_text(encoding="utf-8").splitlines()[-_VALIDATED:]
            if len(last) == _VALIDATED and all(line.startswith(f'{{"step": {step}, ') for line in last):
                done.add(VALIDATION)
        return [what for what in owed if what not in done]

    def log_sizes(self) -> dict[str, int]:
        """Bytes of each log that is a function of the seed."""
        return {file.name: file.stat().st_size for file in self.reproducible if file.is_file()}

    def sync_logs(self) -> None:
        """Makes these logs durable; before a checkpoint is written, which must never know more than the disk."""
        for file in self.reproducible:
            if file.is_file():
                files.sync_file(file)

    def cut_logs(self, sizes: Mapping[str, int], *, keep: str = "") -> None:
        """Removes lines written after the checkpoint that the run goes on from; they will be written again.

        Args:
            sizes: what `log_sizes` gave for that checkpoint; empty for a run that starts over.
            keep: the log that ends where it should.
        """
        for file in self.reproducible:
            if file.name != keep and file.is_file() and file.stat().st_size > sizes.get(file.name, 0):
                files.truncate(file, sizes.get(file.name, 0))

    def log_metrics(self, values: dict[str, Any]) -> None:
        files.append_line(self.metrics_file, json.dumps(values))

    def log_validation(self, values: dict[str, Any]) -> None:
        files.append_line(self.validation_file, json.dumps(values))

    def log_timing(self, values: dict[str, Any]) -> None:
        files.append_line(self.timing_file, json.dumps(values))


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a CKPT argument lies in; None for a file by itself."""
    place = files.real_path(checkpoint)
    return next((p for p in (place, *place.parents[:3]) if p.is_dir() and (p / "recipe.toml").is_file()), None)


def set_aside(path: Path) -> Path | None:
    """Moves a run folder to `<run>.old-N`, the first N that is free; None where there was none.

    Raises:
        UsageError: it is in use: a process that trains there would go on in whatever folder has the name.
    """
    if not path.exists():
        return None
    number = 1
    while (target := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    with files.lock(path / ".lock", what=f"run {path}") if path.is_dir() else nullcontext():
        files.rename(path, target)
    return target
