"""Noise levels to train at, each a density over sigma given by its inverse CDF: u in (0, 1) to sigma."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hdit_cli import catalog


def noise_density(name: str, **options: float) -> Callable[[Tensor], Tensor]:
    """The density of that name as a function u (N,) to sigma (N,); options as the function of that name takes them.

    Raises:
        UsageError: no such name.
        TypeError: an option it does not have, or one that is missing.
    """
    density = partial(catalog.get("density", name), **options)
    density(torch.tensor([0.5]))  # missing options show here, not in the middle of a run
    return density


def lognormal(u: Tensor, *, loc: float, scale: float) -> Tensor:
    """log sigma ~ N(loc, scale^2) (Karras et al. 2022, table 1)."""
    u = u * (1 - 2e-7) + 1e-7
    return torch.exp(loc + scale * torch.special.ndtri(u))


def split_lognormal(u: Tensor, *, loc: float, scale_1: float, scale_2: float) -> Tensor:
    """Two half normals in log sigma joined at their mode `loc`: scale_1 below it, scale_2 above; its CDF is continuous.

    Below the mode lies the share scale_1 / (scale_1 + scale_2), so the density is continuous too.
    """
    u = u * (1 - 2e-7) + 1e-7
    share = scale_1 / (scale_1 + scale_2)
    below = scale_1 * torch.special.ndtri((u / (2 * share)).clamp(max=0.5))
    above = scale_2 * torch.special.ndtri((1 - (1 - u) / (2 * (1 - share))).clamp(min=0.5))
    return torch.exp(loc + torch.where(u < share, below, above))


def loglogistic(u: Tensor, *, loc: float, scale: float, sigma_min: float, sigma_max: float) -> Tensor:
    """log sigma logistic with mean `loc` and scale `scale`, cut to [sigma_min, sigma_max] (Hoogeboom et al. 2023)."""
    low, high = (1 / (1 + math.exp(-(math.log(s) - loc) / scale)) for s in (sigma_min, sigma_max))
    return torch.exp(loc + scale * torch.logit(u * (high - low) + low))


def loguniform(u: Tensor, *, sigma_min: float, sigma_max: float) -> Tensor:
    """log sigma uniform between its ends."""
    return torch.exp(u * math.log(sigma_max / sigma_min) + math.log(sigma_min))


def cosine(u: Tensor, *, sigma_data: float, sigma_min: float, sigma_max: float) -> Tensor:
    """The cosine schedule as a density: sigma = sigma_data tan(pi v / 2), v uniform (Nichol & Dhariwal 2021)."""
    low, high = (2 / math.pi * math.atan(s / sigma_data) for s in (sigma_min, sigma_max))
    return sigma_data * torch.tan(math.pi / 2 * (u * (high - low) + low))


def cosine_interpolated(
    u: Tensor,
    *,
    image_size: float,
    noise_d_low: float,
    noise_d_high: float,
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
) -> Tensor:
    """Between two cosine densities shifted to the resolutions noise_d_low and noise_d_high (Hoogeboom et al. 2023, eq. 9).

    u = 0 is the noisy end.

    Args:
        image_size: the longer side of the images, in pixels.
        noise_d_low, noise_d_high: the resolutions, in pixels, whose noise the noisy and the clean end imitate.
    """

    def log_snr(noise_d: float) -> Tensor:
        shift = 2 * math.log(noise_d / image_size)
        first, last = (-2 * math.log(s / sigma_data) - shift for s in (sigma_max, sigma_min))
        start, end = math.atan(math.exp(-first / 2)), math.atan(math.exp(-last / 2))
        return shift - 2 * torch.log(torch.tan(u * (end - start) + start))

    return sigma_data * torch.exp(-torch.lerp(log_snr(noise_d_low), log_snr(noise_d_high), u) / 2)
