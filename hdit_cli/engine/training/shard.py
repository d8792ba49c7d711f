"""A network too large for one device, its weights divided among the processes (FSDP; Zhao et al. 2023, arXiv 2304.11277).

Of each parameter every process keeps the same share of rows, and so of its gradient, of its averages and of AdamW's moments.
A block is put together when it is called, forward and backward, and taken apart again; its gradients go to where their rows are.
Each process computes the loss of its own share of the batch, as without.

What is here knows rows and whole tensors. The optimizer, the averages and the checkpoint see neither FSDP nor its tensors: they
see `Shards.held`, an outline of the network with the rows of this process in the place of the parameters.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from hdit_cli.engine.training.exchange import Look, add_up, joined, take_means_of_shards
from hdit_cli.errors import UsageError


def check_shard(device: torch.device) -> None:
    """Raises UsageError where weights cannot be divided."""
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"train.shard divides weights among GPUs, and this run is on {device.type}",
            hint="--set train.shard=false",
        )


class Shards:
    """Divides the parameters of a network among all processes, block by block, so that no device ever holds them all.

    Args:
        losses_of: what training calls, around the network.
        network: on the CPU; moved to the device as it is divided.
        outline: makes a network of the same kind without memory for its weights (on torch's "meta" device).

    Attributes:
        held: see above; it cannot be called.
    """

    def __init__(
        self, losses_of: nn.Module, *, network: Any, outline: Callable[[], nn.Module], device: torch.device
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        check_shard(device)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.device, self.outline, self.losses_of = device, outline, losses_of
        # layers return views, and none is changed in place, which is what the warning is about
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        torch.empty(
            0, device=device
        )  # a mesh chooses a card by LOCAL_RANK where none is in use yet, though a task may see but one
        mesh = init_device_mesh(device.type, (self.world,))
        for block in list(network.layers()):
            fully_shard(block, mesh=mesh)
        fully_shard(losses_of, mesh=mesh)
        for module in losses_of.modules():
            if isinstance(module, FSDPModule):  # FSDP settles where its rows lie when it first puts them together
                module.unshard()
                module.reshard()
        self.divided: dict[str, Any] = dict(network.named_parameters())
        rows = {
            name: nn.Parameter(each.detach().to_local(), requires_grad=each.requires_grad)
            for name, each in self.divided.items()
        }
        self.held = with_tensors(outline(), {**rows, **dict(network.named_buffers())})

    def look(self, look: Look | None) -> None:
        """Has gradients averaged as without shards; `look` is shown this process's own before."""
        take_means_of_shards(self.losses_of, look=look)

    def take_gradients(self) -> None:
        """After the last backward pass of a step: the gradients of the rows, where the optimizer looks for them."""
        for name, parameter in self.held.named_parameters():
            found, self.divided[name].grad = self.divided[name].grad, None
            rows = self.divided[name].detach().to_local()
            assert rows.data_ptr() == parameter.data_ptr(), (
                f"the rows of {name} that are trained are not those that are called"
            )
            parameter.grad = None if found is None else found.to_local()

    def norm(self, of_rows: Tensor) -> Tensor:
        """The norm of a vector of which each process has told the norm of its part."""
        total = of_rows.double().square()
        add_up(total)
        return total.sqrt().to(of_rows.dtype)

    # Whole tensors

    def whole(self, name: str, rows: Tensor) -> Tensor:
        """A tensor that lies in rows on all processes, whole on each; all ask at once. What has no rows comes back as it is.

        Args:
            name: of the parameter that it is, or is shaped as.
        """
        shape = self.shapes.get(name)
        if shape is None or rows.ndim == 0:
            return rows
        most = -(-shape[0] // self.world)
        padded = rows.new_zeros((most, *shape[1:]))
        padded[: len(rows)] = rows.detach()
        return joined(padded)[: shape[0]]

    def on_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole copies on the host of the main process, one tensor after the other; the others help, and get nothing.

        Args:
            tensors: by "<parameter>" or "<state>/<parameter>", in the same order everywhere.
        """
        found = {}
        for name, rows in tensors.items():
            tensor = self.whole(name.rpartition("/")[2], rows)
            if self.rank == 0:
                found[name] = tensor.detach().to("cpu", copy=True)
        return found

    def rows(self, name: str, shape: tuple[int, ...]) -> slice | None:
        """Which rows of a tensor in a checkpoint this process keeps; None keeps it whole."""
        if tuple(self.shapes.get(name.rpartition("/")[2], ())) != shape or not shape:
            return None
        most = -(-shape[0] // self.world)
        return slice(min(self.rank * most, shape[0]), min((self.rank + 1) * most, shape[0]))

    @contextmanager
    def room(self) -> Iterator[nn.Module]:
        """A network with memory for all its weights, for as long as the block lasts: what can be called like any other."""
        network = self.outline().to_empty(device=self.device).eval().requires_grad_(False)
        yield network
        network.to("meta")

    @torch.no_grad()
    def fill(self, network: nn.Module, source: nn.Module) -> None:
        """Copies rows, and buffers, of an outline like `held` into a whole network; all processes at once."""
        tensors = source.state_dict()
        for name, target in network.state_dict().items():
            target.copy_(self.whole(name, tensors[name]))


def with_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network with other tensors, of any shapes, in the place of its parameters and buffers."""
    for name, tensor in tensors.items():
        place, _, last = name.rpartition(".")
        module = network.get_submodule(place)
        kinds: dict[str, Any] = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
        assert last in kinds, f"{name} is no tensor of the network"
        kinds[last] = tensor
    return network
