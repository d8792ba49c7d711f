"""What a run trains beside its network: a critic with an optimizer of its own, sums that a task moves. Saved with the network."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hdit_cli.engine.run.assemble import check_tensors
from hdit_cli.engine.run.checkpoint import BESIDE
from hdit_cli.engine.training.moments import moments_of
from hdit_cli.errors import CheckpointError
from hdit_cli.tasks.task import Beside

_WEIGHTS = "weights/"


@dataclass
class Besides:
    """The modules of `Task.beside`, on the device, and the optimizers of those that take gradients."""

    parts: Mapping[str, Beside] = field(default_factory=dict)
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Any) -> "Besides":
        """Of a task that is on its device already."""
        parts = task.beside()
        optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.AdamW(
                part.module.parameters(), lr=part.lr, betas=part.betas, weight_decay=0.0, fused=True
            )
            for name, part in parts.items()
            if part.lr is not None
        }
        return cls(parts, optimizers)

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for part in self.parts.values() for parameter in part.module.parameters()]

    def held_bytes(self) -> int:
        """Of weights, sums and moments."""
        return sum(tensor.nbytes for part in self.tensors().values() for tensor in part.values())

    def clear(self) -> None:
        """Before a step."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def norm(self) -> Tensor | None:
        """Of all gradients; None where there are none."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients) if gradients else None

    def update(self, refused: Tensor, *, factor: float, max_norm: float) -> None:
        """A step of every optimizer, its gradients clipped by their own norm; masked where `refused` is 1.

        Args:
            factor: of the learning rates.
        """
        for name, optimizer in self.optimizers.items():
            part = self.parts[name]
            parameters = [parameter for parameter in part.module.parameters() if parameter.grad is not None]
            if not parameters:
                continue
            if max_norm:
                nn.utils.clip_grad_norm_(parameters, max_norm)
            assert part.lr is not None
            for group in optimizer.param_groups:
                group["lr"] = part.lr * factor
            optimizer.found_inf = refused  # type: ignore[attr-defined]
            optimizer.step()

    # Into a checkpoint and back

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """By part: "weights/<name>" and the optimizer's "<state>/<parameter>"."""
        return {name: dict(self._of(name)) for name in self.parts}

    def _of(self, name: str) -> Iterator[tuple[str, Tensor]]:
        module = self.parts[name].module
        yield from ((f"{_WEIGHTS}{key}", value) for key, value in module.state_dict().items())
        if name in self.optimizers:
            names: dict[Tensor, str] = {parameter: key for key, parameter in module.named_parameters()}
            for parameter, state in self.optimizers[name].state.items():
                yield from ((f"{kind}/{names[parameter]}", value) for kind, value in state.items())

    def restore(self, found: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes over what a checkpoint has.

        Raises:
            CheckpointError: it has other parts, or other tensors in them.
        """
        if odd := sorted(found.keys() ^ self.parts.keys()):
            where = f"{BESIDE}{odd[0]}.safetensors"
            what = "has no" if odd[0] in self.parts else "has a"
            raise CheckpointError(
                f"the checkpoint {what} {where}, and its recipe says otherwise", hint="use an older checkpoint"
            )
        for name, part in self.parts.items():
            tensors, where = found[name], f"{BESIDE}{name}.safetensors"
            weights = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
            check_tensors(part.module.state_dict(), weights, where=where)
            parameters: dict[str, Tensor] = dict(part.module.named_parameters())
            rest = {key: value for key, value in tensors.items() if not key.startswith(_WEIGHTS)}
            moments = moments_of(rest, parameters if name in self.optimizers else {}, where=where)
            if moments:
                self.optimizers[name].state.update(moments)
            part.module.load_state_dict(weights)
