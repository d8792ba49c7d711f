"""A decoded picture of any shape to the one size of a data set, and its encoded bytes."""

import io

from PIL import Image

from hdit_cli.data.prepare.buckets import nearest, turned_size
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.pictures import Picture

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height


def fit(picture: Picture, options: PrepareOptions) -> tuple[Image.Image, list[str]]:
    """Resizes with LANCZOS, turns, and pads where asked.

    Resampling and centred cropping commute with turns, so the turn is applied last, to the small picture.

    Returns:
        RGB image of options.size, or of the nearest bucket's, and all notes of the picture, sorted.
    """
    height, width = nearest(turned_size(picture.size, picture.orientation), options.sizes)
    if picture.orientation in _QUARTER_TURNS:
        height, width = width, height
    box, inner = _geometry(picture.size, (width, height), options.fit)
    small = _resized(picture.image, inner, _inside(box, picture.scale, picture.image.size))
    if picture.orientation in _TURNS:
        small = small.transpose(_TURNS[picture.orientation])
    notes = set(picture.notes)
    if inner[0] > box[2] - box[0] or inner[1] > box[3] - box[1]:
        notes.add("upscaled")
    if small.mode != "RGB":
        small = small.convert("RGB")
    if small.getcolors(1) is not None:  # gives up at the second colour
        notes.add("constant")
    if options.fit == "pad":
        small = _padded(small, options)
    small.info = {}  # no profile, text or density of the source goes on
    return small, sorted(notes)


Box = tuple[float, float, float, float]


def _geometry(size: tuple[int, int], target: tuple[int, int], how: str) -> tuple[Box, tuple[int, int]]:
    """The box of the stored picture (left, top, right, bottom) that is used, and the (w, h) it is resized to."""
    (w, h), (width, height) = size, target
    if how == "crop":
        scale = min(w / width, h / height)  # stored pixels per pixel
        left, top = (w - scale * width) / 2, (h - scale * height) / 2
        return (left, top, w - left, h - top), target
    if how == "pad":
        scale = max(w / width, h / height)
        inner = max(1, min(width, round(w / scale))), max(1, min(height, round(h / scale)))
        return (0.0, 0.0, w, h), inner
    return (0.0, 0.0, w, h), target


def _inside(box: Box, scale: float, size: tuple[int, int]) -> Box:
    """The box in pixels of the reduced picture; rounding must not put it outside."""
    left, top, right, bottom = (side / scale for side in box)
    return max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)


def _resized(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """The box of the image at this (w, h), by LANCZOS; always a new image."""
    if size == (box[2] - box[0], box[3] - box[1]) and all(side == int(side) for side in box):
        return image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))  # what LANCZOS comes to at scale 1
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=None)


def _padded(small: Image.Image, options: PrepareOptions) -> Image.Image:
    height, width = options.size
    canvas = Image.new("RGB", (width, height), options.colour)
    canvas.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return canvas


def encode(image: Image.Image, how: str) -> bytes:
    """The bytes of one picture: jpeg (quality 95, 4:4:4), webp (quality 95) or png (lossless)."""
    buffer = io.BytesIO()
    if how == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    elif how == "webp":
        image.save(buffer, "WEBP", quality=95)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()
