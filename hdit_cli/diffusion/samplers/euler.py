"""First-order samplers: Euler (Karras et al. 2022, algorithm 1 without correction) and Euler with ancestral noise."""

import itertools

from torch import Tensor

from hdit_cli.diffusion.samplers.steps import Callback, Denoise, Noise, at, levels, noise_source, told


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, callback: Callback | None = None
) -> Tensor:
    """x += (sigma_next - sigma) (x - D) / sigma. Deterministic: `noise` is not drawn from."""
    steps = levels(sigmas)
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        d = (x - at(denoise, x, sigma)) / sigma
        x = x + d * (following - sigma)
        told(callback)(i)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Euler down to sigma_down, then noise of sigma_up. eta 0 is Euler."""
    draw, steps = noise_source(noise, x), levels(sigmas)
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        up = min(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        d = (x - at(denoise, x, sigma)) / sigma
        x = x + d * (down - sigma)
        if following > 0 and up > 0:
            x = x + draw(i) * up
        told(callback)(i)
    return x
