"""The bytes of one picture, as found, to 8-bit RGB: content decides, nothing is guessed from a name.

A picture is refused with a code, or kept with a note for each thing that was done to it. Large pictures are decoded
small where the format can (JPEG) and converted band by band, so that memory stays near that of the decoded file. numpy is
imported for the rare pictures that need it: it takes longer than twenty others.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import (  # the plugins register their formats when they are imported
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures.colour import Convert, meant, meant_16_bit, through_profile
from hdit_cli.data.prepare.pictures.heic import HEIC, INSTALL, brand_kind, is_read
from hdit_cli.data.prepare.sources.refused import Refused

DRAFT_GAP = 2.0  # a JPEG is decoded to at least this many times the size wanted
REDUCE_GAP = 4.0  # and boxes are averaged down to at least this many times; LANCZOS does the rest

_BAND_PIXELS = 1 << 22
_ORIENTATION = 0x0112  # EXIF tag
_BITS_PER_SAMPLE = 258  # TIFF tag


@dataclass(frozen=True)
class Picture:
    """A decoded picture, not yet turned.

    Args:
        image: mode L or RGB, reduced by `scale`; its last column and row may be covered in part only.
        size: (w, h) of the stored picture.
        scale: pixels of the stored picture per pixel of `image`, each way.
        orientation: 1..8, the EXIF turn still to be applied.
        notes: what was done, sorted codes.
        remarks: the decoder's own words, for `notes` that have some.
    """

    image: Image.Image
    size: tuple[int, int]
    scale: float
    orientation: int
    notes: tuple[str, ...]
    remarks: str


def read_picture(stream: BinaryIO, options: PrepareOptions) -> Picture:
    """Decodes one picture completely.

    Raises:
        Refused: with one of the codes empty, not-a-picture, zero-size, too-many-pixels, too-large, truncated, damaged.
    """
    kind = sniff(stream)
    notes: set[str] = set()
    with warnings.catch_warnings(record=True) as caught, _strict_decoding(options.max_pixels):
        warnings.simplefilter("always")
        try:
            if kind == "PFM":
                picture = _decode_pfm(stream, options, notes)
            else:
                picture = _decode(_open(stream, kind), options, notes)
        except Refused:
            raise
        except Exception as error:  # any error of a decoder on foreign bytes is a verdict on that file
            raise (_cut_webp(stream, kind) or _verdict(error)) from error
    remarks = _remarks(caught, notes)
    return Picture(**picture, notes=tuple(sorted(notes)), remarks=remarks)


# The door: what is it, how large is it?

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"II\0*", "TIFF"),
    (b"MM*\0", "TIFF"),
    (b"BM", "BMP"),
)
_WEAK = ("BMP", "PPM")  # two letters at the start of a file: may well be a text


def sniff(stream: BinaryIO) -> str:
    """The format that the first bytes promise.

    Raises:
        Refused: empty, not-a-picture of a format that is read, or heic where nothing here reads that.
    """
    head = stream.read(256)
    stream.seek(0)
    if not head:
        raise Refused("empty", "zero bytes")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    kind = brand_kind(head)
    if kind == "HEIF" and not is_read():
        raise Refused(HEIC, f"HEIC, which phones write, needs a decoder: {INSTALL}")
    if kind:
        return kind
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6", b"f"):
        return "PPM"
    if head[:3] == b"PF\n" or head[:4] == b"PF\r\n":
        return "PFM"
    raise Refused("not-a-picture", "the content is of no picture format that is read")


@contextlib.contextmanager
def _strict_decoding(pixels: int) -> Iterator[None]:
    """Pillow's own guards, which are global and which any library may have moved; put back at the end."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = pixels, False
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _open(stream: BinaryIO, kind: str) -> Image.Image:
    try:
        return Image.open(stream, formats=(kind,))  # by that plugin and no other; JPEG's knows MPO
    except UnidentifiedImageError as error:
        raise _unidentified(stream, kind) from error
    except (ValueError, SyntaxError, OSError) as error:
        if kind in _WEAK:
            raise _unidentified(stream, kind) from error
        raise


def _unidentified(stream: BinaryIO, kind: str) -> Refused:
    if kind in _WEAK:
        return Refused("not-a-picture", f"begins like {kind}, but has no header of that format")
    stream.seek(0)
    head = stream.read(32)
    sides = {
        "GIF": (head[6:8], head[8:10]),
        "PNG": (head[16:20], head[20:24]) if head[12:16] == b"IHDR" else (),
    }.get(kind, ())
    if any(side and not any(side) for side in sides):
        return Refused("zero-size", "width or height is 0")
    return _cut_webp(stream, kind) or Refused("damaged", f"begins like {kind}, but cannot be opened")


def _cut_webp(stream: BinaryIO, kind: str) -> Refused | None:
    """Truncation, which the WebP decoder does not tell from other damage: the file is shorter than it says."""
    stream.seek(4)
    told = int.from_bytes(stream.read(4), "little") + 8
    cut = kind == "WEBP" and told > stream.seek(0, io.SEEK_END)
    return Refused("truncated", "the file is shorter than it says") if cut else None


def _verdict(error: Exception) -> Refused:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    detail = re.sub(r"0x[0-9a-fA-F]+", "0x", text)[:200]  # no addresses: the report is a function of the input
    if isinstance(error, Image.DecompressionBombError):
        told = re.search(r"\d+ pixels", text)
        return Refused("too-many-pixels", told[0] if told else detail)
    if isinstance(error, MemoryError) or "out of memory" in text.lower():  # the words of AVIF's decoder
        return Refused("too-large", "not enough memory to decode it")
    cut = "truncated" in text.lower() or "unexpected end of file" in text.lower()  # the second are HEIC's words
    if isinstance(error, EOFError) or cut:
        return Refused("truncated", detail)
    return Refused("damaged", detail)


def _remarks(caught: list[warnings.WarningMessage], notes: set[str]) -> str:
    """Adds notes for the decoder's warnings, and returns their words."""
    said = []
    for warning in caught:
        text = str(warning.message).strip()
        if issubclass(warning.category, Image.DecompressionBombWarning) or not text:
            continue
        notes.add("bad-exif" if "exif" in text.lower() else "warning")
        said.append(text[:200])
    return "; ".join(dict.fromkeys(said))


# Decoding


def _decode(image: Image.Image, options: PrepareOptions, notes: set[str]) -> dict[str, Any]:
    size = image.size
    _check_size(size, options.max_pixels)
    if getattr(image, "is_animated", False):
        notes.add("first-frame")
    if _is_16_bit(image):
        notes.add("16-bit")
    if image.format == "TIFF" and image.tag_v2.get(_ORIENTATION) in range(2, 9):  # type: ignore[attr-defined]
        notes.add("exif-turned")  # by Pillow, when it loads it
    ratio = shrink_ratio(size, options)
    drafted = _draft(image, ratio)
    image.load()
    orientation = _orientation(image, notes)
    factor = max(1, int(ratio / drafted / REDUCE_GAP))
    reduced = _reduced(image, factor, _converter(image, options.colour, notes))
    return {"image": reduced, "size": size, "scale": drafted * factor, "orientation": orientation}


def _decode_pfm(stream: BinaryIO, options: PrepareOptions, notes: set[str]) -> dict[str, Any]:
    from hdit_cli.data.prepare.pictures import pfm

    header = pfm.read_header(stream)
    _check_size(header.size, options.max_pixels)
    channels = [Image.fromarray(channel) for channel in pfm.read_channels(stream, header)]  # three of mode F
    convert = _from_floats(channels, notes)
    factor = max(1, int(shrink_ratio(header.size, options) / REDUCE_GAP))
    reduced = Image.merge("RGB", [_reduced(channel, factor, convert) for channel in channels])
    return {"image": reduced, "size": header.size, "scale": float(factor), "orientation": 1}


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if 0 in size:
        raise Refused("zero-size", f"{size[0]}x{size[1]}")
    if size[0] * size[1] > max_pixels:
        raise Refused("too-many-pixels", f"{size[0]}x{size[1]}")


def shrink_ratio(size: tuple[int, int], options: PrepareOptions) -> float:
    """How many times smaller each side becomes at least, whichever way the picture will be turned."""
    own = max(size) if options.fit == "pad" else min(size)
    return own / max(options.size)


def _draft(image: Image.Image, ratio: float) -> float:
    """Asks a JPEG to be decoded at 1/2, 1/4 or 1/8; returns by how much it will be smaller."""
    wanted = ratio / DRAFT_GAP
    if image.format not in ("JPEG", "MPO") or wanted < 2:
        return 1.0
    width = image.width
    drafted = image.draft(None, (int(image.width / wanted), int(image.height / wanted)))  # type: ignore[func-returns-value]
    return 1.0 if drafted is None else width / drafted[1][2]


def _orientation(image: Image.Image, notes: set[str]) -> int:
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block raises all kinds; the picture itself is whole
        notes.add("bad-exif")
        return 1
    if not isinstance(turn, int) or not 1 <= turn <= 8:
        notes.add("bad-exif")
        return 1
    if turn != 1:
        notes.add("exif-turned")
    return turn


def _is_16_bit(image: Image.Image) -> bool:
    """True for more than 8 bits a channel, also where Pillow brings them down to 8 itself."""
    if image.mode.startswith("I"):
        return True
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
        return image.mode != "F" and max(bits if isinstance(bits, tuple) else (bits,), default=8) == 16
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    if image.format == "PPM":
        return isinstance(arguments, tuple) and any(isinstance(value, int) and value > 255 for value in arguments)
    return image.format == "PNG" and "16" in str(arguments)


def _bands(image: Image.Image, multiple: int) -> Iterator[tuple[int, Image.Image]]:
    """Yields (top, full-width band), each a multiple of `multiple` rows but the last."""
    rows = max(1, _BAND_PIXELS // image.width // multiple) * multiple
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _reduced(image: Image.Image, factor: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts to L or RGB and averages boxes of `factor` pixels, without a whole converted copy."""
    canvas: Image.Image | None = None
    for top, band in _bands(image, factor):
        piece = convert(band)
        piece = piece.reduce(factor) if factor > 1 else piece
        if canvas is None:
            if band is image:
                return piece
            canvas = Image.new(piece.mode, (-(-image.width // factor), -(-image.height // factor)))
        canvas.paste(piece, (0, top // factor))
    assert canvas is not None, "a picture has at least one row"
    return canvas


# Modes


def _converter(image: Image.Image, background: tuple[int, int, int], notes: set[str]) -> Convert:
    """The function that brings a band of this picture to L or RGB, in sRGB; it adds to `notes` what it finds."""
    mode = image.mode
    if mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"):
        notes.add("grey")
    if mode.startswith("I"):
        table = meant_16_bit(image, notes)
        return lambda band: _from_integers(band, notes, table)
    if mode == "F":
        return _from_floats([image], notes)
    if mode in ("CMYK", "LAB"):
        notes.add(mode.lower())
        return through_profile(image, notes)
    to_srgb = meant(image, notes)
    if image.has_transparency_data:
        return lambda band: _over(band, background, notes, to_srgb)
    plain = "L" if mode in ("1", "L") else "RGB"

    def convert(band: Image.Image) -> Image.Image:
        band = band if mode == plain else band.convert(plain)  # converting to its own mode would copy it
        return band if to_srgb is None else to_srgb(band)

    return convert


def _over(band: Image.Image, background: tuple[int, int, int], notes: set[str], to_srgb: Convert | None) -> Image.Image:
    """The band laid over the background, which is sRGB: so its own colours are, before."""
    layer = band.convert("LA") if band.mode == "La" else band
    if to_srgb is not None:
        layer = to_srgb(layer.convert("LA" if layer.mode in ("1", "L", "LA") else "RGBA"))
    layer = layer.convert("RGBA")
    opaque = layer.getchannel("A").getextrema() == (255, 255)
    if opaque:
        return layer.convert("RGB")
    notes.add("alpha")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")


def _from_integers(band: Image.Image, notes: set[str], table: bytes | None) -> Image.Image:
    import numpy as np

    values = np.asarray(band).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        notes.add("clipped")
    values = np.clip(values, 0, 65535)
    if table is not None:
        return Image.fromarray(np.frombuffer(table, dtype=np.uint8)[values])
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # [0, 65535] => [0, 255]


def _from_floats(channels: list[Image.Image], notes: set[str]) -> Callable[[Image.Image], Image.Image]:
    import numpy as np

    notes.add("float")
    low, high = 0.0, 0.0
    for _, band in (found for channel in channels for found in _bands(channel, 1)):
        values = np.asarray(band)
        finite = values[np.isfinite(values)]
        if finite.size < values.size:
            notes.add("not-finite")
        low, high = min(low, finite.min(initial=0.0)), max(high, finite.max(initial=0.0))
    unit = low >= 0.0 and high <= 1.0
    if not unit and (low < 0.0 or high > 255.0):
        notes.add("clipped")
    factor = 255.0 if unit else 1.0

    def convert(band: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(band, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
        return Image.fromarray(np.rint(np.clip(values * factor, 0, 255)).astype(np.uint8))

    return convert
