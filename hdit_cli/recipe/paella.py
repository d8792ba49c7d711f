"""[model] with type = "paella": the U-Net over tokens (Rampas et al. 2022, arXiv 2211.07292; its third version)."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from hdit_cli.recipe.network import Classes, PatchSide, Size, Width
from hdit_cli.recipe.section import Listed, Problem, Section, nearest_multiple, stop_at

_LEVELS = Field(min_length=1, max_length=8)
Each = Annotated[int, Field(ge=0, le=256)]
Kinds = Annotated[str, StringConstraints(pattern=r"^C[CTAF]{0,15}$")]
TextWidth = Annotated[int, Field(ge=0, le=65536)]


class Paella(Section):
    """The network of tokens that a VQ codec makes of pictures; levels from the outermost, each half as large as the one before.

    The defaults are those of the authors, whose released weights have `text_width = 2560`.
    """

    told: ClassVar[str] = "share"  # what it is told of the noise: the share of tokens that it replaced
    takes_augment: ClassVar[bool] = False  # whether it can be told what was done to a picture
    type: Literal["paella"] = "paella"
    size: Size  # height, width in tokens
    vocabulary: Annotated[int, Field(ge=2, le=1 << 20)] = 8192  # how many tokens there are: the codec's codes
    embedding: Width = 256  # of a token
    time_features: Annotated[int, Field(ge=4, le=16384)] = 64
    patch: PatchSide = 2  # tokens on a side of what becomes one place of the first map
    widths: Annotated[tuple[Width, ...], Listed, _LEVELS] = (640, 1280, 1280)
    heads: Annotated[tuple[Each, ...], Listed, _LEVELS] = (0, 16, 16)  # of attention; 0 where a level has none
    blocks: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Listed, _LEVELS] = (
        6,
        16,
        6,
    )  # repeats, down and up
    kinds: Annotated[tuple[Kinds, ...], Listed, _LEVELS] = (
        "CT",
        "CTA",
        "CTA",
    )  # of blocks: C convolution, T time, A attention, F perceptron
    kernel: Annotated[int, Field(ge=1, le=63)] = 3  # of the convolutions, odd
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    self_attention: bool = True  # the map attends to itself beside what it is told
    condition_width: Width = 1024  # of the sequence of what it is told
    text_width: TextWidth = 1536  # of ByT5's vectors; 0 for a network that is told no texts
    clip_width: TextWidth = 1024  # of CLIP's vectors, of texts and of pictures; 0 for none
    clip_tokens: Annotated[int, Field(ge=1, le=256)] = 4  # places of the sequence that one of them becomes
    classes: Classes = 0
    class_tokens: Annotated[int, Field(ge=1, le=256)] = 1  # places of the sequence that a class becomes
    checkpoint: bool = False  # training computes the blocks' insides a second time instead of keeping them

    @model_validator(mode="after")
    def _fits(self) -> Self:
        stop_at([*self._size_problems(), *self._level_problems()])
        return self

    def _level_problems(self) -> Iterator[Problem]:
        for name in ("heads", "blocks", "kinds"):
            if len(getattr(self, name)) != len(self.widths):
                text = f"has {len(getattr(self, name))} entries for the {len(self.widths)} levels of model.widths"
                yield (name,), text
                return
        for i, (width, heads, kinds) in enumerate(zip(self.widths, self.heads, self.kinds, strict=True)):
            if "A" in kinds and not heads:
                yield ("heads", i), f"is 0, and the blocks of this level, {kinds!r}, have attention"
            elif "A" in kinds and width % heads:
                near = nearest_multiple(width, heads)
                yield ("widths", i), f"must be a multiple of its {heads} heads, is {width}; the nearest is {near}"
        there = set("".join(self.kinds))
        if not there & {"T", "A"} and self.classes:
            yield ("classes",), "reach nothing: no level has blocks of kind T or A"
        for name in ("text_width", "clip_width"):
            if "A" not in there and getattr(self, name):
                yield (
                    (name,),
                    f"is {getattr(self, name)}, and reaches nothing: no level has blocks of kind A; 0 is none",
                )
        if self.kernel % 2 == 0:
            yield ("kernel",), f"must be odd, is {self.kernel}; the nearest is {self.kernel + 1}"
        if not self.self_attention and not (self.text_width or self.clip_width or self.classes):
            yield ("self_attention",), "is false, and there is nothing else to attend to: no text, picture or class"

    def arguments(self, *, outputs: int) -> dict[str, Any]:
        """Keyword arguments of the network, but for its classes."""
        names = {
            "c_in": "embedding", "c_out": "embedding", "num_labels": "vocabulary", "c_r": "time_features", "patch_size": "patch",
            "c_cond": "condition_width", "c_hidden": "widths", "nhead": "heads", "blocks": "blocks", "level_config": "kinds",
            "clip_embd": "clip_width", "byt5_embd": "text_width", "clip_seq_len": "clip_tokens", "kernel_size": "kernel",
            "dropout": "dropout", "self_attn": "self_attention", "class_tokens": "class_tokens", "checkpoint": "checkpoint",
        }  # fmt: skip
        return {name: getattr(self, own) for name, own in names.items()}

    @property
    def channels(self) -> int:
        """One: a token."""
        return 1

    @property
    def unit(self) -> tuple[int, int]:
        """(height, width) in tokens of which sides must be multiples."""
        side = self.patch * 2 ** (len(self.widths) - 1)
        return side, side

    @property
    def recomputes(self) -> bool:
        """Whether training computes something a second time instead of keeping it."""
        return self.checkpoint

    def least_tensors(self) -> int:
        """A number of tensors that the network has at least, known without building it."""
        return 4 * sum(repeats * len(kinds) for repeats, kinds in zip(self.blocks, self.kinds, strict=True))

    def lighter(self) -> Iterator[dict[str, Any]]:
        """Switches, as `--set` takes them, with which training takes less memory: computing the blocks' insides a second time, then
        a network of half the blocks."""
        if not self.checkpoint:
            yield {"model.checkpoint": True}
        if max(self.blocks) > 1:
            yield {"model.blocks": [max(1, each // 2) for each in self.blocks]}

    def beyond_data(self) -> Iterator[tuple[str, str]]:
        """What the network asks for and no data set holds."""
        if self.text_width or self.clip_width:
            names = [name for name in ("text_width", "clip_width") if getattr(self, name)]
            yield (
                "this network is told ByT5's or CLIP's vectors of texts and pictures, which no data set holds yet",
                " ".join(f"--set model.{name}=0" for name in names) + " trains one without",
            )

    def facts(self) -> dict[str, Any]:
        """What `hdit info` tells of it, beside what it tells of every network."""
        names = ("vocabulary", "patch", "embedding", "widths", "heads", "blocks", "kinds", "dropout")
        told = {name: getattr(self, name) for name in names}
        return {**told, "text_width": self.text_width, "clip_width": self.clip_width}

    def misfits(self, size: tuple[int, int]) -> list[Problem]:
        """Why the network cannot be given tokens of another (height, width); empty where it can."""
        return list(self.model_copy(update={"size": size})._size_problems())

    def misfit_of(
        self, size: tuple[int, int], *, among: Sequence[tuple[int, int]], pixels: int = 1
    ) -> tuple[str, str] | None:
        """Why the network cannot be given the images of one size of a data set, and what helps; None where it can.

        Args:
            among: every size of the data set.
            pixels: of a picture, on a side of one token: a codec's factor.
        """
        problems = self.misfits(size)
        if not problems:
            return None
        unit = self.unit[0]
        height, width = (pixels * nearest_multiple(side, unit) for side in self.size)
        again = f"`hdit prepare SRC --size {height}x{width} --buckets --bucket-step {pixels * unit}`"
        return f"a side {problems[0][1].partition(';')[0]}", f"{again}, or a recipe with fewer levels"

    def _size_problems(self) -> Iterator[Problem]:
        unit = self.unit[0]
        for axis, side in enumerate(self.size):
            if side % unit:
                what = f"{unit}, the patch times 2 for each further level" if unit > 1 else "1"
                text = f"must be a multiple of {what}, is {side}; the nearest is {nearest_multiple(side, unit)}"
                yield ("size", axis), text
