"""Settings of a sampling that were asked for and act in nothing are refused."""

import pytest

from hdit_cli.engine.sampling.settings import check_asked
from hdit_cli.errors import UsageError
from hdit_cli.tasks.sampling import Sampling


@pytest.mark.parametrize(
    "sampling, asked, match",
    [
        ({"sampler": "euler"}, {"eta": 0.5}, "deterministic"),
        ({"sampler": "ddpm"}, {"eta": 0.5}, "noise of its own"),
        ({"sampler": "ddpm"}, {"schedule": "karras"}, "over timesteps"),
        ({"sampler": "ddim"}, {"rho": 3.0}, "over timesteps"),
        ({"schedule": "exponential"}, {"rho": 3.0}, "karras"),
    ],
)
def test_what_acts_in_nothing_is_refused(sampling, asked, match):
    with pytest.raises(UsageError, match=match):
        check_asked([Sampling(**sampling)], asked)


def test_what_acts_in_one_point_of_a_sweep_is_taken():
    points = [Sampling(sampler="ddim"), Sampling(sampler="dpmpp-3m-sde")]
    check_asked(points, {"eta": 0.5, "rho": 3.0, "schedule": "karras"})
    check_asked([Sampling(sampler="ddim")], {"eta": 0.5})
