"""The bytes that a training step takes, by formula: what a plan prints, and what a message about too little memory says."""

import torch

from hdit_cli.engine.model import DTYPES, build_network, class_count
from hdit_cli.models import memory
from hdit_cli.recipe import Recipe


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
