"""Image grids with names, as PNG."""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 2  # pixels between pictures
_SMALL = 64  # smaller pictures are enlarged, so that one can see them and read their names


def grid_png(
    images: np.ndarray, *, labels: Sequence[str] | None = None, columns: int | None = None, caption: str = ""
) -> bytes:
    """A grid of pictures, row by row, the name of each over it; pictures below 64 pixels are enlarged by a whole number.

    Args:
        images: uint8 (n, H, W, C), C 1 or 3.
        labels: n names, or None.
        columns: pictures in a row; None makes the grid about square.
        caption: a line over the whole.

    Returns:
        the bytes of a PNG file.
    """
    times = max(1, _SMALL // max(images.shape[1:3]))
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    font = ImageFont.load_default(size=11)
    name_height = 14 if labels is not None else 0
    top = 18 if caption else 0
    cell = (width + _GAP, height + name_height + _GAP)
    canvas = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP + top), "white")
    draw = ImageDraw.Draw(canvas)
    if caption:
        draw.text((_GAP + 1, 2), caption, fill="black", font=font)
    for i, picture in enumerate(images):
        x, y = _GAP + i % columns * cell[0], top + _GAP + i // columns * cell[1]
        if labels is not None:
            draw.text((x + 1, y), _fitting(labels[i], draw, font, width), fill="black", font=font)
        pixels = picture[..., 0] if channels == 1 else picture[..., :3]
        canvas.paste(Image.fromarray(np.ascontiguousarray(pixels)), (x, y + name_height))
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


def _fitting(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int
) -> str:
    """The name on one line, cut to the width of its picture."""
    text = "".join(character if character.isprintable() else " " for character in text)
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-1]
    return text


def picture_png(image: np.ndarray) -> bytes:
    """One picture, uint8 (H, W, C), as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()
