"""A recipe and weights, built: what sampling, training, export and counting start from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hdit_cli import catalog
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.codecs.latents import Absent
from hdit_cli.models.codecs.pixels import Pixels
from hdit_cli.models.network import Network
from hdit_cli.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = {"bf16": torch.float32, "fp32": torch.float32, "fp64": torch.float64}  # of the weights; bf16 is autocast


@dataclass
class Model:
    """A trained task with what is known about it.

    Attributes:
        task: what was learnt, around its network; in eval mode.
        recipe: the resolved recipe, as a dict.
        classes: names, in the order of the labels; empty for an unconditional model.
        weights: "ema", "raw", or "std 0.050", a power-function average by its width.
        step, images_seen: how far it was trained.
        data: path, fingerprint and, where known, pictures per class of the data it was trained on.
        origin: where the weights were read, or what they were reconstructed from; "" for a model in training.
        left_out: the feature net that the file named by a path, which `recipe` leaves out; "" where it named none so.
        latents: the codec of a network of latents or tokens, or what is known of one that is not at hand; None for pixels.
    """

    task: Any
    recipe: dict[str, Any]
    classes: list[str] = field(default_factory=list)
    weights: str = "ema"
    step: int = 0
    images_seen: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    left_out: str = ""
    latents: Frozen | Absent | None = None

    @property
    def network(self) -> Any:
        """The bare network, see `models.network.Network`."""
        return self.task.network

    @property
    def denoiser(self) -> Any:
        """The network as a denoiser of noise levels: (x, sigma (N,), **conditions) to x0; networks of tokens have none."""
        return self.task.denoiser

    @property
    def reconstructs(self) -> bool:
        """Whether it is an autoencoder, which gives pictures back and makes none."""
        return self.network.told == "nothing"

    @property
    def codec(self) -> Pixels | Frozen | Absent:
        """What stands between pictures and the network."""
        return self.latents or Pixels(self.channels, self.vocabulary)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of a picture of the trained size."""
        height, width = self.recipe["model"]["size"]
        return height * self.codec.factor, width * self.codec.factor

    def shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, h, w) of what the network sees of a picture of `size` (H, W), or of the trained one."""
        height, width = size or self.image_size
        return self.channels, height // self.codec.factor, width // self.codec.factor

    @property
    def seams(self) -> tuple[int, int]:
        """(H, W) in pixels of the patches whose edges may show in a picture: the network's, of latents as many times larger."""
        height, width = self.network.seams
        return height * self.codec.factor, width * self.codec.factor

    @property
    def channels(self) -> int:
        return self.recipe["model"]["channels"] if not self.vocabulary else 1

    @property
    def vocabulary(self) -> int:
        """How many tokens there are of which the network sees one in each place; 0 where it sees numbers."""
        return self.recipe["model"].get("vocabulary", 0)

    @property
    def picture_channels(self) -> int:
        """Of what it makes: 1 or 3 where it makes pictures."""
        return self.channels if self.latents is None else 3

    @property
    def device(self) -> torch.device:
        return next(self.task.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.task.parameters()).dtype

    @property
    def data_path(self) -> str:
        return self.data.get("path", "")

    def param_groups(self, *, lr: float, weight_decay: float, mapping_lr_scale: float = 1 / 3) -> list[dict[str, Any]]:
        """Four optimizer groups: the mapping network and the norms' conditions learn slower; only linears inside decay.

        Returns:
            dicts "decay", "no_decay", "mapping_decay", "mapping_no_decay" with name, params, lr, weight_decay.
        """
        return param_groups(self.network, lr=lr, weight_decay=weight_decay, mapping_lr_scale=mapping_lr_scale)


def param_groups(network: Any, *, lr: float, weight_decay: float, mapping_lr_scale: float) -> list[dict[str, Any]]:
    """See `Model.param_groups`."""
    roles = network.parameter_groups()
    parameters = dict(network.named_parameters())
    groups = []
    for name, role in {
        "decay": (False, True),
        "no_decay": (False, False),
        "mapping_decay": (True, True),
        "mapping_no_decay": (True, False),
    }.items():
        params: list[Tensor] = [parameters[key] for key, value in roles.items() if value == role]
        scale = mapping_lr_scale if role[0] else 1.0
        groups.append(
            {"name": name, "params": params, "lr": lr * scale, "weight_decay": weight_decay if role[1] else 0.0}
        )
    return groups


def class_count(recipe: Recipe, *, classes: Sequence[str]) -> int:
    """Classes of the network: as many as the data has where the recipe says "data"."""
    return len(classes) if recipe.model.classes == "data" else int(recipe.model.classes)


def build_network(recipe: Recipe, *, classes: int) -> Any:
    """The bare network of a recipe (`models.network.Network`, an `nn.Module`), new, on the default device."""
    section = recipe.model
    told = {} if section.told == "nothing" else {"classes": classes}  # an autoencoder is told of none
    network: Network = catalog.network(section.type)(**section.arguments(outputs=recipe.task.outputs), **told)
    return network


def build_task(network: nn.Module, recipe: Recipe) -> Any:
    """What a recipe has its network learn (`tasks.task.Task`, an `nn.Module`)."""
    return catalog.get("task", recipe.task.type)(network, **recipe.task.arguments(recipe.diffusion))


def count(recipe: Recipe, *, classes: int | None = None) -> dict[str, Any]:
    """Parameters and multiply-accumulates of a recipe, without allocating it.

    Args:
        classes: number of classes where the recipe says "data".

    Returns:
        params (int) and gmacs (float, 10^9 multiply-accumulates of one image of the recipe's size).
    """
    wanted = recipe.model.classes
    with torch.device("meta"):
        network = build_network(recipe, classes=(classes or 0) if wanted == "data" else int(wanted))
    params = sum(p.numel() for p in network.parameters())
    return {"params": params, "gmacs": network.macs(*recipe.model.size) / 1e9}
