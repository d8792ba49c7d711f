"""Images from noise. The noise of image i is a function of (seed, i) alone, whatever the batch or the number of processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hdit_cli import runtime
from hdit_cli.diffusion.guidance import classifier_free, conditioned
from hdit_cli.diffusion.samplers import sampler as find_sampler
from hdit_cli.diffusion.schedules import schedule as find_schedule
from hdit_cli.engine.memory.out_of_memory import in_sampling, told
from hdit_cli.engine.model import Model
from hdit_cli.engine.sampling.classes import Wanted, class_indices
from hdit_cli.engine.sampling.compiled import CompiledDenoiser
from hdit_cli.engine.sampling.picture import read_picture_for
from hdit_cli.errors import NonFiniteError, OutOfMemory, UsageError


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        eta: noise put back by stochastic samplers, 0 ... 1.
        rho: of the Karras schedule.
        cfg: strength of classifier-free guidance; 1 is off.
        cfg_interval: (low, high) noise levels within which guidance acts; None everywhere.
        size: (height, width) in pixels; None is the size the model was trained at.
        batch_size: images denoised together.
        strength: share of the steps that are run, 0 ... 1, where images start from a picture; 1 without one.
        compile: whole batches run as one compiled graph.
    """

    seed: int = 0
    steps: int = 50
    sampler: str = "dpmpp-3m-sde"
    schedule: str = "karras"
    eta: float = 1.0
    rho: float = 7.0
    cfg: float = 1.0
    cfg_interval: tuple[float, float] | None = None
    size: tuple[int, int] | None = None
    batch_size: int = 16
    strength: float = 1.0
    compile: bool = False


class Draw(Protocol):
    """Standard normal noise (n, *shape) for the images of these numbers: of the start, and of each step of a stochastic sampler."""

    def __call__(self, stream: str, index: Sequence[int], shape: Sequence[int], *, like: Tensor) -> Tensor: ...


STOCHASTIC = ("euler-ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde")


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


def check(model: Model, sampling: Sampling) -> None:
    """Raises UsageError for settings that this model cannot be sampled with."""
    find_sampler(sampling.sampler)
    find_schedule(sampling.schedule)
    if sampling.size is not None:
        try:
            model.network.check_size(*sampling.size)
        except ValueError as error:
            raise UsageError(f"--size: {error}") from None
        levels = model.recipe["model"]["levels"]
        patch = model.network.patch
        for i, level in enumerate(levels):
            smallest = min(side // (p * 2**i) for side, p in zip(sampling.size, patch, strict=True))
            if level["attention"] == "neighborhood" and smallest < level["kernel"]:
                raise UsageError(
                    f"--size: level {i} has {smallest} tokens a side, fewer than its kernel {level['kernel']}"
                )
    if sampling.cfg != 1 and not model.network.classes:
        raise UsageError("--cfg needs a model with classes", hint="leave --cfg out")
    if not 0 < sampling.strength <= 1:
        raise UsageError(f"--strength {sampling.strength:g} is not in (0, 1]", hint="0.3 keeps much, 0.8 little")
    if model.network.mapping_inputs:
        raise UsageError("this model needs a condition vector", hint="sample it through the Python API")


def noise_levels(model: Model, sampling: Sampling) -> Tensor:  # => (steps run + 1,), descending to 0
    """The part of the schedule that is run: all of it, or the last steps, `strength` of them and at least one."""
    diffusion = model.recipe["diffusion"]
    spacing = {"rho": sampling.rho} if sampling.schedule == "karras" else {}
    sigmas = find_schedule(sampling.schedule)(
        sampling.steps, sigma_min=diffusion["sigma_min"], sigma_max=diffusion["sigma_max"], **spacing
    )
    return sigmas[sampling.steps - max(1, round(sampling.steps * sampling.strength)) :]


def denoise_batch(
    model: Model,
    indices: Sequence[int],
    *,
    label: Tensor | None,
    sampling: Sampling,
    draw: Draw,
    x0: Tensor | None,
    on_step: Callable[[int], None] | None,
    denoiser: Callable[..., Tensor],
) -> Tensor:  # => (n, C, H, W) in [-1, 1] and a little beyond
    """Runs the sampler for the images of these numbers; from a picture x0 (1, C, H, W) as SDEdit does (Meng et al. 2021)."""
    height, width = sampling.size or model.image_size
    shape = (model.channels, height, width)
    like = torch.empty(0, device=model.device)
    sigmas = noise_levels(model, sampling)
    x = draw("sample/start", indices, shape, like=like) * float(sigmas[0])
    if x0 is not None:
        x = x0.to(model.device) + x
    if label is not None:
        label = label.to(model.device)

    def precise(x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """The denoiser in the weights' own dtype, the sampler in float32."""
        return denoiser(x.to(model.dtype), sigma.to(model.dtype), label=label).float()

    if label is not None and sampling.cfg != 1:
        denoise = classifier_free(
            precise, label=label, no_class=model.network.classes, scale=sampling.cfg, interval=sampling.cfg_interval
        )
    else:
        denoise = conditioned(precise, label=label)
    options: dict[str, Any] = {"eta": sampling.eta} if sampling.sampler in STOCHASTIC else {}
    return find_sampler(sampling.sampler)(
        denoise,
        x,
        sigmas,
        noise=lambda i: draw(f"sample/step-{i}", indices, shape, like=like),
        callback=on_step,
        **options,
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
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of finished images, in the order of `indices`.

    Args:
        indices: numbers of the images to make.
        labels: int64 (images,), label of every image by its number, or weights of the classes, float (images, classes + 1);
            None for an unconditional model.
        draw: source of the noise; None is a function of (seed, image number).
        x0: a picture (1, C, H, W) in [-1, 1] that every image starts from.
        on_step: called after each sampler step with its number.

    Yields:
        (image numbers, uint8 (n, H, W, C) on the CPU).

    Raises:
        NonFiniteError: the model returned NaN or infinity.
    """
    draw = draw or partial(runtime.normal, sampling.seed)
    denoiser: Callable[..., Tensor] = model.denoiser
    if sampling.compile and len(indices):
        images = min(sampling.batch_size, len(indices))
        denoiser = CompiledDenoiser(model.denoiser, images=images, device=model.device)
    for start in range(0, len(indices), sampling.batch_size):
        batch = [int(i) for i in indices[start : start + sampling.batch_size]]
        label = None if labels is None else labels[torch.tensor(batch)]
        with torch.inference_mode(), told(partial(_too_much, model, sampling, count=len(batch))):
            x = denoise_batch(
                model, batch, label=label, sampling=sampling, draw=draw, x0=x0, on_step=on_step, denoiser=denoiser
            )
        if not torch.isfinite(x).all():
            raise NonFiniteError(
                f"the model returned NaN or infinity for image {batch[0]} or one after it",
                hint="the weights diverged, or --cfg is too large; try an older checkpoint or --cfg 1",
            )
        yield batch, to_uint8(x)


def _too_much(model: Model, sampling: Sampling, *, count: int) -> OutOfMemory:
    """A batch of `count` images did not fit."""
    height, width = (p * 2 ** len(model.network.merges) for p in model.network.patch)
    size = sampling.size or model.image_size
    return in_sampling(images=count, size=size, unit=(height, width), cfg=sampling.cfg)


def generate(
    model: Model,
    *,
    n: int = 4,
    seed: int = 0,
    steps: int = 50,
    label: Wanted = None,
    init_image: str | Path | None = None,
    **options: Any,
) -> Tensor:
    """n images of a model.

    Args:
        n: how many.
        seed: image i is a function of (seed, i).
        steps: of the sampler.
        label: a class name, a number as text, a list of them, or "all"; None draws in the proportions of the data.
        init_image: a picture that every image starts from; `strength` says how far it is left behind.
        options: the other fields of `Sampling`: sampler, schedule, eta, rho, cfg, cfg_interval, size, batch_size, strength,
            compile.

    Returns:
        uint8 (n, H, W, C) on the CPU.

    Raises:
        UsageError: unknown class, sampler, or a size the levels do not divide.
        DataError: the picture cannot be read.
    """
    sampling = Sampling(seed=seed, steps=steps, **options)
    check(model, sampling)
    labels = choose_labels(model, n=n, wanted=label, seed=seed)
    size = sampling.size or model.image_size
    x0 = None
    if init_image is not None:
        x0 = read_picture_for(Path(init_image), size=size, channels=model.channels).x0
    elif sampling.strength != 1:
        raise UsageError("strength needs a picture to start from", hint="give init_image")
    batches = stream(model, indices=range(n), labels=labels, sampling=sampling, x0=x0)
    return torch.cat([images for _, images in batches])
