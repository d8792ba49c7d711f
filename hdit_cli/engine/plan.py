"""What a run would cost, before it begins: the facts that `--dry-run` prints, by arithmetic alone."""

from pathlib import Path
from typing import Any

import torch

from hdit_cli import runtime
from hdit_cli.data.order import split
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.learning_rate import learning_rate
from hdit_cli.engine.model import build_network, class_count, count
from hdit_cli.engine.setup import DTYPES, check_fit
from hdit_cli.models import memory
from hdit_cli.recipe import Recipe


def plan(recipe: Recipe, *, data: Path, processes: int = 1) -> dict[str, Any]:
    """What a run would do, after the checks that a run makes; nothing is allocated and nothing written.

    Args:
        processes: that will share a batch.

    Raises:
        UsageError: recipe and data do not fit, or the batch cannot be shared.
        DataError: the data cannot be read.
    """
    reader = ShardReader(data)
    check_fit(recipe, reader)
    reader.picture(0)
    section = recipe.train
    slots = split(section.batch_size, world=processes, rank=0, accumulate=section.accumulate)
    device = runtime.device()
    return {
        **count(recipe, classes=len(reader.classes)),
        "images": len(reader),
        "classes": len(reader.classes) if recipe.model.classes else 0,
        "batch": section.batch_size,
        "processes": processes,
        "accumulate": section.accumulate,
        "micro_batch": len(slots[0]),
        "steps": section.steps,
        "steps_per_epoch": len(reader) / section.batch_size,
        "epochs": section.steps * section.batch_size / len(reader),
        "learning_rate": rates(recipe),
        "device": str(device),
        "memory": estimate(
            recipe, images=len(slots[0]), device=device.type, processes=processes, classes=len(reader.classes)
        ),
    }


def rates(recipe: Recipe) -> dict[str, Any]:
    """The learning rate's schedule, and its value at a few steps: the first, the end of the warm-up, halfway, the last."""
    section, steps = recipe.optimizer, recipe.train.steps
    factor = learning_rate(recipe)
    at = sorted({0, max(section.warmup - 1, 0), steps // 2, steps - 1})
    return {"schedule": section.schedule, "warmup": section.warmup, "at": {s: section.lr * factor(s) for s in at}}


def estimate(recipe: Recipe, *, images: int, device: str, processes: int = 1, classes: int = 0) -> dict[str, int]:
    """Bytes that tensors take on one device at the fullest moment of a training step, by `models.memory`.

    Args:
        images: of one micro-batch.
        device: "cpu", "cuda" or "mps".
        classes: of the data, where the recipe leaves them to it.

    Returns:
        weights, average, moments, exchange (what processes swap gradients in), gradients, activations and total. Gradients
        and activations are those of the fullest moment: as one grows the other shrinks. Where the update is fuller than any
        moment before it, activations are the differences that the average is moved by.
    """
    with torch.device("meta"):
        network = build_network(recipe, classes=class_count(recipe, classes=[""] * classes))
    dtype = DTYPES[recipe.train.precision]
    weights = sum(p.numel() for p in network.parameters()) * dtype.itemsize
    height, width = recipe.model.size
    setting = memory.Setting(
        images,
        (height, width),
        weights=dtype,
        autocast=recipe.train.precision == "bf16",
        device=device,
        accumulating=recipe.train.accumulate > 1,
    )
    fullest = memory.peak(network, setting)
    gradients, activations = fullest.gradients, fullest.activations
    if gradients + activations < 2 * weights:  # the update: all gradients, and one difference for each weight
        gradients, activations = weights, weights
    parts = {
        "weights": weights,
        "average": weights * (1 + len(recipe.ema.stds)),
        "moments": 2 * weights,
        "exchange": weights if processes > 1 else 0,
        "gradients": gradients,
        "activations": activations,
    }
    return {**parts, "total": sum(parts.values())}
