"""Colours as they were meant: the numbers of a picture that has a profile, brought to sRGB.

Whether a profile is sRGB is found by what it does to colours, not by its name: there are dozens of sRGB profiles, and those
that change no colour visibly change nothing here. What LittleCMS has made of a profile is kept, for the next picture with the
same one. A picture without a profile is sRGB; the hints in some PNGs (gAMA, cHRM, cICP) are not followed, and floats are
taken as they are.
"""

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from PIL import Image, ImageCms

ICC, BAD_ICC = (
    "icc",
    "bad-icc",
)  # notes: converted by its profile; a profile that cannot be used, so the numbers as they are

Convert = Callable[[Image.Image], Image.Image]

_KEPT = 16  # profiles
_LARGEST_KEPT = 1 << 20  # bytes of one
_SAME = 3  # levels of 255: a profile that moves no colour further is sRGB
_GREYS = ("1", "L", "LA", "La")
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_EXACT = ImageCms.Flags.NOOPTIMIZE
_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError)
_STEPS = [*range(0, 64, 4), *range(64, 256, 12), 255]
_PROBES = bytes(
    [channel for v in _STEPS for channel in (v, v, v)]
    + [
        channel
        for r in range(0, 256, 51)
        for g in range(0, 256, 51)
        for b in range(0, 256, 51)
        for channel in (r, g, b)
    ]
)


def meant(image: Image.Image, notes: set[str]) -> Convert | None:
    """What brings bands of a grey or RGB picture to sRGB; None where they are. Adds the note `icc` or `bad-icc`.

    It takes and returns mode L or LA where the picture is grey, RGB or RGBA elsewhere, and leaves alpha alone.
    """
    profile = _profile(image, notes)
    if profile is None:
        return None
    if image.mode in _GREYS:
        told, table = _cached(_grey, profile, False)
        convert: Convert = lambda band: _by_table(band, table)  # noqa: E731
    else:
        told, _ = _cached(_colour, profile, "RGB")
        convert = lambda band: _applied(band, _cached(_colour, profile, band.mode)[1])  # noqa: E731
    notes.update([told] if told else [])
    return convert if told == ICC else None


def meant_16_bit(image: Image.Image, notes: set[str]) -> bytes | None:
    """For a grey picture of 16 bits: sRGB, 8 bits, of each of the 65,536 levels; None where they are only divided by 257."""
    profile = _profile(image, notes)
    told, table = ("", b"") if profile is None else _cached(_grey, profile, True)
    notes.update([told] if told else [])
    return table if told == ICC else None


def through_profile(image: Image.Image, notes: set[str]) -> Convert:
    """CMYK and Lab to sRGB: by the picture's own profile, else plainly (Lab: as CIE Lab of the D50 white point)."""
    mode = image.mode
    transform = None
    if image.info.get("icc_profile"):
        transform = _perceptual(ImageCms.ImageCmsProfile, io.BytesIO(image.info["icc_profile"]), mode)
        notes.add(ICC if transform else BAD_ICC)
    if transform is None and mode == "LAB":
        transform = _perceptual(ImageCms.createProfile, "LAB", mode)
    if transform is None:
        return lambda band: band.convert("RGB")
    return lambda band: _applied(band, transform)


def _profile(image: Image.Image, notes: set[str]) -> bytes | None:
    profile = image.info.get("icc_profile", b"")
    if isinstance(profile, bytes):
        return profile or None
    notes.add(BAD_ICC)  # Pillow found one that it could not put together
    return None


def _cached(read: Any, profile: bytes, how: object) -> Any:
    return (read if len(profile) <= _LARGEST_KEPT else read.__wrapped__)(profile, how)


@lru_cache(maxsize=2 * _KEPT)
def _colour(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """(note, transform) of an RGB profile for mode RGB or RGBA; "" where it is sRGB."""
    if mode != "RGB":
        return ICC, _transform(profile, mode, mode)
    transform = _transform(profile, mode, mode)
    if transform is None:
        return BAD_ICC, None
    probes = Image.frombytes("RGB", (len(_PROBES) // 3, 1), _PROBES)
    told = _verdict(_PROBES, _applied(probes, transform).tobytes(), white=3 * len(_STEPS) - 3)
    return told, transform if told == ICC else None


@lru_cache(maxsize=_KEPT)
def _grey(profile: bytes, wide: bool) -> tuple[str, bytes]:
    """(note, the sRGB level of each level) of a grey profile, for 256 levels or 65,536."""
    levels = bytes(range(256))
    transform = _transform(profile, "L", "RGB")
    if transform is None:  # an RGB profile says nothing of greys; that of sRGB comes along with many of them
        return ("" if _cached(_colour, profile, "RGB")[0] == "" else BAD_ICC), b""
    table = _applied(Image.frombytes("L", (256, 1), levels), transform).getchannel("G").tobytes()
    told = _verdict(levels, table, white=255)
    if not wide or told != ICC:
        return told, table
    transform = _transform(profile, "I;16", "RGB")
    assert transform is not None, "it was made for 8 bits"
    every = b"".join(level.to_bytes(2, "little") for level in range(1 << 16))
    return told, _applied(Image.frombytes("I;16", (256, 256), every), transform).getchannel("G").tobytes()


def _verdict(given: bytes, found: bytes, *, white: int) -> str:
    """Of what a profile does to colours, black first: "" where that is nothing, BAD_ICC where it makes no sense.

    Args:
        white: the place of white's first byte.
    """
    if max(abs(a - b) for a, b in zip(given, found, strict=True)) <= _SAME:
        return ""
    return ICC if found[white] > 128 and found[white] - found[0] > 64 else BAD_ICC


def _transform(profile: bytes, mode: str, to: str) -> ImageCms.ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        flags = _FLAGS if mode == to else _FLAGS | _EXACT  # of greys a table is made, once
        return ImageCms.buildTransform(opened, _srgb(), mode, to, renderingIntent=_INTENT, flags=flags)
    except _ERRORS:  # not a profile, or not of this mode
        return None


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _perceptual(load: Callable[..., Any], given: Any, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        return ImageCms.buildTransform(load(given), ImageCms.createProfile("sRGB"), mode, "RGB")
    except _ERRORS:
        return None


def _applied(band: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    assert transform is not None, "the profile was found to be one"
    converted = ImageCms.applyTransform(band, transform)
    assert converted is not None, "only in-place transforms return nothing"
    return converted


def _by_table(band: Image.Image, table: bytes) -> Image.Image:
    grey = band.getchannel("L") if band.mode == "LA" else band
    grey = grey.point(list(table))
    return Image.merge("LA", (grey, band.getchannel("A"))) if band.mode == "LA" else grey
