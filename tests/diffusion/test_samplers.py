"""Samplers on Gaussian data, whose denoiser and whose solution are known in closed form."""

import math

import pytest
import torch

from hdit_cli import catalog, sampler, schedule
from hdit_cli.errors import UsageError

SD, SIGMA_MIN, SIGMA_MAX = 0.5, 1e-2, 80.0
DETERMINISTIC = {  # name -> (options, order of convergence)
    "euler": ({}, 1),
    "euler-ancestral": ({"eta": 0.0}, 1),
    "heun": ({}, 2),
    "dpm-2": ({}, 2),
    "lms": ({}, 2),
    "dpmpp-2m": ({}, 2),
    "dpmpp-2m-sde": ({"eta": 0.0, "solver": "heun"}, 2),
    "dpmpp-3m-sde": ({"eta": 0.0}, 2),
}
SIGMAS = catalog.over_noise_levels()  # the others: test_timesteps
STOCHASTIC = ["euler-ancestral", "dpmpp-2m-sde", "dpmpp-3m-sde"]


def denoise(x, sigma):
    """E[x0 | x] for x0 ~ N(0, SD^2)."""
    return x * (SD**2 / (SD**2 + sigma**2))[:, None, None, None]


def error(name, steps, options):
    x = torch.full((1, 1, 1, 1), SIGMA_MAX, dtype=torch.float64)
    sigmas = schedule("karras")(steps, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX).double()
    found = sampler(name)(denoise, x, sigmas, **options)
    exact = SIGMA_MAX * math.sqrt(SD**2 / (SD**2 + SIGMA_MAX**2))
    return abs(float(found) / exact - 1)


def test_every_sampler_of_the_catalog_is_here():
    assert set(DETERMINISTIC) == set(SIGMAS)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_converges_at_its_order(name):
    options, order = DETERMINISTIC[name]
    errors = [error(name, steps, options) for steps in (10, 40)]
    assert errors[1] < 0.07
    assert errors[0] / errors[1] > 1.8 ** (2 * order)


@pytest.mark.parametrize(
    "name, options, expected",  # independent computation of the same problem: errors at 10, 20, 40 steps
    [
        ("euler", {}, (0.254, 0.130, 0.066)),
        ("heun", {}, (0.185, 0.037, 0.0082)),
        ("dpm-2", {}, (0.105, 0.021, 0.0046)),
        ("lms", {}, (0.154, 0.028, 0.0030)),
        ("dpmpp-2m", {}, (0.105, 0.039, 0.0086)),
        ("dpmpp-2m-sde", {"eta": 0.0, "solver": "heun"}, (0.229, 0.063, 0.013)),
        ("dpmpp-3m-sde", {"eta": 0.0}, (0.262, 0.0017, 0.0010)),
    ],
)
def test_known_errors(name, options, expected):
    for steps, value in zip((10, 20, 40), expected, strict=True):
        assert error(name, steps, options) == pytest.approx(value, rel=0.06)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_keeps_the_variance(name):
    """With eta = 1 the samples of Gaussian data have its variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64) * SIGMA_MAX
    sigmas = schedule("karras")(100, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)

    def noise(i):
        return torch.randn(x.shape, generator=generator, dtype=torch.float64)

    found = sampler(name)(denoise, x, sigmas, noise=noise, eta=1.0)
    assert float(found.std()) == pytest.approx(SD, rel=0.06)


@pytest.mark.parametrize("name", SIGMAS)
def test_deterministic_from_its_noise(name):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * SIGMA_MAX
    sigmas = schedule("karras")(6, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    draws = torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    asked = []

    def noise(i):
        asked.append(i)
        return draws[i]

    told = []
    first = sampler(name)(denoise, x, sigmas, noise=noise, callback=told.append)
    assert told == list(range(6))
    assert torch.equal(first, sampler(name)(denoise, x, sigmas, noise=noise))
    assert 5 not in asked  # the step to sigma 0 draws nothing
    assert set(asked) == (set(range(5)) if name in STOCHASTIC else set())


def test_unknown_solver_and_name():
    x, sigmas = torch.zeros(1, 1, 1, 1), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="midpoint or heun"):
        sampler("dpmpp-2m-sde")(denoise, x, sigmas, solver="euler")
    with pytest.raises(UsageError, match="did you mean 'dpmpp-3m-sde'"):
        sampler("dpmpp-3m-sd")
