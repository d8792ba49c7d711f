"""A network of discrete timesteps as a denoiser of noise levels, so that every sampler of sigmas runs its weights.

The variance-preserving x_t is x / sqrt(1 + sigma^2) with sigma_t = sqrt((1 - abar_t) / abar_t) (Karras et al. 2022, table 1).
"""

from typing import Any

import torch
from torch import Tensor, nn

from hdit_cli.diffusion.timesteps import Table


class SigmaView(nn.Module):
    """D(x, sigma) = x - sigma eps(x / sqrt(1 + sigma^2), t(sigma)).

    Args:
        network: called as (x, t (N,), **conditions), returns the noise in its first C channels; a variance after it is dropped.
        table: the full process the network was trained with.
        quantise: take the nearest timestep instead of one between two.
    """

    def __init__(self, network: nn.Module, table: Table, *, quantise: bool = False) -> None:
        super().__init__()
        self.network, self.table, self.quantise = network, table, quantise

    @property
    def sigma_min(self) -> float:
        return float(self.table.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """Sampling starts from noise times sqrt(1 + sigma_max^2), which scaled to the network is standard normal noise."""
        return float(self.table.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """t (N,) of noise levels (N,): linear in log sigma between two entries of the table, clamped outside it."""
        exact = torch.float32 if sigma.device.type == "mps" else torch.float64
        logs = self.table.sigmas.log().to(sigma.device, exact)
        wanted = (
            sigma.to(exact).log().maximum(logs[:1]).minimum(logs[-1:])
        )  # bounds as tensors: torch.export follows them
        high = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
        share = (wanted - logs[high - 1]) / (logs[high] - logs[high - 1])
        place = high - 1 + share
        return (place.round() if self.quantise else place).to(torch.promote_types(sigma.dtype, torch.float32))

    def forward(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """The denoised images (N, C, H, W) of x = x0 + sigma noise at their noise levels (N,)."""
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        scaled = (x * (1 + level.square()).rsqrt()).to(x.dtype)
        out = self.network(scaled, self.timestep(sigma), **conditions)
        return x - level * out[:, : x.shape[1]].to(x.dtype)
