"""Preconditioning of a network into a denoiser, and its training loss (Karras et al. 2022, table 1 and eq. 7)."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn


class Scalings(NamedTuple):
    """c_skip, c_out, c_in, each (N, 1, 1, 1)."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Denoiser(nn.Module):
    """D(x, sigma) = c_skip x + c_out F(c_in x, sigma).

    Args:
        network: F, called as (x, sigma, label=, augment=, mapping=).
        sigma_data: standard deviation of the images.
        weighting: weight of the normalised loss at sigma (N,), given sigma_data.
    """

    def __init__(self, network: nn.Module, *, sigma_data: float, weighting: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.weighting = weighting

    def scalings(self, sigma: Tensor) -> Scalings:
        """The preconditioning at each noise level (N,)."""
        sigma = sigma[:, None, None, None]
        total = sigma**2 + self.sigma_data**2
        return Scalings(self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), total.rsqrt())

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        mapping: Tensor | None = None,
    ) -> Tensor:
        """The denoised images.

        Args:
            x: (N, C, H, W), x0 + sigma * noise.
            sigma: (N,), positive.
            label, augment, mapping: conditions, as the network takes them.

        Returns:
            (N, C, H, W).
        """
        c_skip, c_out, c_in = self.scalings(sigma)
        out = self.network(x * c_in, sigma, label=label, augment=augment, mapping=mapping)
        return c_skip * x + c_out * out.to(x.dtype)

    def loss(
        self,
        x0: Tensor,
        noise: Tensor,
        sigma: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        mapping: Tensor | None = None,
    ) -> Tensor:
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
        out = self.network(x * c_in, sigma, label=label, augment=augment, mapping=mapping)
        error = (out.to(target.dtype) - target).square().flatten(1).mean(1)
        return self.weighting(sigma, sigma_data=self.sigma_data) * error


class LossOf(nn.Module):
    """`denoiser.loss` as a forward pass, which is what wrappers such as DistributedDataParallel hook into."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.loss = denoiser.loss  # may be replaced by a compiled one, which then serves training alone

    def forward(
        self, x0: Tensor, noise: Tensor, sigma: Tensor, label: Tensor | None, augment: Tensor | None
    ) -> Tensor:  # => (N,)
        return self.loss(x0, noise, sigma, label=label, augment=augment)
