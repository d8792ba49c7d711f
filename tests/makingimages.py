"""How the pictures of the tests are made: noise and gradients of one size, PNG by hand, one valid picture of each format."""

import io
import os
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

SEED = int(os.environ.get("HDIT_CHAOS_SEED", "0"))  # of what tests draw at random

H, W = 24, 32
RNG = np.random.default_rng(2026)
NOISE = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
_y, _x = np.mgrid[0:H, 0:W]
SMOOTH = np.stack([_x * 255 // (W - 1), _y * 255 // (H - 1), (_x + _y) * 255 // (H + W - 2)], axis=-1).astype(np.uint8)
GREY = SMOOTH[..., 2]


@dataclass(frozen=True)
class Case:
    """One picture.

    Args:
        name: of its file.
        data: its bytes.
        codes: why it is refused (one of them), or all notes of a kept one.
        pixels: uint8 (H, W, 3) of a kept one, None for a refused one.
        off: by how much a pixel may be off, on average over the picture (0 = not at all).
    """

    name: str
    data: bytes
    codes: tuple[str, ...]
    pixels: np.ndarray | None = None
    off: float = 0.0

    @property
    def is_kept(self) -> bool:
        return self.pixels is not None


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, *, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = chunk(b"IEND", b"")


def rows(array: np.ndarray) -> bytes:
    """The filtered bytes of a PNG: every row after a zero."""
    return b"".join(b"\0" + row.tobytes() for row in array)


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks)


def idat(array: np.ndarray) -> bytes:
    return chunk(b"IDAT", zlib.compress(rows(array)))


def pfm(array: np.ndarray) -> bytes:
    return b"PF\n%d %d\n-1.0\n" % (array.shape[1], array.shape[0]) + array[::-1].astype("<f4").tobytes()


def over(rgb: np.ndarray, alpha: np.ndarray, background: int = 255) -> np.ndarray:
    """(H, W, 3) laid over a grey background by (H, W) alpha in 0..255."""
    share = alpha[..., None] / 255
    return np.rint(rgb * share + background * (1 - share)).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, dtype=np.uint8)[..., None], 3, axis=-1)


VALID: dict[str, bytes] = {
    "jpeg": saved(SMOOTH, "JPEG", quality=95, subsampling=0),
    "progressive": saved(NOISE, "JPEG", quality=95, progressive=True),
    "png": saved(NOISE),
    "webp": saved(SMOOTH, "WEBP", quality=95),
    "lossless webp": saved(NOISE, "WEBP", lossless=True),
    "gif": saved(Image.fromarray(SMOOTH).quantize(64), "GIF"),
    "bmp": saved(NOISE, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "deflated tiff": saved(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "ppm": saved(NOISE, "PPM"),
    "avif": saved(SMOOTH, "AVIF", quality=95, max_threads=1),
    "pfm": pfm(NOISE / 255),
}
