"""What several processes exchange in a step: each has the gradient of its share of the batch, and all take the mean of these."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

FAKE = "fake"  # torch's name of a group whose other processes are not there


def place() -> tuple[int, int]:
    """(rank, world) of this process among those that exchange; (0, 1) of a lone one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@contextmanager
def as_first_of(processes: int) -> Iterator[None]:
    """This process as the first of several of which the others are not there, to see what its part takes.

    What they would exchange takes no time, and what would come from them is whatever lies in memory.
    """
    if processes == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group(FAKE, store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        distributed.destroy_process_group()


Look = Callable[[Sequence[Tensor], Sequence[Tensor]], None]  # parameters, and this process's own gradients of them


def exchanging(losses_of: nn.Module, *, device: torch.device) -> DistributedDataParallel:
    """The module, with gradients that are the mean over processes after a backward pass.

    Buffers are not sent round before each forward pass: none of them changes in training. The gradients lie in the memory that
    is exchanged, so there is no second copy of them.
    """
    own = [device] if device.type == "cuda" else None
    named = inspect.signature(DistributedDataParallel).parameters
    still: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers": False}
    return DistributedDataParallel(losses_of, device_ids=own, gradient_as_bucket_view=True, **still)


def exchanged_bytes(losses_of: nn.Module) -> int:
    """Memory that gradients lie in between steps too."""
    shared = isinstance(losses_of, DistributedDataParallel)
    return sum(each.nbytes for each in losses_of.parameters() if each.requires_grad) if shared else 0


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

    def told(done: torch.futures.Future[Any]) -> Tensor:
        done.value()  # raises what went wrong
        return buffer

    return work.get_future().then(told)


def _look_and_average(look: Look | None, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    if look is not None:
        look(bucket.parameters(), bucket.gradients())
    return mean_over_processes(bucket.buffer())


def add_up(tensor: Tensor) -> None:
    """Turns a tensor into the sum over processes, in place."""
    distributed.all_reduce(tensor)


def joined(part: Tensor) -> Tensor:
    """The parts of all processes, one below the other: (rows, ...) => (processes * rows, ...)."""
    found = part.new_empty((len(part) * distributed.get_world_size(), *part.shape[1:]))
    _named("all_gather_single", before="all_gather_into_tensor")(found, part)
    return found


def _named(name: str, *, before: str) -> Callable[..., Any]:
    """A function of torch.distributed, which older versions of torch call otherwise."""
    return getattr(distributed, name, None) or getattr(distributed, before)


# Where each process keeps a share of the gradients alone


def take_means_of_shards(losses_of: nn.Module, *, look: Look | None) -> None:
    """Has the gradients of divided blocks averaged as above, each process getting its rows of them."""
    from torch.distributed.fsdp import FSDPModule

    divided = [module for module in losses_of.modules() if isinstance(module, FSDPModule)]
    known: set[int] = set()
    for module in reversed(divided):  # the inner ones first: what is left is the outer one's own
        own = [parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in known]
        known.update(map(id, own))
        module.set_gradient_divide_factor(1.0)  # `_MeansOfRows` divides
        module.set_force_sum_reduction_for_comms(True)
        mean: Any = _MeansOfRows(own[:1], look)  # called as torch calls its own, which have no public name
        module.set_custom_reduce_scatter(mean)


class _MeansOfRows:
    """What FSDP calls with the gradients of a block, all rows of this process's own: the mean of its rows over processes.

    Args:
        named: a parameter of the block, which stands for all of them to who looks.
    """

    def __init__(self, named: Sequence[Tensor], look: Look | None) -> None:
        self.named, self.look = named, look

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        if self.look is not None:
            self.look(self.named, [input_tensor])
        scatter = _named("reduce_scatter_single", before="reduce_scatter_tensor")
        if distributed.get_backend(group) == "nccl":
            return scatter(output_tensor, input_tensor, op=distributed.ReduceOp.AVG, group=group, async_op=async_op)
        input_tensor.mul_(1 / distributed.get_world_size(group))
        return scatter(output_tensor, input_tensor, group=group, async_op=async_op)
