"""Snapshots of a run's power-function averages: `ema/step-00001000/`, one inference file for each width and a manifest.

A snapshot is written as a checkpoint folder is: whole or not at all, every file's SHA-256 in its manifest. All are kept; any
other width is made of them afterwards (`posthoc`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hdit_cli import files
from hdit_cli.engine.run import header
from hdit_cli.engine.run.checkpoint import MANIFEST, Averages, check_publishable, step_name, steps_in, write_folder
from hdit_cli.errors import CheckpointError
from hdit_cli.recipe.sections import STD_MAX, STD_MIN

FOLDER = "ema"


@dataclass(frozen=True)
class EmaSnapshot:
    """A snapshot on the disk: `updates` is the time of its profiles, `by_std` its files."""

    step: int
    updates: int
    by_std: dict[float, Path]


def list_steps(run: Path) -> list[int]:
    """Steps that have a snapshot, ascending."""
    return steps_in(run / FOLDER)


def folder_of(run: Path, step: int) -> Path:
    """Where the snapshot of a step lies."""
    return run / FOLDER / step_name(step)


def write(run: Path, averages: Averages, *, step: int, proceed: Callable[[], None] = lambda: None) -> Path:
    """Writes the snapshot of a step.

    Args:
        proceed: called before each file; what it raises ends the writing, and no trace of it is left.

    Raises:
        NonFiniteError: a tensor holds NaN or infinity; nothing was written.
        StorageError: too little space (nothing was written), or the disk failed.
    """
    check_publishable(averages.tensors, step=step)
    target = folder_of(run, step)
    files.make_own_folder(target.parent)
    files.require_space(run, size=averages.size)
    facts = {"step": step, "updates": averages.updates, "stds": averages.stds}
    write_folder(target, averages.parts(), facts=facts, proceed=proceed)
    return target


def read(run: Path, step: int) -> EmaSnapshot:
    """What the manifest of a snapshot that verifies tells.

    Raises:
        CheckpointError: it tells no widths.
    """
    folder = folder_of(run, step)
    told = json.loads(files.read_regular(folder / MANIFEST, most=header.LARGEST))
    updates, stds = told.get("updates"), told.get("stds")
    known = isinstance(stds, dict) and stds.keys() <= told["files"].keys()
    if not (known and stds and header.is_count(updates) and all(map(_is_width, stds.values()))):
        raise CheckpointError(
            f"{folder / MANIFEST} tells no widths of averages", hint="restore it, or remove its folder"
        )
    return EmaSnapshot(step, updates, {float(std): folder / name for name, std in stds.items()})


def _is_width(value: Any) -> bool:
    return isinstance(value, float) and STD_MIN <= value <= STD_MAX


def cut(run: Path, *, after: int) -> None:
    """Removes snapshots of later steps than `after`: a run that goes on from there makes them again."""
    for step in list_steps(run):
        if step > after:
            files.remove_folder(folder_of(run, step))
