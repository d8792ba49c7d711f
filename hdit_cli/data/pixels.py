"""Encoded pictures of a data set to pixels.

The pictures of a set are nearly always JPEGs with one and the same header: `hdit prepare` writes the same tables and the
same size into each. Opening one costs Pillow as long as decoding 64x64 pixels. So only the first picture of a header is
opened; those that begin with the same bytes, up to the end of the frame header, which tells size and components, go
straight to Pillow's decoder. The pixels are the same, bit by bit.
"""

import io

import numpy as np
from PIL import Image

from hdit_cli.data.prepare.options import WRITTEN

_MOST_HEADERS = 64  # one for each size of picture
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))  # segments that may stand before the frame header


class Pixels:
    """Decodes; remembers the headers it has met. Not for several threads at once."""

    def __init__(self) -> None:
        self._length = 0  # of the headers known, in bytes
        self._sizes: dict[bytes, tuple[int, int]] = {}  # header => (w, h)

    def __call__(self, data: bytes) -> np.ndarray:
        """One picture.

        Returns:
            uint8 (H, W, 3), a view: in memory each row holds its red, its green, its blue.

        Raises:
            OSError, ValueError, SyntaxError, DecompressionBombError: not a picture, or a damaged one.
        """
        size = self._sizes.get(data[: self._length])
        if size is not None:
            return _rows(Image.frombytes("RGB", size, data, "jpeg", "RGB", ""))
        with Image.open(io.BytesIO(data), formats=WRITTEN) as image:
            picture = image.convert("RGB")  # decodes it
            if image.format == "JPEG" and image.mode == "RGB":
                self._remember(data, image.size)
        return _rows(picture)

    def _remember(self, data: bytes, size: tuple[int, int]) -> None:
        length = frame_header_end(data)
        if length and length == (self._length or length) and len(self._sizes) < _MOST_HEADERS:
            self._length = length
            self._sizes[data[:length]] = size


def frame_header_end(data: bytes) -> int:
    """Where the frame header of a JPEG ends, in bytes; 0 where anything but tables stands before it."""
    at = 2
    while len(data) > at + 4 and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            return end
        if marker not in _TABLES:
            return 0
        at = end
    return 0


def _rows(image: Image.Image) -> np.ndarray:
    """The pixels, packed row by row into red, green, blue: from there to channels is a copy of whole rows."""
    width, height = image.size
    # Image.tobytes packs in pieces of 64 KiB and joins them; in one piece a decoded picture of 256x256 is there 5 % sooner
    encoder = Image._getencoder("RGB", "raw", ("RGB;L",))
    encoder.setimage(image.im, (0, 0, width, height))
    packed = encoder.encode(3 * width * height)[2]
    assert len(packed) == 3 * width * height, "Pillow packs a picture in one piece where it is given the room"
    return np.frombuffer(packed, dtype=np.uint8).reshape(height, 3, width).transpose(0, 2, 1)
