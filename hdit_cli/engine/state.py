"""All that a run holds between two steps, and its way into a checkpoint and back, bit for bit."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hdit_cli.engine.checkpoint import Snapshot, check_tensors
from hdit_cli.engine.ema import EMA
from hdit_cli.engine.model import Model, param_groups
from hdit_cli.errors import CheckpointError
from hdit_cli.recipe import Recipe


@dataclass
class Window:
    """Sums since the last line of the log, one number of each process, on the device so that nothing waits for them."""

    loss: Tensor
    grad_norm: Tensor
    steps: int = 0


@dataclass
class TrainState:
    """Weights, average, optimizer, position. The position is the number of images seen: step * batch size."""

    model: Model
    ema: EMA
    optimizer: torch.optim.Optimizer
    window: Window
    step: int = 0
    base_lrs: list[float] = field(default_factory=list)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.network.parameters())

    def ema_model(self) -> Model:
        """The averaged weights as a model."""
        denoiser = type(self.model.denoiser)(
            self.ema.network, sigma_data=self.model.denoiser.sigma_data, weighting=self.model.denoiser.weighting
        )
        return dataclasses.replace(self.model, denoiser=denoiser.eval(), weights="ema")

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's state as "<state>/<parameter>"."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.network.named_parameters()}
        return {
            f"{kind}/{names[parameter]}": value
            for parameter, state in self.optimizer.state.items()
            for kind, value in state.items()
        }

    def restore(self, snapshot: Snapshot, *, rank: int, world: int) -> None:
        """Takes over a checkpoint; all or nothing."""
        device, dtype = self.model.device, self.model.dtype
        check_tensors(self.model.network.state_dict(), snapshot.raw, where="model.safetensors")
        check_tensors(self.ema.network.state_dict(), snapshot.ema, where="ema.safetensors")
        self._restore_optimizer(snapshot.optimizer)
        self.model.network.load_state_dict(snapshot.raw)
        self.ema.network.load_state_dict(snapshot.ema)
        self.step = snapshot.state["step"]
        window = snapshot.state["window"]
        same = len(window["loss"]) == world
        loss = window["loss"][rank] if same else (sum(window["loss"]) if rank == 0 else 0.0)
        self.window = Window(
            torch.tensor(loss, device=device, dtype=self.window.loss.dtype),
            torch.tensor(window["grad_norm"], device=device, dtype=self.window.loss.dtype),
            window["steps"],
        )
        self.model.step = self.step
        self.model.denoiser.to(device=device, dtype=dtype)

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.network.named_parameters())
        states: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if name not in states:
                raise CheckpointError(
                    f"optimizer.safetensors has an unknown tensor {key}", hint="use an older checkpoint"
                )
            states[name][kind] = value.to(parameters[name].device)
        for name, state in states.items():
            if state:
                self.optimizer.state[parameters[name]] = state


def build_optimizer(model: Model, recipe: Recipe) -> torch.optim.Optimizer:
    """Fused AdamW over the four parameter groups."""
    section = recipe.optimizer
    groups: list[dict[str, Any]] = param_groups(
        model.network, lr=section.lr, weight_decay=section.weight_decay, mapping_lr_scale=section.mapping_lr_scale
    )
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(section.betas[0], section.betas[1]), eps=section.eps, fused=True)
