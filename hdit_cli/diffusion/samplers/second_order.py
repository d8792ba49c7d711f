"""Two calls of the denoiser a step: Heun (Karras et al. 2022, algorithm 1) and DPM-Solver-2 (Lu et al. 2022)."""

import itertools

from torch import Tensor

from hdit_cli.diffusion.samplers.steps import Callback, Denoise, Noise, at, levels, told


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """Trapezoidal rule in sigma; the step to 0 is Euler's. Deterministic: `noise` is not drawn from."""
    steps = levels(sigmas)
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        d = (x - at(denoise, x, sigma)) / sigma
        if following > 0:
            guess = x + d * (following - sigma)
            d = (d + (guess - at(denoise, guess, following)) / following) / 2
        x = x + d * (following - sigma)
        told(callback)(i)
    return x


def dpm_2(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """Midpoint rule, the midpoint at the geometric mean; the step to 0 is Euler's. Deterministic: `noise` is not drawn from."""
    steps = levels(sigmas)
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        d = (x - at(denoise, x, sigma)) / sigma
        if following > 0:
            middle = (sigma * following) ** 0.5
            half = x + d * (middle - sigma)
            d = (half - at(denoise, half, middle)) / middle
        x = x + d * (following - sigma)
        told(callback)(i)
    return x
