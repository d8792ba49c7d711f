"""Noise levels to sample at: n descending sigmas and a final 0."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hdit_cli import catalog


def schedule(name: str) -> Callable[..., Tensor]:
    """The schedule of that name: a function (n, *, sigma_min, sigma_max, ...) to sigmas (n + 1,).

    Raises:
        UsageError: no such name.
    """
    return catalog.get("schedule", name)


def karras(n: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Evenly spaced in sigma^(1/rho) (Karras et al. 2022, eq. 5).

    Args:
        n: number of steps, at least 1.
        sigma_min, sigma_max: positive noise levels.
        rho: positive; larger puts more steps at low noise.

    Returns:
        float32 (n + 1,), descending, the last one 0.
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _finish((high + ramp * (low - high)) ** rho)


def exponential(n: int, *, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Tensor:
    """Evenly spaced in log sigma; with rho other than 1 the spacing follows ramp^rho.

    Returns:
        float32 (n + 1,), descending, the last one 0.
    """
    ramp = torch.linspace(1, 0, n, dtype=torch.float64) ** rho
    return _finish(torch.exp(math.log(sigma_min) + ramp * math.log(sigma_max / sigma_min)))


def _finish(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
