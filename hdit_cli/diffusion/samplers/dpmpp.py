"""Exponential integrators in h = ln(sigma / sigma_next): DPM-Solver++(2M) (Lu et al. 2022), its SDE form, and the third-order SDE.

With eta the noise put back: 0 solves the probability-flow ODE, 1 the reverse SDE. The step to sigma 0 returns D.
"""

import itertools
import math

from torch import Tensor

from hdit_cli.diffusion.samplers.steps import Callback, Denoise, Noise, at, levels, noise_source, told


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M). Deterministic: `noise` is not drawn from."""
    return dpmpp_2m_sde(denoise, x, sigmas, eta=0.0, callback=callback)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    solver: str = "midpoint",
    callback: Callback | None = None,
) -> Tensor:
    """Second-order multistep for the SDE, one call of the denoiser a step.

    Args:
        solver: "midpoint" or "heun", how the last step's D enters.
    """
    if solver not in ("midpoint", "heun"):
        raise ValueError(f"unknown solver {solver!r}: midpoint or heun")
    draw, steps = noise_source(noise, x), levels(sigmas)
    old, h_last = None, 0.0
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        denoised = at(denoise, x, sigma)
        if following == 0:
            x = denoised
        else:
            h = math.log(sigma / following)
            g = h * (1 + eta)
            x = (following / sigma) * math.exp(-eta * h) * x - math.expm1(-g) * denoised
            if old is not None:
                weight = -math.expm1(-g) / 2 if solver == "midpoint" else 1 + math.expm1(-g) / g
                x = x + weight * (h / h_last) * (denoised - old)
            if eta:
                x = x + draw(i) * (following * math.sqrt(-math.expm1(-2 * eta * h)))
            old, h_last = denoised, h
        told(callback)(i)
    return x


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Third-order multistep for the SDE, one call of the denoiser a step; its first steps are of first and second order."""
    draw, steps = noise_source(noise, x), levels(sigmas)
    past: list[tuple[Tensor, float]] = []  # (denoised, h), newest first
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        denoised = at(denoise, x, sigma)
        if following == 0:
            x = denoised
        else:
            h = math.log(sigma / following)
            g = h * (1 + eta)
            phi_2 = math.expm1(-g) / g + 1
            phi_3 = phi_2 / g - 0.5
            x = (following / sigma) * math.exp(-eta * h) * x - math.expm1(-g) * denoised
            if len(past) == 1:
                r0 = past[0][1] / h
                x = x + phi_2 * (denoised - past[0][0]) / r0
            elif len(past) == 2:
                r0, r1 = past[0][1] / h, past[1][1] / h
                u, v = (denoised - past[0][0]) / r0, (past[0][0] - past[1][0]) / r1
                e = (u - v) / (r0 + r1)
                x = x + phi_2 * (u + r0 * e) - phi_3 * e
            if eta:
                x = x + draw(i) * (following * math.sqrt(-math.expm1(-2 * eta * h)))
            past = [(denoised, h), *past][:2]
        told(callback)(i)
    return x
