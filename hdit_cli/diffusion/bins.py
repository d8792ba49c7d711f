"""Losses by noise level: fixed bins on a log scale, so that the lines of several runs can be laid over each other."""

import torch
from torch import Tensor

PER_DECADE = 4
LOWEST, HIGHEST = -3, 3  # log10 of the outermost edges; what lies beyond counts in the first and the last bin
BINS = (HIGHEST - LOWEST) * PER_DECADE


def midpoints() -> list[float]:
    """The geometric middle of each bin, ascending."""
    return [10 ** (LOWEST + (number + 0.5) / PER_DECADE) for number in range(BINS)]


def sums_by_sigma(sigma: Tensor, loss: Tensor, *, dtype: torch.dtype) -> Tensor:
    """How many images fell into each bin, and the sum of their losses; a sum in a fixed order, without a host sync.

    Args:
        sigma, loss: (N,), on one device.
        dtype: of the sums.

    Returns:
        (2, BINS).
    """
    place = ((sigma.log10() - LOWEST) * PER_DECADE).floor().clamp(0, BINS - 1)
    inside = place == torch.arange(BINS, device=sigma.device)[:, None]  # (BINS, N)
    return torch.stack([inside.to(dtype).sum(1), torch.where(inside, loss.to(dtype), 0).sum(1)])
