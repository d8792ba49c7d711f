"""All that a run holds between two steps, and its way into a checkpoint and back, bit for bit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hdit_cli.diffusion.bins import BINS, midpoints
from hdit_cli.engine.model import Model, param_groups
from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.run.checkpoint import Averages, Snapshot, metadata_of
from hdit_cli.engine.run.weights import file_name, name_of
from hdit_cli.engine.training.arithmetic import FIRST
from hdit_cli.engine.training.beside import Besides
from hdit_cli.engine.training.ema import EMA, PowerAverages
from hdit_cli.engine.training.moments import moments_of
from hdit_cli.engine.training.shard import Shards
from hdit_cli.recipe import Recipe


@dataclass
class Window:
    """Sums since the last line of the log, one number of each process, on the device so that nothing waits for them."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor  # steps that were refused, and count in no sum
    by_sigma: Tensor  # (2, BINS): images and sum of their losses in each bin of noise levels
    steps: int = 0
    extra: dict[str, Tensor] = field(
        default_factory=dict
    )  # (2,) each: sum and number of steps of what a task tells besides

    @classmethod
    def empty(cls, *, device: torch.device) -> "Window":
        dtype = torch.float32 if device.type == "mps" else torch.float64
        loss, grad_norm, skipped = torch.zeros(3, device=device, dtype=dtype)
        return cls(loss, grad_norm, skipped, torch.zeros((2, BINS), device=device, dtype=dtype))

    def add(
        self,
        loss: Tensor,
        grad_norm: Tensor,
        *,
        by_sigma: Tensor,
        refused: Tensor,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        """One step; `refused` is 1 or 0 on the device."""
        for name, value in (extra or {}).items():
            pair = torch.stack([value.to(self.loss.dtype), torch.ones_like(self.loss)])
            self.extra[name] = self.extra.get(name, torch.zeros_like(pair)) + torch.where(
                refused > 0, 0 * self.loss, pair
            )
        zero = torch.zeros_like(loss)
        self.loss += torch.where(refused > 0, zero, loss)
        self.grad_norm += torch.where(refused > 0, zero, grad_norm)
        self.by_sigma += torch.where(refused > 0, zero, by_sigma)
        self.skipped += refused
        self.steps += 1

    def means(self, parts: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        """Loss and gradient norm of the steps that were taken, over what each process has in `parts`; NaN where none was."""
        counted = self.steps - int(self.skipped)
        if not counted:
            return math.nan, math.nan
        return sum(part["loss"] for part in parts) / len(parts) / counted, float(self.grad_norm) / counted

    def told(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For `state.json`; the numbers of `parts`, one for each process, are each process's own."""
        return {
            "loss": [part["loss"] for part in parts],
            "by_sigma": [part["by_sigma"] for part in parts],
            "grad_norm": float(self.grad_norm),
            "skipped": int(self.skipped),
            "steps": self.steps,
            **({"extra": [part["extra"] for part in parts]} if self.extra else {}),
        }

    @staticmethod
    def means_besides(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """What a task tells besides its loss, means over steps and processes."""
        pairs = {name: [part["extra"][name] for part in parts if name in part["extra"]] for name in parts[0]["extra"]}
        means = {name: (sum(a for a, _ in found), sum(b for _, b in found)) for name, found in pairs.items()}
        return {name: total / count if count else math.nan for name, (total, count) in means.items()}

    @staticmethod
    def loss_by_sigma(parts: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
        """[middle of the bin, mean loss], ascending, of bins that are not empty; from `by_sigma` of every process."""
        images, sums = (torch.tensor(list(row), dtype=torch.float64).sum(0) for row in zip(*parts, strict=True))
        pairs = zip(midpoints(), images.tolist(), sums.tolist(), strict=True)
        return [[middle, total / count] for middle, count, total in pairs if count]


@dataclass
class TrainState:
    """Weights, averages, optimizer, position. The position is the number of images seen: step * batch size."""

    model: Model
    ema: EMA
    optimizer: torch.optim.Optimizer
    window: Window
    averages: PowerAverages
    step: int = 0
    arithmetic: int = FIRST  # by which formulas it computes
    shards: Shards | None = None  # where weights are divided among the processes
    base_lrs: list[float] = field(default_factory=list)
    besides: Besides = field(default_factory=Besides)

    @property
    def held(self) -> Any:
        """The network with what this process keeps of its weights: all of them, or its rows."""
        return self.shards.held if self.shards else self.model.network

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.held.parameters())

    def mark(self, batch_size: int) -> None:
        """Tells the model how far it is trained."""
        self.model.step, self.model.images_seen = self.step, self.step * batch_size

    @contextmanager
    def models(self) -> Iterator[Mapping[str, Model]]:
        """Every weights of the run as a model, by name, while the block lasts.

        Divided weights are put together when they are asked for, which all processes must do at once; what was asked for before
        is gone then.
        """
        held = {name_of(std): ema.network for std, ema in self.averages.by_std.items()}
        held |= {"raw": self.held, "ema": self.ema.network}
        if self.shards is None:
            averages = {name: self._model_of(network, weights=name) for name, network in held.items() if name != "raw"}
            yield {**averages, "raw": self.model}
            return
        with self.shards.room() as room:
            yield _PutTogether(held, room, self.shards, self._model_of)

    def _model_of(self, network: nn.Module, *, weights: str) -> Model:
        return dataclasses.replace(self.model, task=self.model.task.with_network(network).eval(), weights=weights)

    def _on_host(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole copies on the host; where weights are divided, on the main process alone."""
        return self.shards.on_host(tensors) if self.shards else _copied(tensors)

    def copied_averages(self) -> Averages:
        """The power-function averages on the host, as inference files hold them; training may go on. Asked on every process."""
        networks = {std: ema.network for std, ema in self.averages.by_std.items()}
        models = {std: self._model_of(network, weights=name_of(std)) for std, network in networks.items()}
        return Averages(
            tensors={file_name(std): self._on_host(each.state_dict()) for std, each in networks.items()},
            headers={file_name(std): metadata_of(model) for std, model in models.items()},
            stds={file_name(std): std for std in models},
            updates=int(self.averages.updates),
        )

    def held_bytes(self) -> int:
        """Of weights, averages and moments, as this process has them between two steps."""
        networks = [self.held, self.ema.network, *(ema.network for ema in self.averages.by_std.values())]
        weights = sum(tensor.nbytes for network in networks for tensor in network.parameters())
        moments = sum(tensor.nbytes for tensor in self.optimizer_tensors().values())
        return weights + moments + self.besides.held_bytes()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as "<state>/<parameter>"."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.held.named_parameters()}
        return {
            f"{kind}/{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for kind, value in state.items()
        }

    def snapshot(self, facts: dict[str, Any]) -> Snapshot:
        """A copy on the host of all that a checkpoint holds; training may go on while it is written.

        Asked on every process; where weights are divided, the main one alone gets them, one tensor after the other.
        """
        ema = self._model_of(self.ema.network, weights="ema")
        if self.arithmetic != FIRST:
            facts = {**facts, "arithmetic": self.arithmetic}
        return Snapshot(
            self._on_host(self.held.state_dict()),
            self._on_host(ema.network.state_dict()),
            self._on_host(self.optimizer_tensors()),
            facts,
            self.copied_averages(),
            headers={"raw": metadata_of(self.model), "ema": metadata_of(ema)},
            beside={name: _copied(part) for name, part in self.besides.tensors().items()},
        )

    def restore(self, snapshot: Snapshot, *, rank: int, world: int) -> None:
        """Takes over a checkpoint, of which this process's rows alone were read where weights are divided; all or nothing."""
        device = self.window.loss.device
        check_tensors(self.held.state_dict(), snapshot.raw, where="model.safetensors")
        check_tensors(self.ema.network.state_dict(), snapshot.ema, where="ema.safetensors")
        networks = {file_name(std): ema.network for std, ema in self.averages.by_std.items()}
        for name, network in networks.items():
            check_tensors(network.state_dict(), snapshot.averages.tensors.get(name, {}), where=name)
        self._restore_optimizer(snapshot.optimizer)
        self.besides.restore(snapshot.beside)
        self.held.load_state_dict(snapshot.raw)
        self.ema.network.load_state_dict(snapshot.ema)
        for name, network in networks.items():
            network.load_state_dict(snapshot.averages.tensors[name])
        self.averages.updates.fill_(snapshot.averages.updates)
        self.step = snapshot.state["step"]
        self.arithmetic = snapshot.state.get("arithmetic", FIRST)
        window = snapshot.state["window"]
        same = len(window["loss"]) == world
        # the log takes the mean over processes: where their number has changed, each takes over the mean
        loss = window["loss"][rank] if same else sum(window["loss"]) / len(window["loss"])
        self.window = Window.empty(device=device)
        self.window.loss += loss
        self.window.grad_norm += window["grad_norm"]
        self.window.skipped += window.get("skipped", 0)
        tables = window.get("by_sigma", [])
        for table in [tables[rank]] if len(tables) == world else tables if rank == 0 else []:
            self.window.by_sigma += torch.tensor(table, dtype=self.window.by_sigma.dtype, device=device)
        self.window.steps = window["steps"]
        told = window.get("extra", [])
        for name in told[0] if told else ():
            pairs = torch.tensor([part[name] for part in told], dtype=self.window.loss.dtype, device=device)
            self.window.extra[name] = pairs[rank] if same else pairs.mean(0)
        self.model.step = self.step

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters: dict[str, Tensor] = dict(self.held.named_parameters())
        self.optimizer.state.update(moments_of(tensors, parameters, where="optimizer.safetensors"))


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class _PutTogether(Mapping[str, Model]):
    """Models of divided weights, each in the room that all share."""

    def __init__(
        self, held: Mapping[str, nn.Module], room: nn.Module, shards: Shards, model_of: Callable[..., Model]
    ) -> None:
        self.held, self.room, self.shards, self.model_of = held, room, shards, model_of

    def __getitem__(self, name: str) -> Model:
        self.shards.fill(self.room, self.held[name])
        return self.model_of(self.room, weights=name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def build_optimizer(network: Any, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused AdamW over the four parameter groups of a network."""
    section = recipe.optimizer
    groups: list[dict[str, Any]] = param_groups(
        network, lr=section.lr, weight_decay=section.weight_decay, mapping_lr_scale=section.mapping_lr_scale
    )
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(section.betas[0], section.betas[1]), eps=section.eps, fused=True)
