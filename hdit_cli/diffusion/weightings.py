"""Weights of the loss on the normalised target, by noise level.

The normalised loss is |F - (x0 - c_skip x) / c_out|^2; dividing its weight by c_out^2 gives the weight on |D - x0|^2.
"""

from torch import Tensor


def karras(sigma: Tensor, *, sigma_data: float) -> Tensor:
    """1: equal weight at every noise level (Karras et al. 2022)."""
    return sigma.new_ones(sigma.shape)


def snr(sigma: Tensor, *, sigma_data: float) -> Tensor:
    """c_out^2 / sigma^2 = sigma_data^2 / (sigma^2 + sigma_data^2)."""
    return sigma_data**2 / (sigma**2 + sigma_data**2)


def soft_min_snr(sigma: Tensor, *, sigma_data: float) -> Tensor:
    """1 / (sigma^2 + sigma_data^2) on |D - x0|^2 (HDiT eq. 5 with gamma = sigma_data^-2)."""
    return (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2


def min_snr(sigma: Tensor, *, sigma_data: float, gamma: float = 5.0) -> Tensor:
    """min(1 / sigma^2, gamma) on |D - x0|^2 (Hang et al. 2023)."""
    c_out_squared = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2)
    return sigma.pow(-2).clamp(max=gamma) * c_out_squared
