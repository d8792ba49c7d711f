"""What a run would cost, before it begins: the facts that `--dry-run` prints, without a step."""

from pathlib import Path
from typing import Any

from hdit_cli import runtime
from hdit_cli.data.order import split
from hdit_cli.engine.memory.estimate import estimate
from hdit_cli.engine.model import count
from hdit_cli.engine.training.learning_rate import learning_rate
from hdit_cli.engine.training.setup import at_largest, open_data, picture_size
from hdit_cli.engine.training.trackers import check_trackers
from hdit_cli.engine.training.validate import open_held_out
from hdit_cli.recipe import Recipe


def plan(recipe: Recipe, *, data: Path, processes: int = 1) -> dict[str, Any]:
    """What a run would do, after the checks that a run makes; nothing is allocated and nothing written.

    Args:
        processes: that will share a batch.

    Raises:
        UsageError: recipe and data do not fit, the batch cannot be shared, or a tracker is not installed.
        DataError: the data cannot be read.
    """
    reader = open_data(recipe, data)
    check_trackers(recipe)
    held_out = open_held_out(recipe, reader)
    reader.picture(0)
    section = recipe.train
    slots = split(section.batch_size, world=processes, rank=0, accumulate=section.accumulate)
    device = runtime.device()
    return {
        **count(recipe, classes=len(reader.classes)),
        "images": len(reader),
        "sizes": [[*size] for size in reader.sizes] if reader.buckets else [[*picture_size(recipe)]],
        "held_out": len(held_out) if held_out is not None else 0,
        "classes": len(reader.classes) if recipe.model.classes else 0,
        "batch": section.batch_size,
        "processes": processes,
        "accumulate": section.accumulate,
        "shard": section.shard and processes > 1,
        "micro_batch": len(slots[0]),
        "steps": section.steps,
        "steps_per_epoch": len(reader) / section.batch_size,
        "epochs": section.steps * section.batch_size / len(reader),
        "learning_rate": rates(recipe),
        "device": str(device),
        "memory": estimate(
            at_largest(recipe, reader),
            images=len(slots[0]),
            device=device.type,
            processes=processes,
            classes=len(reader.classes),
        ),
    }


def rates(recipe: Recipe) -> dict[str, Any]:
    """The learning rate's schedule, and its value at a few steps: the first, the end of the warm-up, halfway, the last."""
    section, steps = recipe.optimizer, recipe.train.steps
    factor = learning_rate(recipe)
    at = sorted({0, max(section.warmup - 1, 0), steps // 2, steps - 1})
    return {"schedule": section.schedule, "warmup": section.warmup, "at": {s: section.lr * factor(s) for s in at}}
