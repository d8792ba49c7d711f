"""[model] with type = "hdit": the Hourglass Diffusion Transformer (Crowson et al. 2024, arXiv 2401.11605)."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainValidator, field_serializer, model_validator
from pydantic_core import PydanticCustomError

from hdit_cli.recipe.section import Listed, Problem, Section, nearest_multiple, stop_at

_MAX_CLASSES = 1_000_000

Side = Annotated[int, Field(ge=1, le=16384)]
PatchSide = Annotated[int, Field(ge=1, le=256)]
Width = Annotated[int, Field(ge=1, le=16384)]
HiddenWidth = Annotated[int, Field(ge=1, le=131072)]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]


def _both_sides(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return (value, value) if is_number else value


def _classes(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value == "data" or (is_number and 0 <= value <= _MAX_CLASSES):
        return value
    text = f'must be 0 (no classes), a number of classes up to {_MAX_CLASSES}, or "data" (as many as the data has)'
    raise PydanticCustomError("sentence", "{text}", {"text": text})


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

    type: Literal["hdit"] = "hdit"
    size: Annotated[tuple[Side, Side], Listed]  # height, width in pixels
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    patch: Annotated[tuple[PatchSide, PatchSide], Listed, BeforeValidator(_both_sides)] = (4, 4)
    levels: Annotated[tuple[Level, ...], Listed, Field(min_length=1, max_length=10)]
    mapping_width: Annotated[int, Field(ge=2, le=16384)] = 256
    mapping_depth: Annotated[int, Field(ge=0, le=64)] = 2
    mapping_d_ff: HiddenWidth = Field(default_factory=lambda data: 3 * data.get("mapping_width", 1))
    mapping_dropout: Dropout = 0.0
    mapping_inputs: Annotated[int, Field(ge=0, le=65536)] = 0  # length of a free condition vector; 0 = none
    classes: Annotated[int | Literal["data"], PlainValidator(_classes)] = 0

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

    def map_size(self, level: int) -> tuple[int, int]:
        """Tokens of a level, (height, width)."""
        unit = 2**level
        return self.size[0] // (self.patch[0] * unit), self.size[1] // (self.patch[1] * unit)

    def misfits(self, size: tuple[int, int]) -> list[Problem]:
        """Why the network cannot be given images of another (height, width); empty where it can."""
        other = self.model_copy(update={"size": size})
        sizes = list(other._size_problems())
        return sizes or [problem for index in range(len(self.levels)) for problem in other._map_problems(index)]

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
