"""What a user may choose about a data set, checked before anything is read."""

import re
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from PIL import ImageColor

from hdit_cli.data.prepare.buckets import WIDEST, bucket_sizes, default_step
from hdit_cli.errors import UsageError

FITS = ("crop", "pad", "squash")
SUFFIXES = {"jpeg": ".jpg", "webp": ".webp", "png": ".png"}  # format => suffix of the member
WRITTEN = (
    "JPEG",
    "PNG",
    "WEBP",
)  # the same formats as Pillow calls them: no other decoder ever sees a picture of a shard

_LARGEST_SIDE = 16_383  # of a WebP picture; the smallest limit of the three formats
_MOST_HELD_OUT = 0.5
_LARGEST_RATIO = 16.0


@dataclass(frozen=True)
class Buckets:
    """Aspect-ratio buckets: sides are multiples of `step` pixels, the longer at most `ratio` times the shorter."""

    step: int
    ratio: float


@dataclass(frozen=True)
class PrepareOptions:
    """Everything but the source that the bytes of a data set depend on.

    Args:
        size: [H, W] in pixels of the pictures written.
        fit: crop (fill the size, cut what is over, centred), pad (whole picture, background around it), squash.
        format: jpeg (quality 95, 4:4:4; also called jpg), webp (quality 95) or png.
        shard_size: pictures in one tar.
        max_pixels: pictures with more are refused by their header alone.
        background: colour under transparency and around padded pictures, as CSS writes colours.
        hold_out: share of the pictures that go into a data set of their own, in [0, 0.5]; 0 = none.
        min_size: pictures whose shorter side is below, in pixels as stored, are refused; 0 = none.
        dedupe: of pictures that are equal as prepared only the first is kept.
        buckets: several sizes of nearly the area of `size`, each picture in the one nearest to its shape; None = one size.

    Raises:
        UsageError: a value out of its range.
    """

    size: tuple[int, int] = (256, 256)
    fit: str = "crop"
    format: str = "jpeg"
    shard_size: int = 1000
    max_pixels: int = 150_000_000
    background: str = "white"
    hold_out: float = 0.0
    min_size: int = 0
    dedupe: bool = False
    buckets: Buckets | None = None

    def __post_init__(self) -> None:
        told = self.format.lower()
        object.__setattr__(self, "format", "jpeg" if told == "jpg" else told)
        if not all(1 <= side <= _LARGEST_SIDE for side in self.size):
            raise UsageError(
                f"a size of {self.size[0]}x{self.size[1]} cannot be written",
                hint=f"each side: 1 to {_LARGEST_SIDE} pixels",
            )
        for name, value, known in (("fit", self.fit, FITS), ("format", self.format, tuple(SUFFIXES))):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}", hint=f"one of: {', '.join(known)}")
        for name, number in (("--shard-size", self.shard_size), ("--max-pixels", self.max_pixels)):
            if number < 1:
                raise UsageError(f"{name} is {number}", hint=f"{name} 1 or more")
        if not 0 <= self.hold_out <= _MOST_HELD_OUT:  # refuses NaN too
            raise UsageError(
                f"--hold-out is {self.hold_out}", hint=f"a share of the pictures, 0 to {_MOST_HELD_OUT}; 0.05 is usual"
            )
        if self.min_size < 0:
            raise UsageError(f"--min-size is {self.min_size}", hint="--min-size 0 (no limit) or more, in pixels")
        _ = self.colour
        if self.buckets is not None:
            self._check_buckets(self.buckets)

    def _check_buckets(self, buckets: Buckets) -> None:
        if self.fit != "crop":
            raise UsageError(
                f"--buckets always crops, and --fit is {self.fit}", hint="leave out --fit, or leave out --buckets"
            )
        if buckets.step < 1:
            raise UsageError(f"--bucket-step is {buckets.step}", hint="pixels, 1 or more; 16 is usual at 256 pixels")
        if not 1 < buckets.ratio <= _LARGEST_RATIO:  # refuses NaN too
            raise UsageError(
                f"--bucket-ratio is {buckets.ratio:g}",
                hint=f"longer side / shorter side, above 1, at most {_LARGEST_RATIO:g}; 2 is usual",
            )
        for bucket in self.sizes:
            if max(bucket) > _LARGEST_SIDE:
                raise UsageError(
                    f"a bucket of {bucket[0]}x{bucket[1]} cannot be written", hint="a smaller --size or --bucket-ratio"
                )

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes [H, W] that pictures may get, from tall to wide; `size` alone where there are no buckets."""
        if self.buckets is None:
            return (self.size,)
        return bucket_sizes(self.size, step=self.buckets.step, widest=self.buckets.ratio)

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background as (R, G, B) in 0..255."""
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            hint = "a name such as white or black, or #rrggbb"
            raise UsageError(f"unknown colour {self.background!r}", hint=hint) from error
        return red, green, blue

    def told(self) -> dict[str, Any]:
        """The options as the manifest keeps them."""
        return {
            "size": list(self.size),
            "fit": self.fit,
            "format": self.format,
            "shard_size": self.shard_size,
            "max_pixels": self.max_pixels,
            "background": list(self.colour),
            **({"hold_out": self.hold_out} if self.hold_out else {}),
            **({"min_size": self.min_size} if self.min_size else {}),
            **({"dedupe": True} if self.dedupe else {}),
            **({"buckets": asdict(self.buckets)} if self.buckets else {}),
        }


def choose_buckets(size: tuple[int, int], *, on: bool, step: int | None, ratio: float | None) -> Buckets | None:
    """Buckets as the options of the command say; None leaves a number to its default.

    Raises:
        UsageError: a number where there are no buckets.
    """
    if not on:
        if step is not None or ratio is not None:
            name = "--bucket-ratio" if step is None else "--bucket-step"
            raise UsageError(f"{name} says how to make buckets, and there are none", hint="add --buckets")
        return None
    return Buckets(step=default_step(size) if step is None else step, ratio=WIDEST if ratio is None else ratio)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) from "256" or "HxW".

    Raises:
        UsageError: neither of the two.
    """
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise UsageError(f"--size {text!r} is not a size", hint="--size 256, or height x width: --size 256x384")
    height = int(match[1])
    return height, int(match[2] or height)
