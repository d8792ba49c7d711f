"""What a run is told before its first step: what it is, and what its user may not have meant."""

import json
from pathlib import Path

from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.checkpoint import read_header
from hdit_cli.engine.events import Started
from hdit_cli.engine.model import Model, count
from hdit_cli.recipe import Recipe


def started(
    recipe: Recipe, reader: ShardReader, *, model: Model, step: int, local: int, world: int, held_out: int
) -> Started:
    """The facts of a run.

    Args:
        step: that it goes on from.
        local: images that one process takes at a time.
        world: number of processes.
        held_out: pictures to validate on.
    """
    section = recipe.train
    words = [
        f"{world} processes" if world > 1 else "",
        str(local),
        f"accumulate {section.accumulate}" if section.accumulate > 1 else "",
    ]
    facts = count(recipe, classes=len(reader.classes))
    return Started(
        params=facts["params"],
        gmacs=facts["gmacs"],
        images=len(reader),
        classes=model.network.classes,
        split=f"batch {section.batch_size} = {' x '.join(word for word in words if word)}",
        device=str(model.device),
        step=step,
        steps=section.steps,
        class_names=tuple(model.classes),
        held_out=held_out,
        buckets=len(reader.buckets),
    )


def notes(recipe: Recipe, reader: ShardReader) -> list[str]:
    """What recipe and data do not use of each other."""
    if recipe.model.classes == 0 and len(reader.classes) > 1:
        return [
            f"the data has {len(reader.classes)} classes, and this recipe trains without them; "
            "--set model.classes=data in a run of its own (--run DIR) learns them"
        ]
    return []


def changed_rate(checkpoint: Path, recipe: Recipe) -> float | None:
    """The learning rate of the recipe in a checkpoint folder, where it is now another one."""
    before = json.loads(read_header(checkpoint / "model.safetensors")["hdit.recipe"])["optimizer"]["lr"]
    return None if before == recipe.optimizer.lr else before
