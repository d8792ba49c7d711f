"""The discrete process: respacing, closed forms on Gaussian data, the sigma view."""

import math

import pytest
import torch

from hdit_cli.diffusion.samplers.timesteps import ddim, ddim_reversed, ddpm
from hdit_cli.diffusion.sigma_view import SigmaView
from hdit_cli.diffusion.timesteps import discretised_log_likelihood, linear_table, respace
from hdit_cli.errors import UsageError

TABLE = linear_table()
MEAN, STD = 0.3, 0.7  # of the data


def best_eps(x, t, table=TABLE):
    """The noise that the best network predicts for data N(MEAN, STD^2)."""
    abar = table.at(table.abar, t, like=x)
    return (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * STD**2 + 1 - abar)


class Best(torch.nn.Module):
    def forward(self, x, t):
        return best_eps(x, t.round().long())


def test_respacing():
    assert respace("1") == [0]
    assert respace("1000") == list(range(1000)) == respace("ddim1000")
    assert respace([2, 0, 1], total=9) == [0, 2, 6]
    assert respace("250")[-1] == 999 and respace("ddim250")[-1] == 996
    possible = [n for n in range(1, 1001) if _possible(f"ddim{n}")]
    assert len(possible) == 62


def _possible(text):
    try:
        return bool(respace(text))
    except UsageError:
        return False


@pytest.mark.parametrize(
    "text", ["", "ddim", "ddim51", "1001", "-3", "3.5", "0", "ddim1", "a", "400,400,400", "9" * 30, ","]
)
def test_respacing_refuses(text):
    with pytest.raises(UsageError):
        respace(text)


def test_respaced_process_has_the_same_noise_where_it_stops():
    steps = respace("25")
    table = TABLE.respaced(steps)
    assert torch.allclose(table.abar, TABLE.abar[steps], rtol=1e-12)
    assert table.timesteps.tolist() == steps
    assert float(linear_table(500).abar[-1]) == pytest.approx(float(TABLE.abar[-1]), rel=0.2)


def test_ddim_converges_to_the_closed_form():
    """The probability flow keeps the place within the distribution; DDIM is of first order."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    abar = float(TABLE.abar[-1])
    exact = MEAN + STD * (x - math.sqrt(abar) * MEAN) / math.sqrt(abar * STD**2 + 1 - abar)
    errors = []
    for count in (50, 200):
        out = ddim(best_eps, x, TABLE.respaced(respace(str(count))))
        errors.append(float((out - exact).abs().max()))
    assert errors[1] < errors[0] / 3 and errors[1] < 0.02


def test_ddim_and_its_way_back():
    x0 = MEAN + STD * torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, 1, 3, 3)
    back = ddim(best_eps, ddim_reversed(best_eps, x0, TABLE), TABLE)
    assert float((back - x0).abs().max()) < 0.01


def test_ddpm_draws_from_the_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 1, 1, generator=generator)
    draws = lambda _: torch.randn(x.shape, generator=generator)  # noqa: E731
    out = ddpm(best_eps, x, TABLE.respaced(respace("250")), noise=draws)
    assert float(out.mean()) == pytest.approx(MEAN, abs=0.04)
    assert float(out.std()) == pytest.approx(STD, abs=0.04)


def test_draws_do_not_shift_and_the_last_is_unused():
    x, table, asked = torch.randn(1, 1, 2, 2), TABLE.respaced(respace("4")), []

    def noise(j):
        asked.append(j)
        return torch.full_like(x, float("nan")) if j == 3 else torch.ones_like(x)

    for sampler in (ddpm, ddim):
        asked.clear()
        assert sampler(best_eps, x, table, noise=noise, **({"eta": 1.0} if sampler is ddim else {})).isfinite().all()
        assert asked == [0, 1, 2, 3]


def test_bound_is_least_for_the_best_network():
    generator = torch.Generator().manual_seed(1)
    x0 = MEAN + STD * torch.randn(2000, 1, 1, 1, generator=generator)
    i = torch.full((2000,), 300)
    x = TABLE.noised(x0, i, torch.randn(x0.shape, generator=generator))
    best = best_eps(x, i)
    bits = [float(TABLE.bound(best + off, x0, x, i).mean()) for off in (0.0, 0.1, -0.1)]
    assert bits[0] < min(bits[1:])


def test_bins_of_a_pixel_sum_to_one():
    x = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, log_std in ((0.1, -2.0), (-0.95, -3.0)):
        mass = discretised_log_likelihood(x, torch.tensor(mean), log_std=torch.tensor(log_std)).exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-6)


def test_sigma_view_is_the_best_denoiser_on_gaussian_data():
    view = SigmaView(Best(), TABLE, quantise=True)
    sigma = TABLE.sigmas[[0, 100, 500, 999]]
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    level = sigma.view(-1, 1, 1, 1)
    exact = (STD**2 * x + level**2 * MEAN) / (STD**2 + level**2)
    assert torch.allclose(view(x, sigma), exact, atol=1e-6)


def test_timesteps_of_noise_levels():
    view = SigmaView(Best(), TABLE)
    assert (view.sigma_min, view.sigma_max) == pytest.approx((0.0100005, 157.4072808), rel=1e-5)
    between = (TABLE.sigmas[100] * TABLE.sigmas[101]).sqrt()
    sigma = torch.stack([torch.tensor(1e-4).double(), between, torch.tensor(1e4).double()])
    assert view.timestep(sigma).tolist() == pytest.approx([0, 100.5, 999])


@pytest.mark.parametrize("eta", [1.0, 5.0])
def test_ddim_with_all_its_noise_is_finite_after_long_steps(eta):
    """What is left for the direction is 0 then, and rounds to a little below."""
    for steps in (1, 2, 3, 5, 10):
        table = linear_table().respaced(respace(str(steps)))
        x = ddim(lambda x, t: torch.cat([x, x], dim=1), torch.randn(1, 2, 2, 2), table, eta=eta, clip=True)
        assert torch.isfinite(x).all(), steps
