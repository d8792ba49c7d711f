"""What a task is, and what tasks share: the draws of a batch, guidance, a sampler run over noise levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hdit_cli import catalog, counter, runtime
from hdit_cli.diffusion.guidance import Denoise, classifier_free, conditioned
from hdit_cli.diffusion.samplers import sampler as find_sampler
from hdit_cli.diffusion.schedules import schedule as find_schedule
from hdit_cli.errors import UsageError
from hdit_cli.models.conditions.classes import Classes
from hdit_cli.models.layers import seed_dropout
from hdit_cli.models.network import Network
from hdit_cli.tasks.sampling import WITH_ETA, Sampling

Wrap = Callable[[nn.Module], Callable[..., Tensor]]  # what is called in the place of a module, such as a compiled one


class Noise(Protocol):
    """The random numbers of a sampling's batch, each image's a function of its number and of the name of a stream."""

    def __call__(self, stream: str) -> Tensor:
        """Standard normal, (N, C, H, W), float32."""
        ...

    def uniform(self, stream: str, *more: int) -> Tensor:
        """In (0, 1), one for each token and each of `more`: (N, h, w, *more)."""
        ...


class Normal(Protocol):
    """Standard normal noise (N, *shape), each image's a function of (seed, stream, its number) alone."""

    def __call__(self, seed: int, stream: str, index: np.ndarray, shape: Sequence[int], *, like: Tensor) -> Tensor: ...


def _image_by_image(seed: int, stream: str, index: np.ndarray, shape: Sequence[int], *, like: Tensor) -> Tensor:
    return runtime.normal(seed, stream, index, shape, like=like)


def uniforms(
    seed: int, stream: str, index: Sequence[int] | np.ndarray, shape: Sequence[int], *, like: Tensor
) -> Tensor:
    """Uniforms in (0, 1), (N, *shape), the same on every device: each image's a function of (seed, stream, its number) alone."""
    return counter.uniform(seed, stream, index, shape, device=like.device)


@dataclass(frozen=True)
class Place:
    """Where in a run the images of a batch stand: what all their random numbers are functions of, beside the seed.

    Attributes:
        index: int64 (N,), numbers of the images in the run.
        first: number of the first image of the step.
        batch: images of a step, of all processes and pieces.
        normal: what draws noise.
    """

    seed: int
    index: np.ndarray
    first: int
    batch: int
    normal: Normal = _image_by_image


class Drawn(NamedTuple):
    """A batch with its random numbers, on the device.

    Attributes:
        x0, noise: (N, C, H, W); of tokens int64 (N, h, w).
        level: (N,), as the task means it: a noise level, a timestep.
        conditions: by keyword of the network.
    """

    x0: Tensor
    noise: Tensor
    level: Tensor
    conditions: dict[str, Tensor]


class Losses(NamedTuple):
    """What a batch costs.

    Attributes:
        loss, sigma: of each image, (N,); a sigma that is no number is in no line by noise level.
        told: parts of the loss worth telling, means over the batch: 0-d float32 each.
    """

    loss: Tensor
    sigma: Tensor
    told: dict[str, Tensor] = {}  # noqa: RUF012  (a NamedTuple's default, never changed)


@dataclass(frozen=True)
class Beside:
    """A module that a training changes beside the network.

    Attributes:
        lr, betas: of the AdamW that takes its gradients, without weight decay; lr None: it has buffers alone, which the task moves.
    """

    module: nn.Module
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)


class Plain:
    """What a task has that changes nothing beside its network."""

    def beside(self) -> dict[str, Beside]:
        return {}

    def after(self, keep: Tensor) -> None:
        return None

    def status(self) -> dict[str, float]:
        return {}


class Task(Protocol):
    """What is learnt, and how pictures come of it; an `nn.Module` around the network.

    Attributes:
        paints: whether `sample` takes a `mask`, where a picture is drawn anew, and what is `negative`.
        usual: how it is sampled where nobody says.
        measures: names of what `measured` gives.
        called: what a step of sampling calls: a denoiser of noise levels, (x, sigma (N,), **conditions) => x0, which is the
            task's `denoiser` too; or a network of tokens, (tokens, t (N,), **conditions) => logits.
    """

    network: Any
    paints: ClassVar[bool]
    usual: ClassVar[Sampling]
    measures: ClassVar[tuple[str, ...]]

    @property
    def called(self) -> nn.Module: ...

    def with_network(self, network: nn.Module) -> Any:
        """The same task of another network."""
        ...

    def draw(self, x0: Tensor, label: Tensor, place: Place, *, told: Mapping[str, Tensor]) -> Drawn:
        """Every random number of a batch, each a function of (seed, place in the run).

        Args:
            x0: (N, C, H, W), on the device.
            label: int64 (N,), on the CPU.
            told: conditions that are known already.
        """
        ...

    def blank(self, images: int, size: tuple[int, int], *, like: Tensor, told: Mapping[str, Tensor]) -> Drawn:
        """A batch of zeros, shaped like a real one; `like` gives dtype and device, `told` the conditions known already."""
        ...

    def example(self, images: int, shape: tuple[int, int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Images (C, H, W), or tokens, and levels for `called`; `like` gives dtype and device."""
        ...

    def noise(self, seed: int, stream: str, index: Any, *, like: Tensor) -> Tensor:
        """What `measured` takes as noise for N images like x0, each a function of (seed, stream, its number)."""
        ...

    def forward(self, drawn: Drawn) -> Losses:
        """The one way into training: what wrappers for several processes and compilers hook into."""
        ...

    def beside(self) -> dict[str, Beside]:
        """What training changes beside the network, by name: each is a file of its own in a checkpoint."""
        ...

    def after(self, keep: Tensor) -> None:
        """Ends a step, on every process: what moves otherwise than by gradients. Nothing may where `keep`, 0-d, is 0."""
        ...

    def status(self) -> dict[str, float]:
        """What a line of the log says besides its losses; what was counted since the last line is counted anew."""
        ...

    def once(self, x: Tensor) -> None:
        """Calls the network as sampling does, with (N, C, H, W): how long that takes tells what a picture costs."""
        ...

    def levels(self, n: int) -> Tensor:
        """n noise levels sigma to validate at, float64, ascending: the middles of equal shares of those trained at."""
        ...

    def measured(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The "loss" (N,) at noise levels (N,) of `levels`, and by other names what else there is to tell of each image."""
        ...

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError for a sampling that the task cannot do."""
        ...

    def kept(self, shape: tuple[int, int, int]) -> int:
        """How many numbers a sampler keeps of an image (C, H, W) beside what a call of the network needs."""
        ...

    def steps(self, sampling: Sampling) -> int:
        """Steps that a sampling takes, each told to `on_step`."""
        ...

    def sample(
        self,
        sampling: Sampling,
        *,
        noise: Noise,
        conditions: Mapping[str, Tensor],
        x0: Tensor | None,
        on_step: Callable[[int], None] | None,
        wrap: Wrap,
    ) -> Tensor:
        """Images (N, C, H, W), about in [-1, 1], or tokens, from noise; from a picture x0 (1, C, H, W), or its tokens, as SDEdit
        does (Meng et al. 2021)."""
        ...


def drawn_conditions(
    network: Network, label: Tensor, place: Place, *, like: Tensor, dropout: float, told: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The conditions of a batch, classes dropped in the share `dropout`; the network's own dropout is made ready for it."""
    found = {name: value for name, value in told.items() if name in network.wants()}
    kind = network.wants().get("label")
    if isinstance(kind, Classes):
        where = runtime.uniform(place.seed, "class-dropout", place.index)[:, 0] < dropout
        found["label"] = kind.dropped(label, where).to(like.device, non_blocking=True)
    keys = runtime.bits(place.seed, "dropout", place.index)[:, 0].astype(np.uint32).view(np.int32)
    assert isinstance(network, nn.Module)
    seed_dropout(network, torch.from_numpy(keys).to(like.device, non_blocking=True))
    return found


def blank_conditions(network: Network, images: int, *, like: Tensor, told: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Conditions of `images` images that say "nothing", and those known already."""
    found = {name: value for name, value in told.items() if name in network.wants()}
    if kind := network.wants().get("label"):
        found["label"] = kind.none_like(torch.zeros(images, dtype=torch.int64, device=like.device))
    return found


def guided(
    call: Callable[..., Tensor],
    network: Network,
    conditions: Mapping[str, Tensor],
    sampling: Sampling,
    *,
    interval: tuple[float, float] | None,
) -> Denoise:
    """A call with its conditions filled in, and guidance where the sampling asks for it.

    Args:
        interval: levels within which guidance acts, as the call is told them.
    """
    wants = network.wants()
    if "label" not in conditions or sampling.cfg == 1:
        return conditioned(call, conditions)
    none = {name: wants[name].none_like(value) for name, value in conditions.items()}
    channels = sampling.cfg_channels or None
    return classifier_free(
        call, conditions=conditions, none=none, scale=sampling.strongest, interval=interval, channels=channels
    )


def sigmas_of(
    sampling: Sampling, *, sigma_min: float, sigma_max: float
) -> Tensor:  # => (steps run + 1,), descending to 0
    """The part of the schedule that is run: all of it, or the last steps."""
    spacing = {"rho": sampling.rho} if sampling.schedule == "karras" else {}
    sigmas = find_schedule(sampling.schedule)(sampling.steps, sigma_min=sigma_min, sigma_max=sigma_max, **spacing)
    return sigmas[sampling.steps - sampling.steps_run :]


def run_sigmas(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    sampling: Sampling,
    *,
    noise: Noise,
    on_step: Callable[[int], None] | None,
) -> Tensor:
    """A sampler of noise levels from x (N, C, H, W) at the first of them."""
    options: dict[str, Any] = {"eta": sampling.eta} if sampling.sampler in WITH_ETA else {}
    return find_sampler(sampling.sampler)(
        denoise, x, sigmas, noise=lambda i: noise(f"sample/step-{i}"), callback=on_step, **options
    )


def refuse_tokens(sampling: Sampling) -> None:
    """Raises UsageError for a sampler of tokens, for a task that makes numbers."""
    if sampling.of_tokens:
        raise UsageError(
            f"{sampling.sampler} draws tokens, and this model makes numbers of noise",
            hint=f"--sampler {catalog.over_noise_levels()[-1]}, or a model of task tokens",
        )
    if isinstance(sampling.cfg, tuple):
        first, last = sampling.cfg
        raise UsageError(
            f"guidance from {first:g} to {last:g} is for models of tokens; {sampling.sampler} takes one number",
            hint=f"--cfg {first:g}, and --cfg-interval says where it acts",
        )


def in_own_dtype(call: Callable[..., Tensor], *, dtype: torch.dtype) -> Callable[..., Tensor]:
    """A call in the weights' own dtype, where the sampler around it is in float32; the level is not rounded to less than that."""
    wide = torch.promote_types(dtype, torch.float32)

    def precise(x: Tensor, level: Tensor, **conditions: Tensor) -> Tensor:
        level = level.to(wide) if level.is_floating_point() else level
        return call(x.to(dtype), level, **conditions).float()

    return precise
