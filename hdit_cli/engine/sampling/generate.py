"""Images from noise. The noise of image i is a function of (seed, i) alone, whatever the batch or the number of processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hdit_cli import catalog, precision, runtime
from hdit_cli.engine.memory.out_of_memory import in_sampling
from hdit_cli.engine.memory.out_of_memory import told as memory_told
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.classes import Wanted, class_indices
from hdit_cli.engine.sampling.compiled import CompiledDenoiser
from hdit_cli.engine.sampling.painting import Margins, Paint, canvas_size, check_paint, read_paint
from hdit_cli.engine.sampling.picture import read_picture_for
from hdit_cli.engine.sampling.settings import check_acting
from hdit_cli.errors import NonFiniteError, OutOfMemory, UsageError
from hdit_cli.tasks.sampling import Sampling, usual_eta, usual_temperature
from hdit_cli.tasks.task import uniforms


class Draw(Protocol):
    """Random numbers (n, *shape) for the images of these numbers: of the start, and of each step of a sampler that takes some.

    Kinds are "normal", standard normal in the dtype of `like`, and "uniform", in (0, 1). Both are on its device.
    """

    def __call__(
        self, stream: str, index: Sequence[int], shape: Sequence[int], *, like: Tensor, kind: str = "normal"
    ) -> Tensor: ...


@dataclass(frozen=True)
class Told:
    """What images are told besides a class.

    Attributes:
        paint: where a picture that they start from is made anew; None: everywhere.
        conditions: by keyword of the network, a row for each image by its number, or one for all.
        negative: in the same way, what guidance goes away from, in place of nothing.
    """

    paint: Paint | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    negative: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(named: Mapping[str, Tensor], index: Sequence[int], *, device: torch.device) -> dict[str, Tensor]:
        """The rows of these images, on the device."""
        rows = {name: value.expand(len(index), *value.shape[1:]) for name, value in named.items() if len(value) == 1}
        rows |= {name: value[list(index)] for name, value in named.items() if len(value) != 1}
        return {name: value.to(device) for name, value in rows.items()}


def of_seed(
    seed: int, stream: str, index: Sequence[int], shape: Sequence[int], *, like: Tensor, kind: str = "normal"
) -> Tensor:
    """A `Draw` of a seed."""
    return (runtime.normal if kind == "normal" else uniforms)(seed, stream, index, shape, like=like)


def _of_first(
    seed: int, stream: str, index: Sequence[int], shape: Sequence[int], *, like: Tensor, kind: str = "normal"
) -> Tensor:
    """A `Draw` that gives every image the numbers of image 0."""
    return of_seed(seed, stream, [0] * len(index), shape, like=like, kind=kind)


@dataclass(frozen=True)
class Numbers:
    """The random numbers of a batch, see `tasks.task.Noise`."""

    draw: Draw
    index: Sequence[int]
    shape: tuple[int, int, int]
    like: Tensor

    def __call__(self, stream: str) -> Tensor:
        return self.draw(stream, self.index, self.shape, like=self.like)

    def uniform(self, stream: str, *more: int) -> Tensor:
        return self.draw(stream, self.index, (*self.shape[1:], *more), like=self.like, kind="uniform")


def choose_labels(model: Model, *, n: int, wanted: Wanted, seed: int) -> Tensor | None:
    """Labels of n images: None for an unconditional model.

    Args:
        wanted: a class name or number, or several: the images are dealt evenly over them, in their order; so does "all"
            over all classes; None draws in the proportions of the training data, image i as a function of (seed, i).

    Returns:
        int64 (n,), on the CPU.

    Raises:
        UsageError: no such class, a class of a model without any, or fewer images than classes that were named.
    """
    classes = model.network.classes
    if wanted is not None:
        chosen = torch.tensor(class_indices(model, wanted))
        if n < len(chosen) and wanted != "all":
            raise UsageError(
                f"{len(chosen)} classes for {n} images", hint=f"-n {len(chosen)} or more, or fewer classes"
            )
        return chosen[torch.arange(n) * len(chosen) // n]
    if not classes:
        return None
    known = model.data.get("class_counts")
    counts = np.asarray(known if known and any(known) else [1] * classes, dtype=np.float64)
    edges = torch.from_numpy(np.cumsum(counts) / counts.sum())
    u = runtime.uniform(seed, "sample/label", np.arange(n))[:, 0]
    return torch.searchsorted(edges, u).clamp(max=classes - 1)


def check(model: Model, sampling: Sampling, *, told: bool = False) -> None:
    """Raises UsageError for settings that this model cannot be sampled with.

    Args:
        told: whether images are told something besides a class.
    """
    catalog.check("sampler", sampling.sampler)
    catalog.check("schedule", sampling.schedule)
    if model.reconstructs:
        model.task.check(sampling)
    if why := model.codec.pictures():
        raise UsageError(
            f"this model makes no pictures: {why}",
            hint="--codec FILE gives it; model.task.sample in Python gives the latents",
        )
    model.task.check(sampling)
    if sampling.size is not None:
        _check_size(model, sampling.size)
    if sampling.guides and not model.network.classes and not told:
        raise UsageError("--cfg needs a model with classes", hint="leave --cfg out")
    if not 0 < sampling.strength <= 1:
        raise UsageError(f"--strength {sampling.strength:g} is not in (0, 1]", hint="0.3 keeps much, 0.8 little")
    if not 0 <= sampling.cfg_channels <= model.channels:
        raise UsageError(f"--cfg-channels {sampling.cfg_channels}: the model has {model.channels}", hint="0 guides all")
    precision.resolved(sampling.precision, dtype=model.dtype, device=model.device)
    if (needed := needed_of(model)) and not told:
        raise UsageError(f"this model needs {needed}", hint="in Python: hdit_cli.generate(model, conditions={...})")


def needed_of(model: Model) -> str:
    """What the network cannot do without and nobody gives, in words; "" where it needs nothing."""
    return " and ".join(condition.what for condition in model.network.wants().values() if condition.required)


def _check_size(model: Model, size: tuple[int, int]) -> None:
    """Raises UsageError for a size in pixels that the codec or the network cannot be given, with the nearest that can."""
    factor = model.codec.factor
    beside = [side for side in size if side % factor]
    reason = "" if beside else model.network.fits(*model.shape(size)[1:])
    if not beside and not reason:
        return
    units = [factor * unit for unit in model.network.unit]
    near = [max(1, round(side / unit)) * unit for side, unit in zip(size, units, strict=True)]
    fits = not model.network.fits(*model.shape((near[0], near[1]))[1:])
    hint = f"the nearest is --size {near[0]}x{near[1]}" if fits else "leave --size out: as trained"
    if beside:
        raise UsageError(f"--size: {beside[0]} is no multiple of {factor}, the codec's factor", hint=hint)
    if factor == 1:
        raise UsageError(f"--size: {reason}")
    raise UsageError(f"--size: {reason} (in pixels {factor} times as many)", hint=hint)


def denoise_batch(
    model: Model,
    indices: Sequence[int],
    *,
    label: Tensor | None,
    sampling: Sampling,
    draw: Draw,
    x0: Tensor | None,
    on_step: Callable[[int], None] | None,
    wrap: Callable[[nn.Module], Callable[..., Tensor]],
    told: "Told | None" = None,
) -> Tensor:  # => (n, C, H, W) in [-1, 1] and a little beyond
    """Makes the images of these numbers; from a picture x0 (1, C, H, W) where there is one."""
    codec, shape = model.codec, model.shape(sampling.size)
    like = torch.empty(0, device=model.device)
    chosen = precision.resolved(sampling.precision, dtype=model.dtype, device=model.device)
    encode, decode = (
        precision.within(precision.of_codec(chosen), model.device, call) for call in (codec.encode, codec.decode)
    )
    told = told or Told()
    start = None if x0 is None else encode(x0.to(model.device))
    how: dict[str, Any] = {}
    if told.paint is not None and start is not None:
        start, how["mask"] = told.paint.on(start, factor=codec.factor)
    if told.negative:
        how["negative"] = told.of(told.negative, indices, device=model.device)
    conditions = told.of(told.conditions, indices, device=model.device)
    return decode(
        model.task.sample(
            sampling,
            noise=Numbers(draw, indices, shape, like),
            conditions=conditions if label is None else {"label": label.to(model.device), **conditions},
            x0=start,
            on_step=on_step,
            wrap=wrap,
            **how,
        )
    )


def to_uint8(x: Tensor) -> Tensor:
    """(N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), rounded, on the CPU."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().contiguous()


def stream(
    model: Model,
    *,
    indices: Sequence[int],
    labels: Tensor | None,
    sampling: Sampling,
    draw: Draw | None = None,
    x0: Tensor | None = None,
    told: Told | None = None,
    on_step: Callable[[int], None] | None = None,
    through: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda call: call,
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of finished images, in the order of `indices`.

    Args:
        indices: numbers of the images to make.
        labels: int64 (images,), label of every image by its number, or weights of the classes, float (images, classes + 1);
            None for an unconditional model.
        draw: source of random numbers; None is a function of (seed, image number).
        x0: a picture (1, C, H, W) in [-1, 1] that every image starts from.
        told: what else the images are told.
        on_step: called after each sampler step with its number.
        through: what calls of the denoiser, or of a network of timesteps, go through: to be watched.

    Yields:
        (image numbers, uint8 (n, H, W, C) on the CPU).

    Raises:
        NonFiniteError: the model returned NaN or infinity.
    """
    draw = draw or partial(of_seed, sampling.seed)
    wrap = partial(_called, sampling=sampling, images=min(sampling.batch_size, len(indices)), through=through, made={})
    for start in range(0, len(indices), sampling.batch_size):
        batch = [int(i) for i in indices[start : start + sampling.batch_size]]
        label = None if labels is None else labels[torch.tensor(batch)]
        with torch.inference_mode(), memory_told(partial(_too_much, model, sampling, count=len(batch))):
            x = denoise_batch(
                model,
                batch,
                label=label,
                sampling=sampling,
                draw=draw,
                x0=x0,
                on_step=on_step,
                wrap=wrap,
                told=told,
            )
        if not torch.isfinite(x).all():
            raise NonFiniteError(
                f"the model returned NaN or infinity for image {batch[0]} or one after it",
                hint="the weights diverged, or --cfg is too large; try an older checkpoint or --cfg 1",
            )
        yield batch, to_uint8(x)


def _called(
    module: nn.Module,
    *,
    sampling: Sampling,
    images: int,
    through: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
    made: dict[int, Callable[..., Tensor]],
) -> Callable[..., Tensor]:
    """The module as a sampling calls it: in its precision, and where it says so compiled, once for all batches."""
    if id(module) not in made:
        weights = next(module.parameters())
        call = CompiledDenoiser(module, images=images, device=weights.device) if sampling.compile else module
        chosen = precision.resolved(sampling.precision, dtype=weights.dtype, device=weights.device)
        made[id(module)] = through(precision.within(chosen, weights.device, call))
    return made[id(module)]


def _too_much(model: Model, sampling: Sampling, *, count: int) -> OutOfMemory:
    """A batch of `count` images did not fit."""
    size = sampling.size or model.image_size
    return in_sampling(images=count, size=size, unit=model.network.unit, cfg=sampling.strongest)


def generate(
    model: Model,
    *,
    n: int = 4,
    seed: int = 0,
    steps: int | None = None,
    label: Wanted = None,
    init_image: str | Path | None = None,
    mask: str | Path | None = None,
    outpaint: Margins = (0, 0, 0, 0),
    conditions: Mapping[str, Tensor] | None = None,
    negative: Mapping[str, Tensor] | None = None,
    same_numbers: bool = False,
    **options: Any,
) -> Tensor:
    """n images of a model.

    Args:
        n: how many.
        seed: image i is a function of (seed, i).
        steps: of the sampler; None is 50, or 12 of a model of tokens.
        label: a class name, a number as text, a list of them, or "all"; None draws in the proportions of the data.
        init_image: a picture that every image starts from; `strength` says how far it is left behind.
        mask: a picture of the size of `init_image`, white where that is made anew; for models of tokens.
        outpaint: pixels (left, top, right, bottom) that are made around `init_image`; for models of tokens.
        conditions: what the images are told besides a class, by keyword of the network: a row for each image, or one for all.
        negative: in the same way, what guidance of tokens goes away from; None: that nothing is told.
        same_numbers: every image is drawn by the random numbers of image 0, so that what it is told alone makes it another.
        options: the other fields of `Sampling`: sampler, schedule, eta, rho, cfg, cfg_interval, cfg_channels, size,
            batch_size, strength, compile, precision; of tokens temperature, typical, renoise, renoise_steps.

    Returns:
        uint8 (n, H, W, C) on the CPU.

    Raises:
        UsageError: unknown class, sampler, or a size the network cannot be given.
        DataError: the picture cannot be read.
    """
    usual = model.task.usual
    draw = partial(_of_first, seed) if same_numbers else None
    options.setdefault("sampler", usual.sampler)
    check_acting([options["sampler"]], options, word=str)
    options.setdefault("eta", usual_eta(options["sampler"]))
    options.setdefault("temperature", usual_temperature(options["sampler"]))
    sampling = Sampling(seed=seed, steps=usual.steps if steps is None else steps, **options)
    check_told(model, conditions or {}, negative or {}, n=n)
    check_paint(model, mask=mask is not None, margins=outpaint)
    size = sampling.size or model.image_size
    sampling = replace(sampling, size=canvas_size(size, outpaint)) if any(outpaint) else sampling
    check(model, sampling, told=bool(conditions))
    labels = choose_labels(model, n=n, wanted=label, seed=seed)
    x0, paint = None, None
    if init_image is not None:
        picture = read_picture_for(Path(init_image), size=size, channels=model.picture_channels)
        x0 = picture.x0
        paint = read_paint(mask and Path(mask), margins=outpaint, picture=picture, size=size)
    elif sampling.strength != 1 or mask is not None or any(outpaint):
        what = "strength" if sampling.strength != 1 else "mask" if mask is not None else "outpaint"
        raise UsageError(f"{what} needs a picture to start from", hint="give init_image")
    told = Told(paint, conditions or {}, negative or {})
    batches = stream(model, indices=range(n), labels=labels, sampling=sampling, x0=x0, told=told, draw=draw)
    return torch.cat([images for _, images in batches])


def check_told(model: Model, conditions: Mapping[str, Tensor], negative: Mapping[str, Tensor], *, n: int) -> None:
    """Refuses conditions that a model is not told, or that are not one row for all images or a row for each.

    Raises:
        UsageError: for the first of them.
    """
    wants = model.network.wants()
    if negative and not model.task.paints:
        raise UsageError("negative is for models of tokens", hint="leave negative out")
    for name, value in (*conditions.items(), *negative.items()):
        if name not in wants or name == "label":
            known = ", ".join(each for each in wants if each != "label") or "nothing but a class"
            raise UsageError(f"this model is not told {name!r}", hint=f"it is told {known}")
        if value.ndim < 2 or len(value) not in (1, n):
            raise UsageError(f"{name} has {len(value) if value.ndim else 0} rows for {n} images", hint=f"give 1 or {n}")
