"""[model] with type = "dit": the Diffusion Transformer (Peebles & Xie 2023, arXiv 2212.09748)."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hdit_cli.recipe.network import Channels, Classes, PatchSide, Size, Width
from hdit_cli.recipe.section import Problem, Section, nearest_multiple, stop_at


class DiT(Section):
    """The network: `depth` blocks of `width` channels over the patches of an image or latent.

    Sizes of the paper, (depth, width, heads): S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16.
    """

    told: ClassVar[str] = "timestep"  # what it is told of the noise
    takes_augment: ClassVar[bool] = False  # whether it can be told what was done to a picture
    type: Literal["dit"] = "dit"
    block: Literal["adaln-zero", "adaln", "in-context", "cross-attention"] = "adaln-zero"
    size: Size  # height, width of what the network sees: pixels, or latents
    channels: Channels = 3
    patch: PatchSide = 4
    depth: Annotated[int, Field(ge=1, le=256)] = 12
    width: Width = 384
    heads: Annotated[int, Field(ge=1, le=256)] = 6
    mlp_ratio: Annotated[float, Field(gt=0.0, le=64.0)] = 4.0
    checkpoint: bool = False  # training computes the blocks' insides a second time instead of keeping them
    classes: Classes = 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = list(self._size_problems())
        if self.width % 4:
            near = nearest_multiple(self.width, math.lcm(self.heads, 4))
            text = f"must be a multiple of 4 (sines and cosines of two axes), is {self.width}; the nearest is {near}"
            problems.append((("width",), text))
        if self.width % self.heads:
            near = nearest_multiple(self.width, math.lcm(self.heads, 4))
            text = f"must be a multiple of heads {self.heads}, is {self.width}; the nearest is {near}"
            problems.append((("width",), text))
        if int(self.width * self.mlp_ratio) < 1:
            problems.append((("mlp_ratio",), f"leaves a width of {self.width} without a hidden channel"))
        stop_at(problems)
        return self

    def arguments(self, *, outputs: int) -> dict[str, Any]:
        """Keyword arguments of the network, but for its classes.

        Args:
            outputs: values that the task wants for each channel: 1, or 2 where the variance is learnt.
        """
        return self.model_dump(exclude={"type", "classes"}) | {"size": self.size, "learn_variance": outputs == 2}

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) of which an image's sides must be multiples, in pixels."""
        return self.patch, self.patch

    @property
    def recomputes(self) -> bool:
        """Whether training computes something a second time instead of keeping it."""
        return self.checkpoint

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return 10 * self.depth

    def lighter(self) -> Iterator[dict[str, Any]]:
        """Switches, as `--set` takes them, with which training takes less memory: computing the blocks' insides a second time, then
        a network of half the blocks."""
        if not self.checkpoint:
            yield {"model.checkpoint": True}
        if self.depth > 1:
            yield {"model.depth": self.depth // 2}

    def beyond_data(self) -> Iterator[tuple[str, str]]:
        """What the network asks for and no data set holds: nothing."""
        return iter(())

    def facts(self) -> dict[str, Any]:
        """What `hdit info` tells of it, beside what it tells of every network."""
        names = ("block", "patch", "depth", "width", "heads", "mlp_ratio")
        tokens = [side // self.patch for side in self.size]
        return {name: getattr(self, name) for name in names} | {"tokens": tokens}

    def misfits(self, size: tuple[int, int]) -> list[Problem]:
        """Why the network cannot be given images of another (height, width); empty where it can."""
        return list(self.model_copy(update={"size": size})._size_problems())

    def misfit_of(
        self, size: tuple[int, int], *, among: Sequence[tuple[int, int]], pixels: int = 1
    ) -> tuple[str, str] | None:
        """Why the network cannot be given the images of one size of a data set, and what helps; None where it can.

        Args:
            among: every size of the data set.
            pixels: of a picture, on a side of one value of what the network sees: a codec's factor.
        """
        problems = self.misfits(size)
        if not problems:
            return None
        unit = self.patch
        height, width = (pixels * nearest_multiple(side, unit) for side in self.size)
        again = f"`hdit prepare SRC --size {height}x{width} --buckets --bucket-step {pixels * unit}`"
        return f"a side {problems[0][1].partition(';')[0]}", f"{again}, or a recipe with a smaller patch"

    def _size_problems(self) -> Iterator[Problem]:
        for axis, side in enumerate(self.size):
            if side % self.patch:
                near = nearest_multiple(side, self.patch)
                text = f"must be a multiple of the patch {self.patch}, is {side}; the nearest is {near}"
                yield ("size", axis), text
