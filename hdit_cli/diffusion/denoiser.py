"""Preconditioning of a network into a denoiser, and its training loss (Karras et al. 2022, table 1 and eq. 7)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn


class Scalings(NamedTuple):
    """c_skip, c_out, c_in, each (N, 1, 1, 1)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Denoiser(nn.Module):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise(sigma)).

    Args:
        network: F, called as (x, c_noise, **conditions).
        sigma_data: standard deviation of the images.
        weighting: weight of the normalised loss at sigma (N,), given sigma_data.
        c_noise: what the network is told of a noise level (N,).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        sigma_data: float,
        weighting: Callable[..., Tensor],
        c_noise: Callable[[Tensor], Tensor] = lambda sigma: sigma,
    ) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.weighting = weighting
        self.c_noise = c_noise

    def scalings(self, sigma: Tensor) -> Scalings:
        """The preconditioning at each noise level (N,)."""
        sigma = sigma[:, None, None, None]
        total = sigma**2 + self.sigma_data**2
        return Scalings(self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt())

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """The denoised images.

        Args:
            x: (N, C, H, W), x0 + sigma * noise.
            sigma: (N,), positive; in float32 at least, also where x is in less: rounded, levels would run together.
            conditions: as the network takes them.

        Returns:
            (N, C, H, W).
        """
        c_skip, c_out, c_in = self.scalings(sigma)
        out = self.network((x * c_in).to(x.dtype), self.c_noise(sigma), **conditions)
        return c_skip * x + c_out * out.to(x.dtype)

    def loss(self, x0: Tensor, noise: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """Weighted squared error of the normalised target, mean over pixels.

        Args:
            x0, noise: (N, C, H, W), clean images in [-1, 1] and standard normal noise.
            sigma: (N,), positive.

        Returns:
            (N,).
        """
        c_skip, c_out, c_in = self.scalings(sigma)
        x = x0 + noise * sigma[:, None, None, None]
        target = (x0 - c_skip * x) / c_out
        out = self.network(x * c_in, self.c_noise(sigma), **conditions)
        error = (out.to(target.dtype) - target).square().flatten(1).mean(1)
        return self.weighting(sigma, sigma_data=self.sigma_data) * error


def timestep_like(sigma: Tensor) -> Tensor:
    """c_noise = 1000 ln(sigma) / 4, EDM's on the scale of timesteps, for networks that tell those apart."""
    return 250 * sigma.log()
