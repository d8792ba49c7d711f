"""Exponential moving average of the weights, with warm-up."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def ema_decay(step: int, *, power: float = 0.75, max_value: float = 0.9999) -> float:
    """Decay at an optimizer step, from 0: min(max_value, 1 - (1 + step)^-power).

    With power 3/4 it reaches 0.999 at 10,000 steps and 0.9999 at 215,443.
    """
    return min(max_value, 1 - (1 + step) ** -power)


class EMA:
    """A second copy of a network that follows the first; kept in the parameters' own dtype, buffers copied."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, parameters: Iterable[Tensor], *, decay: float, keep: Tensor) -> None:
        """average += (1 - decay) (parameter - average), or nothing where `keep` is 0.

        Args:
            keep: 0-d tensor, 1 or 0, on the device: a refused step is masked without asking the host.
        """
        average: list[Tensor] = [*self.network.parameters()]
        current: list[Tensor] = [*parameters]
        change = torch._foreach_sub(current, average)
        torch._foreach_mul_(change, keep * (1 - decay))
        torch._foreach_add_(average, change)
