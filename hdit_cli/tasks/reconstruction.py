"""How far a reconstruction is from its picture, one number for each picture: losses that need no network, and no download."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_SMALLEST = 8  # side of the coarsest band


def bands(error: Tensor) -> list[Tensor]:
    """A Laplacian pyramid (Burt & Adelson 1983) of (N, C, H, W): bands from the finest on, the last one the coarse rest.

    It is linear, so the pyramid of a difference is the difference of the pyramids.
    """
    found = []
    while min(error.shape[2:]) >= 2 * _SMALLEST:
        coarse = F.avg_pool2d(error, 2, ceil_mode=True)
        found.append(error - F.interpolate(coarse, size=error.shape[2:], mode="bilinear", align_corners=False))
        error = coarse
    return [*found, error]


def l1(error: Tensor) -> Tensor:
    """Mean absolute value of each image: (N, C, H, W) to (N,)."""
    return error.abs().flatten(1).mean(1)


def multiscale(error: Tensor) -> Tensor:
    """The mean over the bands of a difference of their mean absolute values: (N, C, H, W) to (N,).

    A coarse band has few values and weighs as much as a fine one, so shapes and colours count beside edges.
    """
    each = [l1(band) for band in bands(error)]
    return torch.stack(each).mean(0)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """What a critic learns of its verdicts (N, 1, h, w): (N,) (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + made).flatten(1).mean(1))


def psnr(picture: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (N, C, H, W) in [-1, 1]: (N,), of what is clamped and rounded to 8 bits."""
    x, y = (((each.double().clamp(-1, 1) + 1) * 127.5).round() for each in (picture, reconstruction))
    mse = (x - y).square().flatten(1).mean(1)
    return 20 * math.log10(255) - 10 * mse.clamp(min=1e-10).log10()
