"""What a run is made of: a recipe held against its data, a new model, the accelerator."""

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from hdit_cli import runtime
from hdit_cli.data.reader import ShardReader
from hdit_cli.engine.model import Model, build_network, class_count, precondition
from hdit_cli.errors import UsageError
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


def new_accelerator(recipe: Recipe) -> Accelerator:
    """Device placement, autocast and the exchange of gradients, as `train.precision` and the machine ask for."""
    precision = "bf16" if recipe.train.precision == "bf16" else "no"
    cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    return Accelerator(cpu=cpu, mixed_precision=precision)
