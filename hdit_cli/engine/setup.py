"""What a run is made of: a recipe held against its data, a new model, and the plan that `--dry-run` prints."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdit_cli import runtime
from hdit_cli.data.order import split
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import Model, build_network, class_count, count, precondition
from hdit_cli.errors import OutOfMemory, UsageError
from hdit_cli.recipe import Recipe

DTYPES = {"bf16": torch.float32, "fp32": torch.float32, "fp64": torch.float64}  # of the weights; bf16 is autocast


def check_fit(recipe: Recipe, reader: ShardReader) -> None:
    """Raises UsageError where the recipe and the data cannot go together."""
    wanted, found = list(recipe.model.size), list(reader.image_size)
    if wanted != found:
        raise UsageError(
            f"the recipe trains {wanted[0]}x{wanted[1]} images, the data set holds {found[0]}x{found[1]}",
            hint=f"`hdit prepare SRC --size {wanted[0]}x{wanted[1]}`, or --set model.size=[{found[0]},{found[1]}]",
        )
    if recipe.model.channels != 3:
        raise UsageError(f"model.channels is {recipe.model.channels}, pictures have 3", hint="--set model.channels=3")
    if recipe.model.mapping_inputs:
        raise UsageError(
            "model.mapping_inputs needs a condition vector with each picture, and a data set holds none",
            hint="train it through the Python API, or --set model.mapping_inputs=0",
        )
    classes, names = recipe.model.classes, reader.classes
    if classes == "data" and not names:
        raise UsageError("the recipe takes its classes from the data, which has none", hint="--set model.classes=0")
    if classes not in (0, "data", len(names)):
        raise UsageError(
            f"model.classes is {classes}, the data has {len(names)}",
            hint=f"--set model.classes={len(names) or 0}" if not names else "--set model.classes=data",
        )


def new_model(recipe: Recipe, reader: ShardReader, *, path: str) -> Model:
    """A new model on the CPU; its weights are a function of the seed."""
    torch.manual_seed(runtime.key(recipe.train.seed, "init") % 2**63)
    classes = reader.classes if recipe.model.classes else []
    network = build_network(recipe, classes=class_count(recipe, classes=classes))
    network.to(DTYPES[recipe.train.precision])
    data: dict[str, Any] = {"path": path, "fingerprint": reader.fingerprint}
    if classes:
        data["class_counts"] = np.bincount(reader.labels[reader.labels >= 0], minlength=len(classes)).tolist()
    return Model(precondition(network, recipe), recipe.to_dict(), classes, weights="raw", data=data)


def plan(recipe: Recipe, *, data: Path) -> dict[str, Any]:
    """What a run would do, after the checks that a run makes; nothing is allocated and nothing written.

    Raises:
        UsageError: recipe and data do not fit.
        DataError: the data cannot be read.
    """
    reader = ShardReader(data)
    check_fit(recipe, reader)
    reader.picture(0)
    section, here = recipe.train, runtime.ranks()
    slots = split(section.batch_size, world=here.world, rank=here.rank, accumulate=section.accumulate)
    facts = count(recipe, classes=len(reader.classes))
    return {
        **facts,
        "images": len(reader),
        "classes": len(reader.classes) if recipe.model.classes else 0,
        "batch": section.batch_size,
        "micro_batch": len(slots[0]),
        "steps": section.steps,
        "steps_per_epoch": len(reader) / section.batch_size,
        "epochs": section.steps * section.batch_size / len(reader),
        "bytes_of_weights_gradients_moments_average": facts["params"]
        * DTYPES[section.precision].itemsize
        * (5 + len(recipe.ema.stds)),
        "device": str(runtime.device()),
    }


def out_of_memory(recipe: Recipe) -> OutOfMemory:
    """What to say when a step does not fit: three switches, with values, that make it smaller."""
    section = recipe.train
    pieces = next(
        (a for a in range(section.accumulate * 2, section.batch_size) if section.batch_size % a == 0),
        section.batch_size,
    )
    third = f"train.batch_size={max(1, section.batch_size // 4)}"
    second = (
        "train.precision=bf16"
        if section.precision != "bf16"
        else f"sample.batch_size={max(1, recipe.sample.batch_size // 4)}"
    )
    return OutOfMemory(
        f"out of memory at batch {section.batch_size}, accumulate {section.accumulate}, precision {section.precision}",
        hint=f"what helps: --set train.accumulate={pieces} (the same batch in more pieces), --set {second}, or --set {third}",
    )
