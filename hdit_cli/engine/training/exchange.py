"""What several processes exchange in a step: each has the gradient of its share of the batch, and all take the mean of these."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

Look = Callable[[Sequence[Tensor], Sequence[Tensor]], None]  # parameters, and this process's own gradients of them


def exchanging(losses_of: nn.Module, *, device: torch.device) -> DistributedDataParallel:
    """The module, with gradients that are the mean over processes after a backward pass.

    Buffers are not sent round before each forward pass: none of them changes in training. The gradients lie in the memory that
    is exchanged, so there is no second copy of them.
    """
    own = [device] if device.type == "cuda" else None
    return DistributedDataParallel(losses_of, device_ids=own, broadcast_buffers=False, gradient_as_bucket_view=True)


def take_means(losses_of: nn.Module, *, look: Look | None) -> None:
    """Has the mean taken as `mean_over_processes` does; does nothing for a module that exchanges nothing.

    Args:
        look: is shown this process's own gradients before.
    """
    if isinstance(losses_of, DistributedDataParallel):
        losses_of.register_comm_hook(look, _look_and_average)


def alone(losses_of: nn.Module) -> AbstractContextManager[None]:
    """Inside, backward passes add up this process's own gradients, and exchange nothing."""
    return losses_of.no_sync() if isinstance(losses_of, DistributedDataParallel) else nullcontext()


def mean_over_processes(buffer: Tensor) -> torch.futures.Future[Tensor]:
    """Turns a buffer of gradients into the mean over processes, in place.

    NCCL divides while it adds. Gloo cannot; there each process first divides its own part.
    """
    if distributed.get_backend() == "nccl":
        work = distributed.all_reduce(buffer, op=distributed.ReduceOp.AVG, async_op=True)
    else:
        buffer.mul_(1 / distributed.get_world_size())
        work = distributed.all_reduce(buffer, async_op=True)
    assert work is not None, "every process of the default group takes part"
    return work.get_future().then(lambda done: done.value()[0])


def _look_and_average(look: Look | None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    if look is not None:
        look(bucket.parameters(), bucket.gradients())
    return mean_over_processes(bucket.buffer())
