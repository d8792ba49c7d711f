"""The gradient noise scale: how large a batch still pays (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

B_simple = S / |G|², both estimated from the squared norms of gradients of a small and of the whole batch:
    |G|² = (B_big |G_big|² - B_small |G_small|²) / (B_big - B_small)            (A.2)
    S    = (|G_small|² - |G_big|²) / (1 / B_small - 1 / B_big)                  (A.3)
The small batch is what one backward pass of one process sees, before gradients are summed: with several processes its
share, with accumulation a micro-batch. Where there is one process and one pass, nothing is known.

Both squared norms are averaged exponentially over the steps, and the ratio is taken of the averages. Noise levels are
stratified over the batch and over each share alike, so this is the noise scale of the stratified gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hdit_cli.engine.training.exchange import take_means
from hdit_cli.engine.training.shard import Shards

DECAY = 0.995  # per step: an average over about 200 steps


class NoiseScale:
    """The two averages of one process, on the device.

    Args:
        loss_of: what is called forward; its gradients are looked at on their way to the other processes.
        batch: images of one optimizer step.
        accumulate: backward passes of one step.
        world: processes.
        like: a 0-d tensor that gives device and dtype of the averages.
        shards: where the network is divided.
        apart: parameters that are no part of the network.
    """

    def __init__(
        self,
        loss_of: nn.Module,
        *,
        batch: int,
        accumulate: int,
        world: int,
        like: Tensor,
        shards: Shards | None = None,
        apart: Sequence[Tensor] = (),
    ) -> None:
        self.batch, self.accumulate, self.shares = batch, accumulate, accumulate * world
        self.small, self.big = torch.zeros_like(like), torch.zeros_like(like)
        others = {id(parameter) for parameter in apart}
        self._order = [id(parameter) for parameter in loss_of.parameters() if id(parameter) not in others]
        self._norms: dict[int, Tensor] = {}  # of the small batch's gradient, by parameter
        self.first_pass = True  # of a step
        if shards is not None:  # which exchange gradients after every pass
            shards.look(self._see_of_first)
        else:  # accumulated, the first of several passes is looked at, before any exchange
            take_means(loss_of, look=self.see if accumulate == 1 else None)

    def _see_of_first(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        if self.first_pass:
            self.see(parameters, gradients)

    def see(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Notes the norms of some of this process's own gradients, of the mean over its images."""
        norms = torch._foreach_norm(list(gradients))
        self._norms |= dict(zip(map(id, parameters), norms, strict=True))

    def see_first(self, parameters: Sequence[Tensor]) -> None:
        """After the first of several backward passes: what has been accumulated is the gradient of one micro-batch."""
        pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        self.see([parameter for parameter, _ in pairs], [gradient for _, gradient in pairs])

    def add(self, norm: Tensor, *, refused: Tensor) -> None:
        """Ends a step whose whole gradient has this norm; `refused` is 1 where the step changes nothing."""
        if self.shares == 1:
            return
        # in the order of the parameters, as the buckets they arrive in change in the course of a run; the losses are
        # divided by the number of passes, so their gradients are too
        norms = torch.stack([self._norms[key] for key in self._order if key in self._norms])
        small = norms.to(self.small.dtype).square().sum() * self.accumulate**2
        big = norm.to(self.big.dtype).square()
        kept = refused == 0
        self.small = torch.where(kept, torch.lerp(small, self.small, DECAY), self.small)
        self.big = torch.where(kept, torch.lerp(big, self.big, DECAY), self.big)
        self._norms = {}

    def value(self, small: Sequence[float]) -> float | None:
        """B_simple in images; None where it cannot be known, or where the averages do not hold it yet.

        Args:
            small: `self.small` of every process.
        """
        if self.shares == 1:
            return None
        mean, big = sum(small) / len(small), float(self.big)
        few = self.batch / self.shares
        signal = (self.batch * big - few * mean) / (self.batch - few)
        noise = (mean - big) / (1 / few - 1 / self.batch)
        return noise / signal if signal > 0 and noise > 0 else None

    # Into a checkpoint and back

    def told(self, small: Sequence[float]) -> dict[str, Any]:
        """The state of all processes, for `state.json`."""
        return {"shares": self.shares, "small": list(small), "big": float(self.big)}

    def restore(self, told: dict[str, Any] | None, *, rank: int, world: int) -> None:
        """Takes over a checkpoint's averages; where the batch is shared otherwise now, they start anew."""
        if told and told["shares"] == self.shares and len(told["small"]) == world:
            self.small += told["small"][rank]
            self.big += told["big"]
