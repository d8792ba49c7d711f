"""A set of samples on the disk: pictures, a grid or strip, and the `samples.json` that makes them again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdit_cli import files, runtime
from hdit_cli.engine.load import InFile, find, open_source, with_codec
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.blend import Blend, way
from hdit_cli.engine.sampling.classes import Wanted, class_index, class_indices, class_name, label_name
from hdit_cli.engine.sampling.generate import Draw, Told, check, choose_labels, stream
from hdit_cli.engine.sampling.grid import grid_png, picture_png
from hdit_cli.engine.sampling.painting import Margins, Paint, check_paint, picture_size, read_paint
from hdit_cli.engine.sampling.picture import read_picture_for
from hdit_cli.engine.sampling.sample_folder import FORMAT, GRID, RECORD, STRIP, clear
from hdit_cli.errors import CheckpointError, DataError
from hdit_cli.recipe.section import plain
from hdit_cli.tasks.sampling import Sampling, of_section, usual_eta, usual_temperature

FRAMES = 9  # of an interpolation, where nobody says


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        checkpoint: inference file or run folder.
        n: number of images; None is 16, 8 of each class for "all" and for several classes, or 9 frames.
        label: class name or number, several of them, "all", or None for the proportions of the data.
        init_image: a picture that every image starts from.
        mask, outpaint: where it is made anew: what is white there, and how many pixels around it.
        seeds, classes: ends of an interpolation; see `blend.way`.
        codec: file of the codec; None looks for it beside the checkpoint.
        codec_sha256: of the codec as recorded; "" where nothing is.
    """

    checkpoint: str
    sampling: Sampling
    n: int | None = None
    label: Wanted = None
    weights: str = "ema"
    init_image: str | None = None
    mask: str | None = None
    outpaint: Margins = (0, 0, 0, 0)
    seeds: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    codec: str | None = None
    codec_sha256: str = ""

    @property
    def interpolates(self) -> bool:
        """Whether the images are frames between samples."""
        return bool(self.seeds or self.classes)


def sampling_of(model: Model, **wanted: Any) -> Sampling:
    """The recipe's defaults of sampling under what the user asked for; None means not asked.

    The recipe's guidance is none for a model without classes.
    """
    section = model.recipe["sample"]
    defaults = {**of_section(section), "batch_size": section["batch_size"]}
    defaults["cfg_channels"] = model.recipe["task"].get("cfg_channels", 0)
    if not model.network.classes:
        defaults["cfg"] = 1.0
    if wanted.get("sampler") is not None:
        for name, usual in (("eta", usual_eta), ("temperature", usual_temperature)):
            if name in section and defaults[name] == usual(section["sampler"]):
                defaults[name] = usual(wanted["sampler"])
    return Sampling(**{**defaults, **{name: value for name, value in wanted.items() if value is not None}})


def image_count(model: Model, order: Order) -> int:
    """Number of images of an order."""
    if order.n is not None:
        return order.n
    if order.interpolates:
        return max(FRAMES, len(order.seeds), len(order.classes))
    classes = _rows(model, order)
    return 8 * classes if classes else 16


def _rows(model: Model, order: Order) -> int:
    """Over how many classes the images are dealt evenly; 0 where they are of one, or drawn."""
    if order.label is None or order.interpolates:
        return 0
    named = class_indices(model, order.label)
    return len(named) if len(named) > 1 or order.label == "all" else 0


def load_for(order: Order, *, sha256: str = "", device: torch.device | None = None) -> tuple[Model, str]:
    """The model of an order and the SHA-256 of its file.

    Args:
        sha256: of the file as recorded; "" where nothing is.
        device: where the model goes; None chooses.

    Raises:
        CheckpointError: it cannot be loaded, or is another file than the one recorded.
    """
    source = find(Path(order.checkpoint), weights=order.weights)
    if not sha256:
        model = open_source(source, weights=order.weights, device=device)
        _give_codec(model, order)
        return model, source.sha256()
    if isinstance(source, InFile):
        source.look()  # before it is hashed: what is no checkpoint may be of any size
    found = source.sha256()
    if found != sha256:
        raise CheckpointError(
            f"{source} is not the checkpoint these samples were made with",
            hint="the run has gone on, or it was moved: `hdit sample CKPT --from samples.json` says where the file is now",
        )
    model = open_source(source, weights=order.weights, device=device)
    _give_codec(model, order)
    return model, found


def _give_codec(model: Model, order: Order) -> None:
    place = Path(order.checkpoint)
    named = None if order.codec is None else Path(order.codec)
    with_codec(model, named=named, beside=place if place.is_dir() else place.parent)
    if order.codec_sha256 and model.codec.fingerprint() != order.codec_sha256:
        why = "is not at hand" if model.latents is None else "is another one"
        raise CheckpointError(
            f"the codec that these samples were made with {why}",
            hint=f"--codec FILE names it; its SHA-256 begins with {order.codec_sha256[:8]}",
        )


@dataclass(frozen=True)
class Content:
    """What an order means for a model.

    Attributes:
        labels: of every image, as `stream` takes them.
        names: over every picture; None where there is nothing to say.
        blend: the way that the frames lie on.
        x0: the picture that the images start from, (1, C, H, W).
        init_sha256: of its file.
        paint: where it is made anew; None: everywhere.
    """

    n: int
    labels: Tensor | None
    names: list[str] | None
    blend: Blend | None = None
    x0: Tensor | None = None
    init_sha256: str = ""
    paint: Paint | None = None

    @property
    def draw(self) -> Draw | None:
        """The source of noise, where it is not the plain one."""
        return self.blend.draw if self.blend else None

    def facts(self, model: Model) -> list[dict[str, Any]]:
        """What the record says of each image."""
        images: list[dict[str, Any]] = [{"file": f"{i:05d}.png", "index": i} for i in range(self.n)]
        for i, image in enumerate(images):
            if self.blend:
                a, b, t = self.blend.place(i)
                image |= {"between": [_end(model, a.seed, a.label), _end(model, b.seed, b.label)], "place": t}
            elif self.names:
                image["class"] = self.names[i]
        return images


def _end(model: Model, seed: int, label: int | None) -> dict[str, Any]:
    return {"seed": seed, **({} if label is None else {"class": class_name(model, label)})}


def prepare(model: Model, order: Order, *, init_sha256: str = "", mask_sha256: str = "") -> Content:
    """Checks an order against the model and reads what it needs, before anything is sampled.

    Args:
        init_sha256, mask_sha256: of the picture to start from, and of its mask, as recorded; "" where nothing is.

    Raises:
        UsageError: the order does not fit the model.
        DataError: the picture cannot be read, or is another one than the one recorded.
    """
    check(model, order.sampling)
    n = image_count(model, order)
    x0, found, paint = None, "", None
    if order.init_image is not None:
        check_paint(model, mask=order.mask is not None, margins=order.outpaint)
        size = picture_size(order.sampling.size or model.image_size, order.outpaint)
        picture = read_picture_for(Path(order.init_image), size=size, channels=model.picture_channels)
        x0, found = picture.x0, picture.sha256
        paint = read_paint(order.mask and Path(order.mask), margins=order.outpaint, picture=picture, size=size)
        _unchanged(order.init_image, found, init_sha256, option="--init-image")
        _unchanged(order.mask or "", paint.sha256 if paint else "", mask_sha256, option="--mask")
    if order.interpolates:
        blend = way(
            model, seeds=order.seeds, classes=order.classes, label=order.label, sampling=order.sampling, frames=n
        )
        return Content(n, blend.labels(model.network.classes), _frame_names(model, blend), blend, x0, found, paint)
    labels = choose_labels(model, n=n, wanted=order.label, seed=order.sampling.seed)
    names = None if labels is None else [class_name(model, int(label)) for label in labels]
    return Content(n, labels, names, None, x0, found, paint)


def _unchanged(path: str, found: str, recorded: str, *, option: str) -> None:
    """Raises DataError where a picture is another one than the one recorded."""
    if recorded and found != recorded:
        what = (
            "the mask these samples were made under"
            if option == "--mask"
            else "the picture these samples were started from"
        )
        raise DataError(
            f"{path} is not {what}: it has changed",
            hint=f"restore it, or name the unchanged file with {option}",
        )


def _frame_names(model: Model, blend: Blend) -> list[str]:
    """At an end its seed or class, between two how far on the way: "40 %"."""
    by_class = len({point.label for point in blend.points}) > 1 and len({point.seed for point in blend.points}) == 1

    def name(frame: int) -> str:
        a, b, t = blend.place(frame)
        if 0 < t < 1:
            return f"{t:.0%}"
        end = b if t else a
        return class_name(model, end.label) if by_class and end.label is not None else f"seed {end.seed}"

    return [name(frame) for frame in range(blend.frames)]


def collect(
    model: Model,
    order: Order,
    *,
    out: Path,
    sha256: str,
    content: Content | None = None,
    on_step: Callable[[int], None] | None = None,
    on_images: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Makes the images of an order and writes `00000.png` …, `grid.png` or `strip.png`, and `samples.json` into `out`.

    An earlier set there goes: what its record names. With several processes each makes its share; the first writes the grid
    when all are done. The record is there from the start, with `"finished": false` until then, so that what was made is
    known for this set's whatever happens.

    Args:
        content: of `prepare`; None prepares here.

    Returns:
        the record.

    Raises:
        UsageError: the order does not fit the model.
        NonFiniteError: the model returned NaN or infinity.
    """
    content = content or prepare(model, order)
    here, n = runtime.ranks(), content.n
    mine: dict[int, np.ndarray] = {}
    record = _record(model, order, content, sha256=sha256)
    files.make_folder(out)
    if here.is_main:
        clear(out)
        files.write_json(out / RECORD, {**record, "finished": False})
    runtime.wait_for_all()
    try:
        for batch, images in stream(
            model,
            indices=range(here.rank, n, here.world),
            labels=content.labels,
            sampling=order.sampling,
            draw=content.draw,
            x0=content.x0,
            told=Told(content.paint),
            on_step=on_step,
        ):
            for i, image in zip(batch, images.numpy(), strict=True):
                files.write_bytes(out / f"{i:05d}.png", picture_png(image))
                mine[i] = image
            if on_images is not None:
                on_images(len(batch))
    except BaseException:
        if not mine and here.world == 1:  # nothing was made, and so nothing is left
            files.remove_file(out / RECORD)
        raise
    pictures = {i: image for part in runtime.gather(mine) for i, image in part.items()}
    if here.is_main:
        stacked = np.stack([pictures[i] for i in range(n)])
        png = grid_png(stacked, labels=content.names, columns=_columns(model, order, n))
        files.write_bytes(out / record["overview"], png)
        files.write_json(out / RECORD, record)
    return record


def _columns(model: Model, order: Order, n: int) -> int | None:
    """One row for frames, one for each class where they are dealt evenly, else about a square."""
    if order.interpolates:
        return n
    classes = _rows(model, order)
    return n // classes if classes and n % classes == 0 else None


def _record(model: Model, order: Order, content: Content, *, sha256: str) -> dict[str, Any]:
    start = {"path": order.init_image, "sha256": content.init_sha256}
    ends = {"seeds": list(order.seeds), "classes": [class_name(model, class_index(model, c)) for c in order.classes]}
    return {
        "format": FORMAT,
        "checkpoint": order.checkpoint,
        "checkpoint_sha256": sha256,
        "weights": model.weights,
        "step": model.step,
        "n": content.n,
        "label": label_name(model, order.label),
        "init_image": start if order.init_image is not None else None,
        **({"mask": {"path": order.mask, "sha256": content.paint.sha256}} if order.mask and content.paint else {}),
        **({"outpaint": list(order.outpaint)} if any(order.outpaint) else {}),
        "interpolate": ends if order.interpolates else None,
        **({"codec": {"path": order.codec, "sha256": model.codec.fingerprint()}} if model.latents is not None else {}),
        "sampling": plain(order.sampling.told()),
        "overview": STRIP if order.interpolates else GRID,
        "images": content.facts(model),
        "environment": runtime.environment(model.device),
    }
