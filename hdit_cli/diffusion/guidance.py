"""Guidance: takes a denoiser, gives a denoiser. Samplers never learn of it."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (N,)) => x0


def conditioned(denoiser: Callable[..., Tensor], conditions: Mapping[str, Tensor]) -> Denoise:
    """The denoiser with its conditions filled in."""
    return lambda x, sigma: denoiser(x, sigma, **conditions)


def classifier_free(
    denoiser: Callable[..., Tensor],
    *,
    conditions: Mapping[str, Tensor],
    none: Mapping[str, Tensor],
    scale: float,
    interval: tuple[float, float] | None = None,
    channels: int | None = None,
) -> Denoise:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022), both in one batched call; scale 1 is off.

    Takes whatever guidance can be said of: a denoiser of noise levels, or a network that answers with the noise at timesteps.

    Args:
        denoiser: called as (x, level, **conditions).
        conditions: what is asked for, each (N, ...).
        none: what says "nothing is told" in the place of some of them; the others are the same on both sides.
        scale: guidance strength.
        interval: (low, high) noise levels within which guidance acts (Kynkaanniemi et al. 2024); outside it the conditional
            denoiser is called alone, at half the cost. None: everywhere.
        channels: how many, from the first, are guided; the others stay as the condition has them. None: all. DiT's published
            samples were guided on the first three.
    """
    both = {name: torch.cat([value, none.get(name, value)]) for name, value in conditions.items()}

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        inside = interval is None or interval[0] <= float(sigma[0]) <= interval[1]
        if scale == 1 or not inside:
            return denoiser(x, sigma, **conditions)
        cond, uncond = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), **both).chunk(2)
        if channels is None or channels >= cond.shape[1]:
            return uncond + scale * (cond - uncond)
        return classifier_free_channels(cond, uncond, scale=scale, channels=channels)

    return denoise


def classifier_free_channels(cond: Tensor, uncond: Tensor, *, scale: float, channels: int) -> Tensor:
    """Guidance on a network's output: uncond + scale (cond - uncond) on its first channels, the conditional output on the others.

    Args:
        cond, uncond: (N, C_out, H, W), with and without the condition.
        scale: guidance strength; 1 is off.
        channels: how many take it. DiT's published samples were guided on the first three, whatever the number of channels.

    Returns:
        (N, C_out, H, W).
    """
    guided = uncond[:, :channels] + scale * (cond[:, :channels] - uncond[:, :channels])
    return torch.cat([guided, cond[:, channels:]], dim=1)
