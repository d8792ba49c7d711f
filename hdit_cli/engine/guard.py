"""Which steps may change the weights: those whose loss and gradient are finite, judged on the device."""

import torch
from torch import Tensor


class FiniteGuard:
    """Refuses non-finite steps, and every step once `cap` of them came in a row. Asks the host nothing.

    Args:
        cap: 1 stops at the first; more passes over single ones.
    """

    def __init__(self, *, cap: int, device: torch.device) -> None:
        self.cap = cap
        self.in_row = torch.zeros((), device=device)
        self.stopped = torch.zeros((), device=device)  # 1 from the cap on

    def judge(self, norm: Tensor) -> Tensor:
        """1 where the step with this gradient norm must change nothing, else 0; 0-d, on the device."""
        bad = (~torch.isfinite(norm)).float()
        self.in_row = (self.in_row + bad) * bad
        self.stopped = torch.maximum(self.stopped, (self.in_row >= self.cap).float())
        return torch.maximum(bad, self.stopped)
