"""What a report says: facts of run folders as one JSON value. A run may be empty, damaged, or training at this moment."""

import json
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hdit_cli import __version__, files
from hdit_cli.engine.model import count
from hdit_cli.engine.report import curves
from hdit_cli.engine.report.logs import Axes, Log, exact, newest_of_each_step, number, parted, read_json, read_log
from hdit_cli.engine.report.pictures import grids
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.folder import RunFolder
from hdit_cli.engine.run.header import read_facts
from hdit_cli.engine.scoring.evaluate import SCORES
from hdit_cli.engine.training.beginning import read_record
from hdit_cli.errors import HditError, UsageError
from hdit_cli.recipe import Recipe, flat, load_recipe, named, shipped, without_folders

FORMAT = "hdit-report/1"
_DEPTH = 3  # of runs below a folder that is named: runs/sweep/seed-1


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """All that the page shows.

    Args:
        folders: run folders; one named twice counts once.

    Raises:
        UsageError: a folder is not a run.
    """
    chosen = {files.real_path(folder): folder for folder in folders}
    for folder in chosen.values():
        _check(folder)
    names = _names(list(chosen))
    typed = chosen.values()  # as the user named them: a page that is sent on tells nothing of the home folder
    runs = [_run(RunFolder(folder), name=name, runs=len(chosen)) for folder, name in zip(typed, names, strict=True)]
    made = {"date": time.strftime("%Y-%m-%d %H:%M"), "hdit": __version__}
    return {"format": FORMAT, "made": made, "runs": runs}


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The runs that are named, and all runs below a folder that is none itself.

    Raises:
        UsageError: a folder is neither a run nor holds any.
    """
    found: list[Path] = []
    for folder in folders:
        below = [] if _is_run(folder) else _below(folder, depth=_DEPTH)
        if not below:
            _check(folder)
        found += below or [folder]
    return found


def _is_run(folder: Path) -> bool:
    run = RunFolder(folder)
    return run.recipe_file.is_file() or run.metrics_file.is_file() or run.checkpoints.is_dir()


def _below(folder: Path, *, depth: int) -> list[Path]:
    """Run folders inside a folder, by name; hidden folders, and what lies in a run, are not looked into."""
    try:
        inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    found = []
    for entry in inside:
        if _is_run(entry):
            found.append(entry)
        elif depth > 1:
            found += _below(entry, depth=depth - 1)
    return found


def any_held(folders: Sequence[Path]) -> bool:
    """Whether the process that trained last in one of the runs is alive."""
    return any(files.is_held(folder / ".lock") for folder in runs_in(folders))


def signature(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of what a page is made of: it differs where a run has written something."""
    found = []
    for folder in runs_in(folders):
        run = RunFolder(folder)
        logs = (run.metrics_file, run.validation_file, run.timing_file, run.path / SCORES, run.recipe_file)
        for path in (*logs, run.samples, run.checkpoints):
            with suppress(OSError):
                facts = path.stat()
                found.append((str(path), facts.st_size, facts.st_mtime_ns))
    return found


def _check(folder: Path) -> None:
    run = RunFolder(folder)
    if not folder.is_dir():
        raise UsageError(f"no run folder {folder}", hint="`hdit train` makes one, by default runs/<recipe name>")
    if not any(path.exists() for path in (run.recipe_file, run.metrics_file, run.samples, run.checkpoints)):
        hint = (
            "a prepared data set is not a run" if (folder / "manifest.json").is_file() else "give the folder of a run"
        )
        raise UsageError(f"{folder} is not a run: no recipe.toml, logs, samples or checkpoints", hint=hint)


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path; more parts where two are equal."""
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]).replace("//", "/") for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _run(run: RunFolder, *, name: str, runs: int) -> dict[str, Any]:
    notes: list[str] = []
    recipe, values = _recipe(run, notes)
    header = _header(run, notes)
    logs = {
        kind: read_log(path)
        for kind, path in {
            "metrics": run.metrics_file,
            "timing": run.timing_file,
            "validation": run.path / "validation.jsonl",
            "scores": run.path / SCORES,
        }.items()
    }
    trained, evaluated = parted(logs["metrics"].lines)
    metrics, timing = newest_of_each_step(trained), newest_of_each_step(logs["timing"].lines)
    axes = Axes(metrics, logs["timing"].lines, batch_size=recipe.train.batch_size if recipe else None)
    if not metrics and logs["metrics"].found:
        notes.append("metrics.jsonl holds no line yet")
    elif not metrics:
        notes.append("no metrics.jsonl: no step was logged yet")
    shown = grids(run.samples, runs=runs)
    notes += [note for log in logs.values() for note in log.notes] + shown.pop("notes")
    return {
        "name": name,
        "path": str(run.path),
        "summary": {**_summary(run, recipe, header, logs=logs, axes=axes), "init": _init(run, notes)},
        "notes": notes,
        "log": curves.log(metrics, axes),
        "sigma": curves.sigma(metrics, axes),
        "timing": curves.timing(timing, axes),
        "validation": curves.validation(logs["validation"].lines, axes),
        "grids": shown,
        "scores": curves.scores([*evaluated, *logs["scores"].lines], axes),
        "recipe": flat(without_folders(values)),
        "base": _base(recipe),
        "environment": _environment(run),
    }


def _recipe(run: RunFolder, notes: list[str]) -> tuple[Recipe | None, dict[str, Any]]:
    """The run's recipe, and its values complete; as they stand where this version does not understand them."""
    try:
        values = tomllib.loads(run.recipe_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append("no recipe.toml")
        return None, {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"recipe.toml cannot be read: {error}"[:200])
        return None, {}
    try:
        recipe = Recipe.from_dict(values)
    except HditError as error:
        notes.append(f"recipe.toml is not a recipe of this version: {' '.join(error.message.split())}"[:300])
        return None, json.loads(json.dumps(values, default=str))
    return recipe, recipe.to_dict()


def _header(run: RunFolder, notes: list[str]) -> dict[str, Any]:
    """What the newest inference file says of itself; empty where there is none."""
    path = run.path / "ckpt.safetensors"
    if not path.exists():
        notes.append("no ckpt.safetensors: no checkpoint was saved yet")
        return {}
    try:
        told = read_facts(checkpoint.read_header(path), where=path.name)
        return {"step": told.step, "classes": told.classes, "data": told.data}
    except HditError as error:
        notes.append(f"ckpt.safetensors cannot be read: {error.message}"[:200])
        return {}


def _summary(
    run: RunFolder, recipe: Recipe | None, header: dict[str, Any], *, logs: dict[str, Log], axes: Axes
) -> dict[str, Any]:
    """The facts at the head of the page; None for what nobody wrote down."""
    classes, counts = header.get("classes", []), header.get("data", {}).get("class_counts")
    last = max([header.get("step", 0), *(line["step"] for line in logs["metrics"].lines)])
    section = recipe.train if recipe else None
    size, images = (recipe.model.size if recipe else None), axes.columns([last])["images"][0]
    counted = count(recipe, classes=len(classes)) if recipe else {}
    rates = [rate for line in logs["timing"].lines if (rate := number(line.get("images_per_second")))]
    peaks = [peak for line in logs["timing"].lines if (peak := exact(line.get("peak_bytes")))]
    times = [moment for line in logs["timing"].lines if (moment := exact(line.get("time")))]
    dataset = sum(counts) if isinstance(counts, list) and all(isinstance(n, int) for n in counts) else None
    return {
        "state": _state(run, last=last, steps=section.steps if section else None),
        "step": last,
        "steps": section.steps if section else None,
        "images": images,
        "pictures": dataset,
        "epochs": number(images / dataset) if images and dataset else None,
        "classes": classes,
        "unconditional": recipe is not None and recipe.model.classes == 0,
        "params": counted.get("params"),
        "gmacs": number(counted.get("gmacs")),
        "size": list(size) if size else None,
        "batch_size": section.batch_size if section else None,
        "precision": section.precision if section else None,
        "rate": sorted(rates)[len(rates) // 2] if rates else None,
        "peak_bytes": max(peaks) if peaks else None,
        "trained_seconds": number(axes.seconds) if rates else None,
        "wall_seconds": number(max(times) - min(times)) if len(times) > 1 else None,
        "last_time": max(times) if times else None,
    }


def _init(run: RunFolder, notes: list[str]) -> str | None:
    """What the run started from, in words; None where it started from nothing."""
    try:
        record = read_record(run.path)
    except (UsageError, OSError):
        notes.append("init.json cannot be read: what this run started from is not known")
        return None
    if record is None:
        return None
    source = record["source"]
    return f"{named(source['path'])}, {source['weights']} weights of step {source['step']}"


def _state(run: RunFolder, *, last: int, steps: int | None) -> str:
    """finished, training, stopped or empty."""
    if steps is not None and last >= steps:
        return "finished"
    if files.is_held(run.path / ".lock"):
        return "training"
    return "stopped" if last else "empty"


def _base(recipe: Recipe | None) -> dict[str, Any] | None:
    """The shipped recipe of the same name, to show what was changed in a single run; None where there is none."""
    if recipe is None:
        return None
    name = next((name for name in shipped() if name.rpartition("/")[2] == recipe.name), None)
    return {"name": name, "recipe": flat(without_folders(load_recipe(name).to_dict()))} if name else None


def _environment(run: RunFolder) -> list[dict[str, Any]]:
    """What the checkpoints say of machine and versions, each change of it with its first step."""
    found: list[dict[str, Any]] = []
    for step in checkpoint.list_steps(run.path):
        told = read_json(run.checkpoints / checkpoint.step_name(step) / "state.json").get("environment")
        if not isinstance(told, dict):
            continue
        entry = {str(key): str(value) for key, value in told.items()}
        if not found or found[-1]["environment"] != entry:
            found.append({"step": step, "environment": entry})
    return found
