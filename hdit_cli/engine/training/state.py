"""All that a run holds between two steps, and its way into a checkpoint and back, bit for bit."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hdit_cli.diffusion.bins import BINS, midpoints
from hdit_cli.engine.model import Model, param_groups
from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.run.checkpoint import Averages, Snapshot, metadata_of
from hdit_cli.engine.run.weights import file_name, name_of
from hdit_cli.engine.training.arithmetic import FIRST
from hdit_cli.engine.training.ema import EMA, PowerAverages
from hdit_cli.errors import CheckpointError
from hdit_cli.recipe import Recipe


@dataclass
class Window:
    """Sums since the last line of the log, one number of each process, on the device so that nothing waits for them."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor  # steps that were refused, and count in no sum
    by_sigma: Tensor  # (2, BINS): images and sum of their losses in each bin of noise levels
    steps: int = 0

    @classmethod
    def empty(cls, *, device: torch.device) -> "Window":
        dtype = torch.float32 if device.type == "mps" else torch.float64
        loss, grad_norm, skipped = torch.zeros(3, device=device, dtype=dtype)
        return cls(loss, grad_norm, skipped, torch.zeros((2, BINS), device=device, dtype=dtype))

    def add(self, loss: Tensor, grad_norm: Tensor, *, by_sigma: Tensor, refused: Tensor) -> None:
        """One step; `refused` is 1 or 0 on the device."""
        zero = torch.zeros_like(loss)
        self.loss += torch.where(refused > 0, zero, loss)
        self.grad_norm += torch.where(refused > 0, zero, grad_norm)
        self.by_sigma += torch.where(refused > 0, zero, by_sigma)
        self.skipped += refused
        self.steps += 1

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
    base_lrs: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.network.parameters())

    def ema_model(self) -> Model:
        """The averaged weights as a model."""
        return self._model_of(self.ema, weights="ema")

    def models(self) -> dict[str, Model]:
        """Every weights of the run as a model, by name."""
        averages = {
            name_of(std): self._model_of(ema, weights=name_of(std)) for std, ema in self.averages.by_std.items()
        }
        return {"raw": self.model, "ema": self.ema_model(), **averages}

    def _model_of(self, ema: EMA, *, weights: str) -> Model:
        return dataclasses.replace(self.model, task=self.model.task.with_network(ema.network).eval(), weights=weights)

    def copied_averages(self) -> Averages:
        """The power-function averages on the host, as inference files hold them; training may go on."""
        models = {std: self._model_of(ema, weights=name_of(std)) for std, ema in self.averages.by_std.items()}
        return Averages(
            tensors={file_name(std): _copied(model.network.state_dict()) for std, model in models.items()},
            headers={file_name(std): metadata_of(model) for std, model in models.items()},
            stds={file_name(std): std for std in models},
            updates=int(self.averages.updates),
        )

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as "<state>/<parameter>"."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.network.named_parameters()}
        return {
            f"{kind}/{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for kind, value in state.items()
        }

    def snapshot(self, facts: dict[str, Any]) -> Snapshot:
        """A copy on the host of all that a checkpoint holds; training may go on while it is written."""
        ema = self.ema_model()
        if self.arithmetic != FIRST:
            facts = {**facts, "arithmetic": self.arithmetic}
        return Snapshot(
            _copied(self.model.network.state_dict()),
            _copied(ema.network.state_dict()),
            _copied(self.optimizer_tensors()),
            facts,
            self.copied_averages(),
            headers={"raw": metadata_of(self.model), "ema": metadata_of(ema)},
        )

    def restore(self, snapshot: Snapshot, *, rank: int, world: int) -> None:
        """Takes over a checkpoint; all or nothing."""
        device, dtype = self.model.device, self.model.dtype
        check_tensors(self.model.network.state_dict(), snapshot.raw, where="model.safetensors")
        check_tensors(self.ema.network.state_dict(), snapshot.ema, where="ema.safetensors")
        networks = {file_name(std): ema.network for std, ema in self.averages.by_std.items()}
        for name, network in networks.items():
            check_tensors(network.state_dict(), snapshot.averages.tensors.get(name, {}), where=name)
        self._restore_optimizer(snapshot.optimizer)
        self.model.network.load_state_dict(snapshot.raw)
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
        self.model.step = self.step
        self.model.task.to(device=device, dtype=dtype)

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.network.named_parameters())
        states: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if name not in states:
                raise CheckpointError(
                    f"optimizer.safetensors has an unknown tensor {key}", hint="use an older checkpoint"
                )
            if value.shape not in ((), parameters[name].shape):
                raise CheckpointError(
                    f"optimizer.safetensors: {key} has shape {list(value.shape)}, and {name} {list(parameters[name].shape)}",
                    hint="use an older checkpoint",
                )
            states[name][kind] = value.to(parameters[name].device)
        for name, state in states.items():
            if state:
                self.optimizer.state[parameters[name]] = state


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def build_optimizer(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused AdamW over the four parameter groups."""
    section = recipe.optimizer
    groups: list[dict[str, Any]] = param_groups(
        model.network, lr=section.lr, weight_decay=section.weight_decay, mapping_lr_scale=section.mapping_lr_scale
    )
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(section.betas[0], section.betas[1]), eps=section.eps, fused=True)
