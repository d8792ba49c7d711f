"""Linear multistep of Adams-Bashforth kind in sigma: Lagrange polynomials through past slopes, integrated exactly."""

import itertools

import numpy as np
from torch import Tensor

from hdit_cli.diffusion.samplers.steps import Callback, Denoise, Noise, at, levels, told


def coefficients(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the Lagrange basis polynomials over `nodes`."""
    result = []
    for j, node in enumerate(nodes):
        others = nodes[:j] + nodes[j + 1 :]
        basis = np.poly1d(others, r=True) / float(np.prod([node - other for other in others]))
        integral = np.polyint(basis)
        result.append(float(integral(end) - integral(start)))
    return result


def lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    order: int = 4,
    callback: Callback | None = None,
) -> Tensor:
    """One call of the denoiser a step, up to `order` past slopes. Deterministic: `noise` is not drawn from."""
    steps = levels(sigmas)
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, following) in enumerate(itertools.pairwise(steps)):
        slopes = [(x - at(denoise, x, sigma)) / sigma, *slopes][:order]
        nodes = [steps[i - j] for j in range(len(slopes))]
        for weight, slope in zip(coefficients(nodes, sigma, following), slopes, strict=True):
            x = x + weight * slope
        told(callback)(i)
    return x
