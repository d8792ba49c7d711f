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
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

DECAY = 0.995  # per step: an average over about 200 steps


class NoiseScale:
    """The two averages of one process, on the device.

    Args:
        loss_of: what is called forward; its gradients are looked at on their way to the other processes.
        batch: images of one optimizer step.
        accumulate: backward passes of one step.
        world: processes.
        like: a 0-d tensor that gives device and dtype of the averages.
    """

    def __init__(self, loss_of: nn.Module, *, batch: int, accumulate: int, world: int, like: Tensor) -> None:
        self.batch, self.accumulate, self.shares = batch, accumulate, accumulate * world
        self.small, self.big, self._seen = torch.zeros_like(like), torch.zeros_like(like), torch.zeros_like(like)
        if isinstance(loss_of, DistributedDataParallel) and accumulate == 1:
            loss_of.register_comm_hook(self, _look_and_average)

    def see(self, gradients: Sequence[Tensor]) -> None:
        """Adds the squared norm of a part of this process's own gradient, of the mean over its images."""
        norms = torch.stack(torch._foreach_norm(list(gradients)))
        self._seen += norms.square().sum()

    def see_first(self, parameters: Sequence[Tensor]) -> None:
        """After the first of several backward passes: what has been accumulated is the gradient of one micro-batch.

        The losses are divided by the number of passes, so their gradients are too.
        """
        self.see([p.grad for p in parameters if p.grad is not None])
        self._seen *= self.accumulate**2

    def add(self, norm: Tensor, *, refused: Tensor) -> None:
        """Ends a step whose whole gradient has this norm; `refused` is 1 where the step changes nothing."""
        if self.shares > 1:
            kept = refused == 0
            self.small = torch.where(kept, torch.lerp(self._seen, self.small, DECAY), self.small)
            self.big = torch.where(kept, torch.lerp(norm.to(self.big.dtype).square(), self.big, DECAY), self.big)
        self._seen = torch.zeros_like(self._seen)

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


def _look_and_average(scale: NoiseScale, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What DistributedDataParallel does by itself, the mean over processes, after a look at this process's part."""
    buffer = bucket.buffer()
    scale.see([buffer])
    buffer.mul_(1 / distributed.get_world_size())
    future = distributed.all_reduce(buffer, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])
