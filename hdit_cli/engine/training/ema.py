"""Exponential moving averages of the weights: one with warm-up, and any number of power-function ones."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hdit_cli.engine.run.posthoc import gamma_of


def ema_decay(step: int, *, power: float = 0.75, max_value: float = 0.9999) -> float:
    """Decay at an optimizer step, from 0: min(max_value, 1 - (1 + step)^-power).

    With power 3/4 it reaches 0.999 at 10,000 steps and 0.9999 at 215,443.
    """
    return min(max_value, 1 - (1 + step) ** -power)


class EMA:
    """A second copy of a network that follows the first; kept in the parameters' own dtype; running statistics are copied."""

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        both = zip(self.network.modules(), network.modules(), strict=True)
        norms = [(mine, now) for mine, now in both if isinstance(now, nn.modules.batchnorm._BatchNorm)]
        self._running = [pair for mine, now in norms for pair in zip(mine.buffers(), now.buffers(), strict=True)]

    @torch.no_grad()
    def update(
        self, parameters: Iterable[Tensor], *, decay: float | Tensor, keep: Tensor, one_pass: bool = False
    ) -> None:
        """average += (1 - decay) (parameter - average), or nothing where `keep` is 0.

        Args:
            decay: a number, or 0-d on the device.
            keep: 0-d tensor, 1 or 0, on the device: a refused step is masked without asking the host.
            one_pass: read and write each weight once, in one launch; rounded otherwise.
        """
        for mine, now in self._running:  # running statistics are means already, and a refused step did not move them
            mine.copy_(now)
        average: list[Tensor] = [*self.network.parameters()]
        current: list[Tensor] = [*parameters]
        if one_pass:
            _move(average, current, weight=1 - decay, refused=(1 - keep).float())
            return
        share = 1 - (decay.to(keep.dtype) if isinstance(decay, Tensor) else decay)
        change = torch._foreach_sub(current, average)
        torch._foreach_mul_(change, keep * share)
        torch._foreach_add_(average, change)


def _move(average: list[Tensor], current: list[Tensor], *, weight: float | Tensor, refused: Tensor) -> None:
    """average += weight (current - average) in one pass, masked by itself where `refused` is 1.

    The formula is that of gradient descent with a weight decay of -1 and a rate of -weight, whose fused kernel takes all tensors
    in one launch, the rate and the mask from the device. `_foreach_lerp_` has no mask, and takes no weight from the device but
    as a tensor for each weight.
    """
    rate = -weight.float() if isinstance(weight, Tensor) else -weight
    torch._fused_sgd_(
        average,
        current,
        [],
        weight_decay=-1.0,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        found_inf=refused,
    )


class PowerAverages:
    """Averages with the profile (gamma + 1) tau^gamma / t^(gamma + 1) over the updates tau = 0 ... t, one for each width.

    Karras et al. 2024 (EDM2), equation 4: decay(t) = (1 - 1/t)^(gamma + 1). Their time t counts the updates that were made.
    A refused step leaves the weights where they were and adds no time, so the profile is exact over the weights that there
    were, and post-hoc reconstruction need not know which steps were refused.

    Args:
        stds: relative standard deviations: widths of the profiles, as a part of the training so far.
    """

    def __init__(self, network: nn.Module, *, stds: Sequence[float]) -> None:
        device = next(network.parameters()).device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # whole numbers to 2^24 and 2^53
        self.updates = torch.zeros((), device=device, dtype=dtype)
        self.by_std = {std: EMA(network) for std in stds}
        self._exponents = {std: gamma_of(std) + 1 for std in stds}

    def update(self, parameters: Sequence[Tensor], *, keep: Tensor, one_pass: bool = False) -> None:
        """One step of all averages; nothing changes where `keep` is 0. Asks the host nothing."""
        if not self.by_std:
            return
        self.updates += keep
        t = self.updates.clamp(min=1)  # 0 while every step so far was refused
        for std, average in self.by_std.items():
            decay = (1 - 1 / t) ** self._exponents[std]
            average.update(parameters, decay=decay, keep=keep, one_pass=one_pass)
