"""[model] with type = "hdit": the Hourglass Diffusion Transformer (Crowson et al. 2024, arXiv 2401.11605)."""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from hdit_cli.recipe.network import Channels, Classes, PatchSide, Size, Width
from hdit_cli.recipe.section import Listed, Problem, Section, nearest_multiple, stop_at

HiddenWidth = Annotated[int, Field(ge=1, le=131072)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


def _both_sides(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return (value, value) if is_number else value


class Level(Section):
    """One resolution of the hourglass: `depth` layers going down and again as many going up; the innermost only once.

    `kernel` is read by neighborhood attention, `window` by shifted-window attention, `head_dim` by all but "none".
    """

    depth: Annotated[int, Field(ge=1, le=256)]
    width: Width
    d_ff: HiddenWidth = Field(default_factory=lambda data: 3 * data.get("width", 1))
    dropout: Dropout = 0.0
    attention: Literal["neighborhood", "global", "shifted-window", "none"] = "neighborhood"
    head_dim: Annotated[int, Field(ge=8, le=1024)] = 64
    kernel: Annotated[int, Field(ge=1, le=255)] = 7
    window: Annotated[int, Field(ge=2, le=255)] = 8
    checkpoint: bool = False  # training computes the layers' insides a second time instead of keeping them

    def problems(self) -> Iterator[Problem]:
        """What does not fit together within this level."""
        if self.attention == "none":
            return
        if self.head_dim % 8:  # the axial rotary embedding has head_dim / 8 frequencies for each axis and head
            near = nearest_multiple(self.head_dim, 8)
            yield ("head_dim",), f"must be a multiple of 8, is {self.head_dim}; the nearest is {near}"
        elif self.width % self.head_dim:
            near = nearest_multiple(self.width, self.head_dim)
            text = f"must be a multiple of head_dim {self.head_dim}, is {self.width}; the nearest is {near}"
            yield ("width",), text


class HDiT(Section):
    """The network. Levels are outermost first; the last one is the middle of the hourglass."""

    told: ClassVar[str] = "sigma"  # what it is told of the noise
    takes_augment: ClassVar[bool] = True  # whether it can be told what was done to a picture
    type: Literal["hdit"] = "hdit"
    size: Size  # height, width in pixels
    channels: Channels = 3
    patch: Annotated[tuple[PatchSide, PatchSide], Listed, BeforeValidator(_both_sides)] = (4, 4)
    levels: Annotated[tuple[Level, ...], Listed, Field(min_length=1, max_length=10)]
    mapping_width: Annotated[int, Field(ge=2, le=16384)] = 256
    mapping_depth: Annotated[int, Field(ge=0, le=64)] = 2
    mapping_d_ff: HiddenWidth = Field(default_factory=lambda data: 3 * data.get("mapping_width", 1))
    mapping_dropout: Dropout = 0.0
    mapping_inputs: Annotated[int, Field(ge=0, le=65536)] = 0  # length of a free condition vector; 0 = none
    classes: Classes = 0

    @field_serializer("patch")
    def _patch(self, patch: tuple[int, int]) -> int | list[int]:
        return patch[0] if patch[0] == patch[1] else list(patch)

    @model_validator(mode="before")
    @classmethod
    def _innermost_is_global(cls, value: Any) -> Any:
        """As in the reference: where a recipe does not say, the innermost level attends globally."""
        levels = value.get("levels") if isinstance(value, dict) else None
        if not isinstance(levels, (list, tuple)) or not levels or not isinstance(levels[-1], dict):
            return value
        return {**value, "levels": [*levels[:-1], {"attention": "global", **levels[-1]}]}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = [
            (("levels", index, *path), text)
            for index, level in enumerate(self.levels)
            for path, text in level.problems()
        ]
        sizes = list(self._size_problems())
        maps = [] if sizes else [problem for index in range(len(self.levels)) for problem in self._map_problems(index)]
        problems += sizes + maps
        if self.mapping_width % 2:
            text = f"must be even (half cosines, half sines), is {self.mapping_width}; the nearest is "
            problems.append((("mapping_width",), f"{text}{self.mapping_width + 1}"))
        stop_at(problems)
        return self

    def arguments(self, *, outputs: int) -> dict[str, Any]:
        """Keyword arguments of the network, but for its classes.

        Args:
            outputs: values that the task wants for each channel; 1.
        """
        assert outputs == 1, "a recipe is checked for it"
        return self.model_dump(exclude={"type", "size", "classes"}) | {"patch": self.patch}

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) of which an image's sides must be multiples, in pixels."""
        halvings = 2 ** (len(self.levels) - 1)
        return self.patch[0] * halvings, self.patch[1] * halvings

    @property
    def recomputes(self) -> bool:
        """Whether training computes something a second time instead of keeping it."""
        return any(level.checkpoint for level in self.levels)

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        parts = [level.depth * (3 if level.attention == "none" else 8) * 2 for level in self.levels]
        return sum(parts) - parts[-1] // 2

    def beyond_data(self) -> Iterator[tuple[str, str]]:
        """What the network asks for and no data set holds: a sentence and a hint each."""
        if self.mapping_inputs:
            what = "model.mapping_inputs needs a condition vector with each picture, and a data set holds none"
            yield what, "train it through the Python API, or --set model.mapping_inputs=0"

    def facts(self) -> dict[str, Any]:
        """What `hdit info` tells of it, beside what it tells of every network."""
        levels = [{"tokens": [*self.map_size(i)], **level.model_dump()} for i, level in enumerate(self.levels)]
        mapping = {"width": self.mapping_width, "depth": self.mapping_depth, "inputs": self.mapping_inputs}
        return {"patch": [*self.patch], "levels": levels, "mapping": mapping}

    def map_size(self, level: int) -> tuple[int, int]:
        """Tokens of a level, (height, width)."""
        unit = 2**level
        return self.size[0] // (self.patch[0] * unit), self.size[1] // (self.patch[1] * unit)

    def misfits(self, size: tuple[int, int]) -> list[Problem]:
        """Why the network cannot be given images of another (height, width); empty where it can."""
        other = self.model_copy(update={"size": size})
        sizes = list(other._size_problems())
        return sizes or [problem for index in range(len(self.levels)) for problem in other._map_problems(index)]

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
        path, text = problems[0]
        what = text.partition(";")[0]  # its advice knows one size alone
        if path[0] == "size":
            unit = max(math.lcm(*self.patch) * 2 ** (len(self.levels) - 1), 1)
            height, width = (pixels * nearest_multiple(side, unit) for side in self.size)
            again = f"`hdit prepare SRC --size {height}x{width} --buckets --bucket-step {pixels * unit}`"
            return f"a side {what}", f"{again}, or a recipe with fewer levels or a smaller patch"
        level = int(path[1])
        sides = [side for each in among for side in self.model_copy(update={"size": each}).map_size(level)]
        best = 0
        if path[2] == "kernel":
            best = min(sides)
        elif legal := [window for window in range(2, min(sides) + 1) if math.gcd(*sides) % window == 0]:
            best = min(legal, key=lambda window: (abs(window - self.levels[level].window), window))
        name = f"--set model.levels.{level}"
        value = f"{name}.{path[2]}={best}, or " if best else ""
        return f"model.levels.{level}.{path[2]} {what}", f"{value}{name}.attention=global"

    def lighter(self) -> Iterator[dict[str, Any]]:
        """Switches, as `--set` takes them, with which training takes less memory: computing the maps of the outermost level that
        keeps them a second time, then a network of half the layers in its deepest level."""
        kept = [number for number, level in enumerate(self.levels) if not level.checkpoint]
        if kept:
            yield {f"model.levels.{kept[0]}.checkpoint": True}
        depth, number = max((level.depth, -number) for number, level in enumerate(self.levels))
        if depth > 1:
            yield {f"model.levels.{-number}.depth": depth // 2}

    def _size_problems(self) -> Iterator[Problem]:
        halvings = len(self.levels) - 1
        for axis, (side, patch) in enumerate(zip(self.size, self.patch, strict=True)):
            unit = patch * 2**halvings
            if side % unit:
                near = nearest_multiple(side, unit)
                text = f"must be a multiple of {unit} (patch {patch} times 2^{halvings} for {halvings + 1} levels)"
                yield ("size", axis), f"{text}, is {side}; the nearest is {near}"

    def _map_problems(self, index: int) -> Iterator[Problem]:
        level, sides = self.levels[index], self.map_size(index)
        tokens = f"the level's map of {sides[0]}x{sides[1]} tokens"
        if level.attention == "neighborhood" and level.kernel > min(sides):
            advice = f'the largest is {min(sides)}, or attention = "global"'
            yield ("levels", index, "kernel"), f"must fit in {tokens}, is {level.kernel}; {advice}"
        if level.attention == "shifted-window" and any(side % level.window for side in sides):
            legal = [w for w in range(2, min(sides) + 1) if not sides[0] % w and not sides[1] % w]
            best = min(legal, key=lambda w: (abs(w - level.window), w), default=None)
            advice = f"the nearest is {best}" if best else 'use attention = "global"'
            yield ("levels", index, "window"), f"must divide {tokens}, is {level.window}; {advice}"
