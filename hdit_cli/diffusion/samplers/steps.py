"""What the samplers share: one way of calling the denoiser, one default source of noise."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]
Callback = Callable[[int], None]


def at(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """The denoised images at one noise level for the whole batch."""
    return denoise(x, x.new_full((len(x),), sigma))


def noise_source(noise: Noise | None, x: Tensor) -> Noise:
    """`noise`, or torch's own generator."""
    return noise if noise is not None else lambda _: torch.randn_like(x)


def told(callback: Callback | None) -> Callback:
    """`callback`, or one that does nothing."""
    return callback if callback is not None else lambda _: None


def levels(sigmas: Tensor) -> list[float]:
    """The noise levels as Python floats: the step sizes are then exact in float64 whatever x is."""
    return [float(s) for s in sigmas]
