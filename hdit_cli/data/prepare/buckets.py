"""Aspect-ratio buckets: a few sizes of nearly equal area, and which of them a picture goes to."""

from collections.abc import Sequence
from fractions import Fraction

from hdit_cli.errors import UsageError

Size = tuple[int, int]  # [H, W] in pixels

WIDEST = 2.0  # longer side / shorter side, where the user does not say
_SMALLEST_STEP, _STEPS = 8, 16
_QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def default_step(size: Size) -> int:
    """A power of two: about a sixteenth of the shorter side, at least 8.

    So 8 up to 255 pixels, 16 at 256, 32 at 512, 64 at 1024: what patch x 2^(levels - 1) of the shipped recipes divides.
    """
    return max(_SMALLEST_STEP, 1 << (max(1, min(size) // _STEPS).bit_length() - 1))


def bucket_sizes(size: Size, *, step: int, widest: float) -> tuple[Size, ...]:
    """The buckets around a size: sides are multiples of `step`, areas nearly that of `size`, from tall to wide.

    For each shorter side the longer one is the multiple that comes nearest to the area, so the area is off by at most
    step / (2 * longer side). `size` itself is always one of them.

    Args:
        size: [H, W] of the middle bucket, multiples of `step`.
        step: in pixels.
        widest: longer side / shorter side at most.

    Raises:
        UsageError: `size` is no multiple of `step`, or there would be one bucket alone.
    """
    height, width = size
    for side in size:
        if side % step:
            near = max(1, round(side / step)) * step
            raise UsageError(
                f"with buckets the sides are multiples of {step}, and --size has {side}",
                hint=f"--size {near}, or another --bucket-step",
            )
    found = {size}
    for short in range(step, height * width, step):
        if short * short > height * width:
            break
        long = (2 * height * width + short * step) // (2 * short * step) * step  # nearest multiple
        if long <= widest * short:
            found |= {(short, long), (long, short)}
    if len(found) == 1:
        raise UsageError(
            f"there is only one bucket between 1:{widest:g} and {widest:g}:1 at {height}x{width} in steps of {step}",
            hint="a smaller --bucket-step or a larger --bucket-ratio; without --buckets all pictures get one size",
        )
    return tuple(sorted(found, key=lambda each: (Fraction(each[1], each[0]), each)))


def nearest(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket whose aspect ratio is nearest to that of a picture [H, W], in logarithm: exact, the first of equals."""
    if len(buckets) == 1:
        return buckets[0]

    def distance(bucket: Size) -> Fraction:  # of the logarithms, exponentiated
        ratio = Fraction(size[1] * bucket[0], size[0] * bucket[1])
        return max(ratio, 1 / ratio)

    return min(buckets, key=distance)


def turned_size(size: Size, orientation: int) -> Size:
    """[H, W] after the EXIF turn of a picture stored with this (w, h)."""
    width, height = size
    return (width, height) if orientation in _QUARTER_TURNS else (height, width)


def cut_away(size: Size, target: Size) -> float:
    """The share of the area of a picture [H, W] that cropping to the shape of `target` [H, W] cuts away, in [0, 1)."""
    one, other = size[1] * target[0], size[0] * target[1]
    return abs(one - other) / max(one, other)
