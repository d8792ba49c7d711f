"""Which steps may change the weights: those whose loss and gradient are finite, judged on the device."""

import torch
from torch import Tensor

from hdit_cli.errors import NonFiniteError


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

    def check(self, step: int) -> None:
        """Asks the device whether the run must stop because of steps that were refused, the last of them `step`.

        Raises:
            NonFiniteError: it must; the weights on the disk are from before.
        """
        if self.stopped:
            times = f"{self.cap} times in a row, " if self.cap > 1 else ""
            raise NonFiniteError(
                f"the loss or a gradient became NaN or infinite, {times}at or before step {step}",
                hint="weights and average were not updated since; train.nonfinite=skip passes over single steps from the "
                "newest checkpoint on, and a lower optimizer.lr goes on from there; more optimizer.warmup or "
                "train.precision=fp32 need --fresh",
            )
