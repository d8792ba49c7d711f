"""Power-function averages: their profile, their widths, refused steps; fits of one profile by others."""

import numpy as np
import pytest
import torch
from torch import nn

from hdit_cli.engine.run.posthoc import fit, gamma_of, inner_products
from hdit_cli.engine.run.weights import label, name_of, parse, parse_stds, std_of
from hdit_cli.engine.training.ema import PowerAverages
from hdit_cli.errors import UsageError

STDS = (0.03, 0.05, 0.1, 0.15, 0.25)
YES, NO = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)


def weights_in_profile(std, *, time):
    """Part of each step in an average over `time` steps: the integral of the profile over the step."""
    edges = (np.arange(time + 1) / time) ** (gamma_of(std) + 1)
    return np.diff(edges)


def network_of(values):
    network = nn.Linear(len(values), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        network.weight.copy_(torch.as_tensor(values)[None])
    return network


def follow(trajectory, *, stds, keep=None):
    """Averages over the rows of (time, n); the network starts at rows nobody takes."""
    network = network_of(np.full(trajectory.shape[1], 7.0))
    averages = PowerAverages(network, stds=stds)
    for number, row in enumerate(trajectory):
        averages.update([torch.as_tensor(row)[None]], keep=YES if keep is None or keep[number] else NO)
    return averages


def test_gamma_of_published_widths():
    """EDM2, appendix C."""
    assert [gamma_of(std) for std in (0.05, 0.10, 0.15)] == pytest.approx([16.972, 6.937, 3.558], abs=2e-3)


@pytest.mark.parametrize("std", [0.001, *STDS, 0.28])
def test_the_width_of_a_profile_is_its_standard_deviation(std):
    gamma = gamma_of(std)
    mean, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)  # moments of (gamma + 1) tau^gamma on [0, 1]
    assert np.sqrt(second - mean**2) == pytest.approx(std, rel=1e-4)


def test_an_average_has_the_profile_of_its_width():
    """Of weights that are the unit vectors in turn, the average is the profile itself; where it began is forgotten."""
    averages = follow(np.eye(50), stds=STDS)
    for std in STDS:
        found = averages.by_std[std].network.weight.squeeze().numpy()
        np.testing.assert_allclose(found, weights_in_profile(std, time=50), atol=1e-14)


def test_a_refused_step_adds_no_time():
    """Also one at the very start, whose time would be 0, and one whose weights are not finite."""
    keep = np.random.default_rng(0).random(60) < 0.7
    keep[:2] = False
    trajectory = np.random.default_rng(1).normal(size=(60, 4))
    masked, without = follow(trajectory, stds=STDS, keep=keep), follow(trajectory[keep], stds=STDS)
    assert int(masked.updates) == keep.sum()
    for std in STDS:
        assert torch.equal(masked.by_std[std].network.weight, without.by_std[std].network.weight)


def test_inner_products_are_the_integrals():
    profiles = np.array([(gamma_of(std), time) for std in (0.05, 0.2) for time in (0.4, 1.0)])
    found = inner_products(profiles[:, None], profiles[None])

    nodes, weights = np.polynomial.legendre.leggauss(60)

    def value(profile, tau):
        gamma, time = profile
        return (gamma + 1) * tau**gamma / time ** (gamma + 1)

    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            tau = (nodes + 1) / 2 * min(a[1], b[1])
            wanted = weights @ (value(a, tau) * value(b, tau)) * min(a[1], b[1]) / 2
            assert found[i, j] == pytest.approx(wanted, rel=1e-8)


def evenly(count, *, time=4000, stds=(0.05, 0.10)):
    return [(std, time * (n + 1) // count) for n in range(count) for std in stds]


@pytest.mark.parametrize("std", [0.03, 0.075, 0.15, 0.25])
def test_the_error_of_a_fit_is_the_distance_of_the_profiles(std):
    profiles = evenly(20)
    found = fit(profiles, std=std, time=4000)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)
    combined = np.zeros(4000)
    for coefficient, (width, time) in zip(found.coefficients, profiles, strict=True):
        combined[:time] += coefficient * weights_in_profile(width, time=time)
    wanted = weights_in_profile(std, time=4000)
    assert found.error == pytest.approx(np.linalg.norm(combined - wanted) / np.linalg.norm(wanted), rel=1e-2)


@pytest.mark.parametrize("std", [0.03, 0.075, 0.15])
def test_twice_the_snapshots_a_quarter_of_the_error(std):
    errors = [fit(evenly(count), std=std, time=4000).error for count in (16, 32, 64)]
    print(f"\nstd {std}: profile error with 16, 32, 64 snapshots {errors[0]:.2e} {errors[1]:.2e} {errors[2]:.2e}")
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


def test_few_snapshots_leave_what_never_changes_as_it_is():
    """One snapshot, two, or two of the same time: the sum of the coefficients stays 1."""
    for profiles in ([(0.1, 10)], evenly(1), [*evenly(1), *evenly(1)]):
        assert fit(profiles, std=0.2, time=4000).coefficients.sum() == pytest.approx(1, abs=1e-12)


def test_a_profile_that_is_there_is_fitted_exactly():
    found = fit(evenly(20), std=0.1, time=4000)
    assert found.error < 1e-6
    np.testing.assert_allclose(found.coefficients, np.eye(40)[-1], atol=1e-10)


@pytest.mark.parametrize(
    ("given", "name"),
    [("ema", "ema"), ("RAW", "raw"), (0.05, "std 0.050"), ("0.1", "std 0.100"), ("std 0.0505", "std 0.0505")],
)
def test_names_of_weights(given, name):
    assert parse(given) == name
    assert parse(parse(given)) == name
    assert std_of(name) is None or name_of(std_of(name)) == name


def test_no_two_widths_have_one_label():
    widths = [0.05, 0.0501, 0.05001, 0.1, 0.10000001]
    assert len({label(std) for std in widths}) == len(widths)
    assert parse_stds("0.05, 0.10,0.05") == [0.05, 0.10]


@pytest.mark.parametrize("bad", ["best", "", "0", "-1", "0.29", "nan", "inf", "std", "0.05,0.1"])
def test_other_weights_are_refused(bad):
    with pytest.raises(UsageError):
        parse(bad)


@pytest.mark.parametrize("bad", ["", ",", "x", "0.05;0.1", "0.05,1", "nan"])
def test_other_lists_of_widths_are_refused(bad):
    with pytest.raises(UsageError):
        parse_stds(bad)
