"""Guidance: takes a denoiser, gives a denoiser. Samplers never learn of it."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x, sigma (N,)) => x0


def conditioned(denoiser: Callable[..., Tensor], *, label: Tensor | None) -> Denoise:
    """The denoiser with its labels filled in."""
    return lambda x, sigma: denoiser(x, sigma, label=label)


def classifier_free(
    denoiser: Callable[..., Tensor],
    *,
    label: Tensor,
    no_class: int,
    scale: float,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022), both in one batched call; scale 1 is off.

    Args:
        denoiser: called as (x, sigma, label=).
        label: int64 (N,), or weights of the classes, float (N, classes + 1).
        no_class: the label that means "no class".
        scale: guidance strength.
        interval: (low, high) noise levels within which guidance acts (Kynkaanniemi et al. 2024); outside it the conditional
            denoiser is called alone, at half the cost. None: everywhere.
    """

    if label.ndim == 2:
        empty = torch.zeros_like(label)
        empty[:, no_class] = 1
    else:
        empty = torch.full_like(label, no_class)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        inside = interval is None or interval[0] <= float(sigma[0]) <= interval[1]
        if scale == 1 or not inside:
            return denoiser(x, sigma, label=label)
        both = torch.cat([label, empty])
        cond, uncond = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), label=both).chunk(2)
        return uncond + scale * (cond - uncond)

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
