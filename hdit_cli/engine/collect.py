"""A set of samples on the disk: pictures, a grid, and the `samples.json` that makes them again."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hdit_cli import files, runtime
from hdit_cli.engine.generate import Sampling, check, choose_labels, stream
from hdit_cli.engine.grid import grid_png, picture_png
from hdit_cli.engine.load import find, open_source
from hdit_cli.engine.model import Model
from hdit_cli.errors import CheckpointError, UsageError

FORMAT = "hdit-samples/1"
RECORD = "samples.json"


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        checkpoint: inference file or run folder.
        n: number of images; None is 16, or 8 of each class for "all".
        label: class name, number, "all", or None for the proportions of the data.
    """

    checkpoint: str
    sampling: Sampling
    n: int | None = None
    label: str | None = None
    weights: str = "ema"


def sampling_of(model: Model, **wanted: Any) -> Sampling:
    """The recipe's defaults of sampling under what the user asked for; None means not asked."""
    section = model.recipe["sample"]
    defaults = {name: section[name] for name in ("steps", "sampler", "schedule", "eta", "rho", "cfg", "batch_size")}
    return Sampling(**{**defaults, **{name: value for name, value in wanted.items() if value is not None}})


def image_count(model: Model, order: Order) -> int:
    """Number of images of an order."""
    if order.n is not None:
        return order.n
    return 8 * model.network.classes if order.label == "all" and model.network.classes else 16


def read_order(path: Path) -> tuple[Order, str]:
    """An order as `samples.json` records it, and the SHA-256 of its checkpoint.

    Raises:
        UsageError: the file is not such a record.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}")
        values = record["sampling"]
        pairs = {name: tuple(values[name]) for name in ("cfg_interval", "size") if values[name] is not None}
        sampling = replace(Sampling(**{k: v for k, v in values.items() if k not in pairs}), **pairs)
        order = Order(record["checkpoint"], sampling, record["n"], record["label"], record["weights"])
        return order, record["checkpoint_sha256"]
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="give the samples.json of an earlier sampling"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a record of samples: {error}", hint="give a samples.json that hdit wrote"
        ) from error


def load_for(order: Order, *, sha256: str = "") -> tuple[Model, str]:
    """The model of an order and the SHA-256 of its file.

    Raises:
        CheckpointError: it cannot be loaded, or is another file than the one recorded.
    """
    source = find(Path(order.checkpoint), weights=order.weights)
    model = open_source(source, weights=order.weights)
    found = source.sha256()
    if sha256 and found != sha256:
        raise CheckpointError(
            f"{source} is not the checkpoint these samples were made with",
            hint="the run has gone on; find the older file",
        )
    return model, found


def collect(
    model: Model,
    order: Order,
    *,
    out: Path,
    sha256: str,
    on_step: Callable[[int], None] | None = None,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Makes the images of an order and writes `00000.png` …, `grid.png` and `samples.json` into `out`.

    With several processes each makes its share; the first writes grid and record when all are done.

    Returns:
        the record.

    Raises:
        UsageError: the order does not fit the model.
        NonFiniteError: the model returned NaN or infinity.
    """
    check(model, order.sampling)
    here = runtime.ranks()
    n = image_count(model, order)
    labels = choose_labels(model, n=n, wanted=order.label, seed=order.sampling.seed)
    mine: dict[int, np.ndarray] = {}
    files.make_folder(out)
    for batch, images in stream(
        model, indices=range(here.rank, n, here.world), labels=labels, sampling=order.sampling, on_step=on_step
    ):
        for i, image in zip(batch, images.numpy(), strict=True):
            files.write_bytes(out / f"{i:05d}.png", picture_png(image))
            mine[i] = image
        if on_images is not None:
            on_images(len(batch))
    pictures = {i: image for part in runtime.gather(mine) for i, image in part.items()}
    names = None if labels is None else [class_name(model, int(label)) for label in labels]
    record = {
        "format": FORMAT,
        "checkpoint": order.checkpoint,
        "checkpoint_sha256": sha256,
        "weights": model.weights,
        "step": model.step,
        "n": n,
        "label": order.label,
        "sampling": asdict(order.sampling),
        "images": [{"file": f"{i:05d}.png", "index": i, **({"class": names[i]} if names else {})} for i in range(n)],
        "environment": runtime.environment(),
    }
    if here.is_main:
        columns = (
            n // model.network.classes if order.label == "all" and n % max(model.network.classes, 1) == 0 else None
        )
        stacked = np.stack([pictures[i] for i in range(n)])
        files.write_bytes(out / "grid.png", grid_png(stacked, labels=names, columns=columns))
        files.write_json(out / RECORD, record)
    return record


def class_name(model: Model, label: int) -> str:
    """Name of a label; its number where the model has no names; "no class" for the last one."""
    if label < len(model.classes):
        return model.classes[label]
    return "no class" if label == model.network.classes else str(label)
