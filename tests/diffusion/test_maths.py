"""Preconditioning, weightings, densities, schedules and guidance against their closed forms."""

import math

import pytest
import torch

from hdit_cli import catalog, noise_density, schedule
from hdit_cli.diffusion import weightings
from hdit_cli.diffusion.denoiser import Denoiser
from hdit_cli.diffusion.guidance import classifier_free

SD = 0.5
SIGMA = torch.logspace(-3, 3, 61, dtype=torch.float64)
DENSITIES = {
    "cosine": {"sigma_data": SD, "sigma_min": 1e-3, "sigma_max": 1e3},
    "cosine-interpolated": {
        "image_size": 128,
        "noise_d_low": 32,
        "noise_d_high": 128,
        "sigma_data": SD,
        "sigma_min": 1e-3,
        "sigma_max": 1e3,
    },
    "lognormal": {"loc": -1.2, "scale": 1.2},
    "loglogistic": {"loc": -0.7, "scale": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3},
    "loguniform": {"sigma_min": 1e-3, "sigma_max": 1e3},
    "split-lognormal": {"loc": -1.0, "scale_1": 1.0, "scale_2": 1.6},
}


class Network(torch.nn.Module):
    """Answers with a fixed function of what it was given, and remembers it."""

    def forward(self, x, sigma, label=None, augment=None, mapping=None):
        self.seen = (x, sigma, label)
        return 0.3 * x + (0 if label is None else label[:, None, None, None].to(x))


def make(name="karras"):
    return Denoiser(Network(), sigma_data=SD, weighting=catalog.get("weighting", name))


def test_a_network_of_zeros_is_the_best_linear_denoiser():
    """c_skip = sd^2 / (sd^2 + sigma^2), which is E[x0 | x] of Gaussian data."""
    denoiser = Denoiser(torch.nn.Identity(), sigma_data=SD, weighting=weightings.karras)
    c_skip, c_out, c_in = (c.flatten() for c in denoiser.scalings(SIGMA))
    torch.testing.assert_close(c_skip, SD**2 / (SD**2 + SIGMA**2))
    # the network's input and its target have variance 1 for data of variance sd^2 (Karras et al. 2022, appendix B.6)
    torch.testing.assert_close(c_in**2 * (SD**2 + SIGMA**2), torch.ones_like(SIGMA))
    torch.testing.assert_close((((1 - c_skip) * SD) ** 2 + (c_skip * SIGMA) ** 2) / c_out**2, torch.ones_like(SIGMA))


@pytest.mark.parametrize("name", catalog.names("weighting"))
def test_the_loss_is_the_weighted_error_of_the_denoised_image(name):
    expected = {
        "karras": lambda s: (s**2 + SD**2) / (s * SD) ** 2,
        "snr": lambda s: s**-2,
        "soft-min-snr": lambda s: 1 / (s**2 + SD**2),
        "min-snr": lambda s: (s**-2).clamp(max=5.0),
    }[name]
    denoiser = make(name)
    generator = torch.Generator().manual_seed(0)
    n = len(SIGMA)
    x0, noise = (torch.randn(n, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x = x0 + noise * SIGMA[:, None, None, None]
    error = (denoiser(x, SIGMA) - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(denoiser.loss(x0, noise, SIGMA), expected(SIGMA) * error, rtol=1e-9, atol=0)


def test_soft_min_snr_is_min_snr_but_for_the_turn():
    hard = weightings.min_snr(SIGMA, sigma_data=SD, gamma=4.0)
    soft = weightings.soft_min_snr(SIGMA, sigma_data=SD)
    far = (SIGMA < 0.01) | (SIGMA > 50)
    torch.testing.assert_close(hard[far], soft[far], rtol=1e-3, atol=0)
    assert float((soft / hard).min()) == pytest.approx(0.5, rel=0.01)


def test_every_density_is_here():
    assert set(DENSITIES) == set(catalog.names("density"))


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_monotone_and_in_range(name):
    u = torch.linspace(1e-6, 1 - 1e-6, 2001, dtype=torch.float64)
    sigma = noise_density(name, **DENSITIES[name])(u)
    step = sigma.diff()
    assert torch.isfinite(sigma).all()
    assert (step > 0).all() or (step < 0).all()
    if "sigma_min" in DENSITIES[name] and name != "cosine-interpolated":
        assert float(sigma.min()) >= 1e-3 * 0.999
        assert float(sigma.max()) <= 1e3 * 1.001


def test_split_lognormal_with_equal_halves_is_lognormal():
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    split = noise_density("split-lognormal", loc=-1.2, scale_1=1.2, scale_2=1.2)(u)
    torch.testing.assert_close(split, noise_density("lognormal", loc=-1.2, scale=1.2)(u))


def test_split_lognormal_is_continuous_at_its_mode():
    share = 1.0 / 2.6
    u = torch.tensor([share - 1e-9, share + 1e-9], dtype=torch.float64)
    low, high = noise_density("split-lognormal", **DENSITIES["split-lognormal"])(u)
    assert float(high - low) == pytest.approx(0, abs=1e-6)
    assert float(low) == pytest.approx(math.exp(-1.0), rel=1e-4)


def test_the_quantiles_of_the_interpolated_cosine_at_256_px():
    """Quantiles of training noise at 256 px, computed once by another implementation from 200,000 draws."""
    options = {"image_size": 256, "noise_d_low": 32, "noise_d_high": 256} | {
        "sigma_data": SD,
        "sigma_min": 1e-3,
        "sigma_max": 1e3,
    }
    u = 1 - torch.tensor([0.10, 0.25, 0.50, 0.75, 0.90], dtype=torch.float64)
    sigma = noise_density("cosine-interpolated", **options)(u)
    expected = torch.tensor([0.098, 0.347, 1.40, 5.65, 20.0], dtype=torch.float64)
    torch.testing.assert_close(sigma, expected, rtol=0.02, atol=0)


def test_a_missing_option_shows_at_once():
    with pytest.raises(TypeError, match="scale"):
        noise_density("lognormal", loc=0.0)


def test_schedules():
    for name in catalog.names("schedule"):
        sigmas = schedule(name)(9, sigma_min=0.02, sigma_max=70.0)
        assert sigmas.shape == (10,)
        assert float(sigmas[0]) == pytest.approx(70.0)
        assert float(sigmas[-2]) == pytest.approx(0.02)
        assert float(sigmas[-1]) == 0
        assert (sigmas.diff() < 0).all()
    steps = schedule("exponential")(9, sigma_min=0.02, sigma_max=70.0)[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(8), rtol=1e-4, atol=0)
    root = schedule("karras")(9, sigma_min=0.02, sigma_max=70.0, rho=3.0)[:-1] ** (1 / 3)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(8), rtol=1e-3, atol=0)


def test_guidance_is_one_call_and_its_formula():
    denoiser = make()
    calls = []
    label = torch.tensor([0, 2])

    def spy(x, sigma, label):
        calls.append(len(x))
        return denoiser(x, sigma, label=label)

    x, sigma = torch.randn(2, 3, 4, 4), torch.full((2,), 1.5)
    cond, uncond = denoiser(x, sigma, label=label), denoiser(x, sigma, label=torch.full_like(label, 3))
    guided = classifier_free(spy, conditions={"label": label}, none={"label": torch.full_like(label, 3)}, scale=2.5)(
        x, sigma
    )
    torch.testing.assert_close(guided, uncond + 2.5 * (cond - uncond))
    assert calls == [4]


@pytest.mark.parametrize("sigma, rows", [(0.5, 2), (1.0, 4), (3.0, 4), (3.5, 2)])
def test_guidance_acts_within_its_interval(sigma, rows):
    seen = []

    def spy(x, sigma, label):
        seen.append(len(x))
        return x

    x = torch.randn(2, 3, 4, 4)
    denoise = classifier_free(
        spy,
        conditions={"label": torch.tensor([0, 1])},
        none={"label": torch.tensor([2, 2])},
        scale=3.0,
        interval=(1.0, 3.0),
    )
    denoise(x, torch.full((2,), sigma))
    assert seen == [rows]
