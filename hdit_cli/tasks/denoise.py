"""The clean image from one with noise of any level (Karras et al. 2022, https://arxiv.org/abs/2206.00364)."""

import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hdit_cli import catalog, runtime
from hdit_cli.diffusion.denoiser import Denoiser, timestep_like
from hdit_cli.diffusion.densities import noise_density
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling
from hdit_cli.tasks.task import (
    Drawn,
    Losses,
    Noise,
    Place,
    Plain,
    Wrap,
    blank_conditions,
    drawn_conditions,
    guided,
    in_own_dtype,
    refuse_tokens,
    run_sigmas,
    sigmas_of,
)


class Denoise(Plain, nn.Module):
    """A network under EDM's preconditioning, trained at noise levels of a density.

    Args:
        network: told noise levels, or timesteps: then it is told 250 ln(sigma), which is on their scale.
        sigma_data: standard deviation of the images.
        sigma_min, sigma_max: the range of sampling.
        weighting, gamma: name of the loss weight in the catalog, and the bound of min-snr.
        density: name of the density of training noise levels, and its options.
        class_dropout: share of labels that training replaces by "no class".
    """

    paints: ClassVar[bool] = False
    usual: ClassVar[Sampling] = Sampling()
    measures: ClassVar[tuple[str, ...]] = ("loss",)

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma_data: float,
        sigma_min: float,
        sigma_max: float,
        weighting: str,
        gamma: float,
        density: tuple[str, Mapping[str, float]],
        class_dropout: float,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "sigma_data": sigma_data,
            "sigma_min": sigma_min,
            "sigma_max": sigma_max,
            "weighting": weighting,
            "gamma": gamma,
            "density": density,
            "class_dropout": class_dropout,
        }
        weight = catalog.get("weighting", weighting)
        told: dict[str, Any] = {"c_noise": timestep_like} if getattr(network, "told", "sigma") == "timestep" else {}
        self.denoiser = Denoiser(
            network,
            sigma_data=sigma_data,
            weighting=partial(weight, gamma=gamma) if weighting == "min-snr" else weight,
            **told,
        )
        self.sigma_min, self.sigma_max, self.class_dropout = sigma_min, sigma_max, class_dropout
        self.losses = self.denoiser.loss  # may be replaced by a compiled one, which then serves training alone

    @property
    def network(self) -> Any:
        return self.denoiser.network

    def kept(self, shape: tuple[int, int, int]) -> int:
        """Numbers that a sampler keeps of an image: x, the next x, three denoised ones, noise, and what lies between."""
        return 8 * math.prod(shape)

    @property
    def called(self) -> nn.Module:
        """What a step of sampling calls."""
        return self.denoiser

    def with_network(self, network: nn.Module) -> "Denoise":
        """The same task of another network."""
        return Denoise(network, **self._settings)

    @functools.cached_property
    def density(self) -> Callable[[Tensor], Tensor]:
        """u in (0, 1) to sigma."""
        name, options = self._settings["density"]
        return noise_density(name, **options)

    # Training

    def draw(self, x0: Tensor, label: Tensor, place: Place, *, told: Mapping[str, Tensor]) -> Drawn:
        """Noise, and levels that are stratified: slot j of the step draws from [j, j + 1) / batch."""
        noise = place.normal(place.seed, "noise", place.index, x0.shape[1:], like=x0)
        u = (
            torch.from_numpy(place.index - place.first) + runtime.uniform(place.seed, "sigma", place.index)[:, 0]
        ) / place.batch
        sigma = self.density(u).to(x0.dtype).to(x0.device, non_blocking=True)  # dtype first: MPS has no float64
        conditions = drawn_conditions(self.network, label, place, like=x0, dropout=self.class_dropout, told=told)
        return Drawn(x0, noise, sigma, conditions)

    def blank(self, images: int, size: tuple[int, int], *, like: Tensor, told: Mapping[str, Tensor]) -> Drawn:
        """A batch of zeros at noise level 1."""
        image = like.new_zeros(images, self.network.channels, *size)
        conditions = blank_conditions(self.network, images, like=like, told=told)
        return Drawn(image, image, like.new_ones(images), conditions)

    def example(self, images: int, shape: tuple[int, int, int], *, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros at noise level 1."""
        x = torch.zeros((images, *shape), device=like.device, dtype=like.dtype)
        return x, x.new_ones(images)

    def forward(self, drawn: Drawn) -> Losses:
        """The weighted squared error of each image."""
        return Losses(self.losses(drawn.x0, drawn.noise, drawn.level, **drawn.conditions), drawn.level)

    # Validation

    def once(self, x: Tensor) -> None:
        self.denoiser(x, x.new_ones(len(x)))

    def levels(self, n: int) -> Tensor:
        """The middles of n equal shares of the density."""
        return self.density((torch.arange(n, dtype=torch.float64) + 0.5) / n).sort().values

    def loss_at(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """As in training."""
        return self.denoiser.loss(x0, noise, sigma, **conditions)

    def noise(self, seed: int, stream: str, index: Any, *, like: Tensor) -> Tensor:
        """Standard normal, like x0 (N, C, H, W)."""
        return runtime.normal(seed, stream, index, like.shape[1:], like=like)

    def measured(self, x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self.loss_at(x0, noise, sigma, conditions)}

    # Sampling

    def check(self, sampling: Sampling) -> None:
        """Raises UsageError for a sampler of timesteps, or of tokens: there are none."""
        refuse_tokens(sampling)
        if sampling.by_timesteps:
            raise UsageError(
                f"{sampling.sampler} goes over timesteps, and this model was trained at noise levels",
                hint="--sampler dpmpp-3m-sde, or a model of task ddpm",
            )

    def sigmas(self, sampling: Sampling) -> Tensor:  # => (steps run + 1,), descending to 0
        """The noise levels of a sampling."""
        return sigmas_of(sampling, sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def steps(self, sampling: Sampling) -> int:
        """One for each noise level."""
        return len(self.sigmas(sampling)) - 1

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
        """Runs the sampler from noise, or from a picture under the noise of the first level that is run."""
        sigmas = self.sigmas(sampling)
        x = noise("sample/start") * float(sigmas[0])
        if x0 is not None:
            x = x0.to(x.device) + x
        call = in_own_dtype(wrap(self.denoiser), dtype=next(self.parameters()).dtype)
        denoise = guided(call, self.network, conditions, sampling, interval=sampling.cfg_interval)
        return run_sigmas(denoise, x, sigmas, sampling, noise=noise, on_step=on_step)
