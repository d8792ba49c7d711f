"""The bytes that a training step takes, followed before it is run: what a plan prints, and what a message about too little says."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from hdit_cli.engine.memory.trace import ByImages, History, follow, lower_precision
from hdit_cli.engine.model import DTYPES, build_network, build_task, class_count
from hdit_cli.engine.run.codec_file import codec_section, outline
from hdit_cli.models.codecs.frozen import Frozen
from hdit_cli.models.conditions import augment
from hdit_cli.models.lpips import LPIPS
from hdit_cli.recipe import Recipe


def estimate(recipe: Recipe, *, images: int, device: str, processes: int = 1, classes: int = 0) -> dict[str, int]:
    """Bytes that tensors take on one device at the fullest moment of a training step.

    Args:
        images: of one micro-batch.
        device: "cpu", "cuda" or "mps"; it need not be there.
        classes: of the data, where the recipe leaves them to it.

    Returns:
        weights, average, moments, gradients, activations and total; of a network of latents codec too, its weights and what its
        encoding takes beyond the fullest moment of the step. Gradients and activations are those of the fullest moment:
        as one grows the other shrinks. With several processes gradients lie in memory that is exchanged and never given back.
        Where the update is fuller than any moment before it, activations are the differences that the average is moved by.
        With `train.shard` the first three are this process's share, gradients are its share and those of two layers on their way,
        and `gathered` is what is whole meanwhile: two layers, and what is in no layer.
    """
    section = recipe.train.model_copy(
        update={"batch_size": 1, "accumulate": 1}
    )  # of which one micro-batch knows nothing
    alike: Any = recipe.model_copy(update={"train": section})
    step = _step(alike, device=device, classes=class_count(recipe, classes=[""] * classes))
    gradients, activations = step.histories(images).fullest(accumulating=recipe.train.accumulate > 1 or processes > 1)
    if gradients + activations < step.trained + step.weights:
        # the update: all gradients, one difference for each weight
        gradients, activations = step.trained, step.weights
    parts = {
        "weights": step.weights + step.beside + step.judge,
        "average": step.weights * (1 + len(recipe.ema.stds)),
        "moments": 2 * (step.trained + step.beside),
        "gradients": gradients,
        "activations": activations,
    }
    if recipe.train.shard and processes > 1:
        parts = {name: -(-size // processes) for name, size in parts.items()}
        parts["gathered"] = 2 * step.largest + step.outside
        parts["gradients"] = -(-step.trained // processes) + 2 * max(step.largest, step.outside)
        parts["activations"] = max(step.histories(images).without_gradients().peak, -(-step.weights // processes))
    if recipe.codec.path:
        held, encoding = codec_bytes(recipe.codec.path, recipe.model.size, images=images, device=device)
        parts["codec"] = held + max(0, encoding - parts["gradients"] - parts["activations"])
    return {**parts, "total": sum(parts.values())}


@lru_cache(maxsize=8)
def codec_bytes(path: str, size: tuple[int, int], *, images: int, device: str) -> tuple[int, int]:
    """Bytes of a codec's weights, and of what encoding pictures takes at its fullest moment.

    Args:
        size: (h, w) of the latents.
    """
    codec = outline(codec_section(Path(path)))
    pixels = [side * codec.factor for side in size]

    @torch.no_grad()
    def encode(followed: Frozen) -> None:
        followed.moments(torch.zeros(images, 3, *pixels, device=device))

    return sum(p.nbytes for p in codec.parameters()), follow(codec, encode, device=device).peak


def weights(recipe: Recipe, *, device: str, classes: int = 0) -> int:
    """Bytes of all parameters."""
    return _step_of(recipe, device=device, classes=classes).weights


class _Step:
    """Forward and backward of one micro-batch of a recipe.

    Attributes:
        weights, trained: bytes of all parameters, and of those that take gradients.
        beside: bytes of what is trained beside the network.
        judge: bytes of the net of a perceptual loss.
        largest, outside: bytes of the parameters of the largest layer, and of those in no layer.
        histories: by the number of images.
    """

    def __init__(self, recipe: Recipe, *, device: str, classes: int) -> None:
        self.recipe, self.device = recipe, device
        self.dtype = DTYPES[recipe.train.precision]
        with torch.device("meta"):
            network = build_network(recipe, classes=classes).to(self.dtype)
        self.task = build_task(network, recipe).train()
        if getattr(recipe.task, "perceptual_weight", 0.0):
            with torch.device("meta"):
                self.task.perceptual = LPIPS().to(self.dtype)
        beside = [parameter for part in self.task.beside().values() for parameter in part.module.parameters()]
        self.beside = sum(parameter.nbytes for parameter in beside)
        held = getattr(self.task, "perceptual", None)
        self.judge = 0 if held is None else sum(parameter.nbytes for parameter in held.parameters())
        layers = [sum(parameter.nbytes for parameter in layer.parameters()) for layer in network.layers()]
        self.weights = sum(parameter.nbytes for parameter in network.parameters())
        self.trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
        self.largest, self.outside = max(layers, default=0), self.weights - sum(layers)
        self.histories = ByImages(self._history)

    def _history(self, images: int) -> History:
        size, augmented = self.recipe.model.size, self.recipe.data.augment

        def step(task: Any) -> None:
            like = torch.zeros((), dtype=self.dtype, device=self.device)
            told = {"augment": like.new_zeros(images, augment.INPUTS)} if augmented else {}
            drawn = task.blank(images, size, like=like, told=told)
            drawn = drawn._replace(noise=torch.zeros_like(drawn.noise))
            with lower_precision(self.recipe.train.precision == "bf16"):
                losses = task(drawn)
            losses.loss.mean().backward()

        return follow(self.task, step, device=self.device)


def _step_of(recipe: Recipe, *, device: str, classes: int) -> _Step:
    # one micro-batch knows nothing of these
    section = recipe.train.model_copy(update={"batch_size": 1, "accumulate": 1})
    alike: Any = recipe.model_copy(update={"train": section})
    return _step(alike, device=device, classes=class_count(recipe, classes=[""] * classes))


@lru_cache(maxsize=8)
def _step(recipe: Recipe, *, device: str, classes: int) -> _Step:
    return _Step(recipe, device=device, classes=classes)
