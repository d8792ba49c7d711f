"""Bad and odd pictures, all built in memory, each with the verdict it must get and, where kept, the pixels it must give.

The expected pixels come from the arrays that the pictures were made of, by plain arithmetic: no code of the package, and
no resampling, since nearly all pictures have the size that the data set will have. Mutated pictures are compared with
`reference`, which decodes with Pillow at full size.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import oddimages
from makingimages import (
    END,
    GREY,
    NOISE,
    SIGNATURE,
    SMOOTH,
    VALID,
    Case,
    H,
    W,
    chunk,
    header,
    idat,
    over,
    png,
    rows,
    saved,
)
from PIL import Image, ImageOps


def fixed() -> list[Case]:
    """All fixed cases; names are unique."""
    made = [case for make in (*_GROUPS, *oddimages.GROUPS) for case in make()]
    assert len({case.name for case in made}) == len(made)
    return made


# Cut and empty


def _cut() -> Iterator[Case]:
    """Every format cut at nine places; only the PNG, AVIF and WebP decoders may call it damage instead."""
    for kind, data in VALID.items():
        for tenth in range(1, 10):
            stop = max(64, len(data) * tenth // 10)
            both = tenth == 1 or kind in ("png", "avif", "gif", "tiff", "deflated tiff")
            yield Case(f"cut {kind} {tenth}", data[:stop], ("truncated", "damaged") if both else ("truncated",))
    whole = VALID["jpeg"]
    yield Case("jpeg without an end.jpg", whole[:-2], ("truncated",))


def _short() -> Iterator[Case]:
    yield Case("empty.jpg", b"", ("empty",))
    for byte in (0x00, 0xFF, 0x89, 0x47):
        yield Case(f"one byte {byte:02x}.png", bytes([byte]), ("not-a-picture",))
    for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "avif"):
        for size in (2, 8, 12, 30):
            codes = ("not-a-picture", "truncated", "damaged")
            yield Case(f"first {size} of {kind}", VALID[kind][:size], codes)


# PNG, piece by piece


def _png() -> Iterator[Case]:
    body, data = idat(NOISE), zlib.compress(rows(NOISE))
    whole = png(header(W, H), body, END)
    flipped = bytearray(whole)
    flipped[60] ^= 1
    yield Case("png by hand.png", whole, (), NOISE)
    yield Case("png one bit.png", bytes(flipped), ("damaged",))
    yield Case("png wrong crc of header.png", png(chunk(b"IHDR", header(W, H)[8:21], wrong=1), body, END), ("damaged",))
    yield Case("png wrong crc of data.png", png(header(W, H), chunk(b"IDAT", data, wrong=1), END), (), NOISE)
    yield Case("png no zlib.png", png(header(W, H), chunk(b"IDAT", b"\xaa" * 400), END), ("damaged",))
    yield Case("png short zlib.png", png(header(W, H), chunk(b"IDAT", data[:-200]), END), ("truncated", "damaged"))
    black = NOISE.copy()
    black[-1] = 0  # nothing says that a whole stream of fewer rows was cut; Pillow leaves the rest black
    yield Case("png too few rows.png", png(header(W, H), idat(NOISE[:-1]), END), (), black)
    yield Case("png too many rows.png", png(header(W, H), idat(np.vstack([NOISE, NOISE])), END), (), NOISE)
    yield Case("png without data.png", png(header(W, H), END), ("truncated", "damaged"))
    yield Case("png header last.png", png(body, header(W, H), END), ("damaged", "truncated"))
    yield Case("png no header.png", png(body, END), ("damaged", "truncated"))
    yield Case("png only signature.png", SIGNATURE, ("damaged", "truncated"))
    yield Case(
        "png bad filter.png",
        png(header(W, H), chunk(b"IDAT", zlib.compress(b"\x09" * (H * (3 * W + 1)))), END),
        ("damaged",),
    )
    yield Case("png depth 3.png", png(header(W, H, depth=3), body, END), ("damaged",))
    yield Case("png colour 5.png", png(header(W, H, colour=5), body, END), ("damaged",))
    yield Case("png no palette.png", png(header(W, H, colour=3), idat(GREY), END), ("damaged", "truncated"))
    for side, (width, height) in {"width": (0, H), "height": (W, 0), "both": (0, 0)}.items():
        yield Case(f"png zero {side}.png", png(header(width, height), body, END), ("zero-size",))
    texts = b"".join(chunk(b"tEXt", b"key %d\0value" % number) for number in range(10_000))
    yield Case("png 10000 texts.png", png(header(W, H), texts, body, END), (), NOISE)
    split = b"".join(chunk(b"IDAT", data[i : i + 7]) for i in range(0, len(data), 7))
    yield Case("png tiny chunks.png", png(header(W, H), split, END), (), NOISE)
    bomb = zlib.compress(bytes(1 << 26), 9)
    yield Case("png ztxt bomb.png", png(header(W, H), chunk(b"zTXt", b"k\0\0" + bomb), body, END), ("damaged",))
    yield Case("png itxt bomb.png", png(header(W, H), chunk(b"iTXt", b"k\0\1\0\0\0" + bomb), body, END), ("damaged",))
    yield Case("png iccp bomb.png", png(header(W, H), chunk(b"iCCP", b"k\0\0" + bomb), body, END), ("damaged",))
    yield Case("png unknown chunk.png", png(header(W, H), chunk(b"abCd", b"what"), body, END), (), NOISE)
    yield Case("png huge chunk.png", png(header(W, H), b"\x7f\xff\xff\xffIDAT" + data), (), NOISE)
    yield Case("png text after.png", whole + b"trailing" * 40, (), NOISE)


# Headers that promise too much


def _bombs() -> Iterator[Case]:
    for width, height in ((20_000, 20_000), (65_535, 65_535), (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)):
        name = f"bomb {width}x{height}"
        yield Case(f"{name}.png", png(header(width, height, 1, 0), chunk(b"IDAT", b""), END), ("too-many-pixels",))
    wide = struct.pack("<HH", 65535, 65535)
    yield Case("bomb.gif", b"GIF89a" + wide + b"\0\0\0," + bytes(4) + wide + b"\0\x02\x00;", ("too-many-pixels",))
    bmp = bytearray(VALID["bmp"])
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    yield Case("bomb.bmp", bytes(bmp), ("too-many-pixels",))
    yield Case("bomb.ppm", b"P6\n100000 100000\n255\n" + bytes(99), ("too-many-pixels",))
    yield Case("bomb.pgm", b"P5 90000 90000 65535\n" + bytes(99), ("too-many-pixels",))
    yield Case("bomb.pfm", b"PF\n100000 100000\n-1\n" + bytes(99), ("too-many-pixels",))
    canvas = b"\0\0\0\0" + (2**24 - 1).to_bytes(3, "little") + (2**7).to_bytes(3, "little")
    vp8x = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    yield Case("bomb.webp", b"RIFF" + struct.pack("<I", len(vp8x)) + vp8x, ("too-many-pixels", "damaged"))
    tiff = VALID["tiff"]
    for tag in (256, 257):  # ImageWidth, ImageLength: the value of a SHORT or LONG stands in the entry itself
        tiff = _tiff_entry(tiff, tag, 200_000)
    yield Case("bomb.tif", tiff, ("too-many-pixels",))
    jpeg = bytearray(VALID["jpeg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    yield Case("bomb.jpg", bytes(jpeg), ("too-many-pixels",))
    legal = png(header(4000, 4000, 1, 0), chunk(b"IDAT", zlib.compress(bytes(501 * 4000), 9)), END)
    yield Case("bomb that is legal.png", legal, ("constant", "grey"), np.zeros((H, W, 3), dtype=np.uint8))
    frames = [Image.new("RGB", (W, H), (number, 0, 0)) for number in range(200)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield Case("many frames.gif", data, ("constant", "first-frame"), np.zeros((H, W, 3), dtype=np.uint8))


def _tiff_entry(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another number in one entry of its first directory."""
    out = bytearray(data)
    (start,) = struct.unpack_from("<I", out, 4)
    (count,) = struct.unpack_from("<H", out, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", out, at)[0] == tag:
            out[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(out)


# No pictures, and pictures of formats that are not read


def _foreign() -> Iterator[Case]:
    told = {
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "answer.png": b'{"error": "rate limited"}',
        "program.gif": b"\x7fELF\x02\x01\x01" + bytes(57),
        "archive.jpg": b"PK\x03\x04" + bytes(60),
        "packed.jpg": b"\x1f\x8b\x08" + bytes(60),
        "film.jpg": b"\0\0\0\x18ftypmp42" + bytes(40),
        "text.jpg": b"a text renamed to a picture\n" * 9,
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
        "DS_Store.jpg": b"\0\0\0\1Bud1" + bytes(60),
        "._x.jpg": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
        "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "note.ppm": b"P6 is the road to take, not P7",
        "letter.bmp": b"BM, we should talk about the pictures",
        "base.png": b"SQLite format 3\0" + bytes(80),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "zeros.jpg": bytes(5000),
        "random.jpg": np.random.default_rng(5).bytes(5000),
        "letters.png": bytes(range(256)) * 9,
        "fits.jpg": b"SIMPLE  =                    T" + b" " * 50,
        "wmf.jpg": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
        "emf.jpg": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(60),
        "hdf5.jpg": b"\x89HDF\r\n\x1a\n" + bytes(60),
        "grib.jpg": b"GRIB\0\0\0\2" + bytes(60),
        "psd.jpg": b"8BPS\0\1" + bytes(60),
        "xpm.jpg": b"/* XPM */\nstatic char *x[] = {",
        "fli.jpg": b"\x80\0\0\0\x11\xaf" + bytes(120),
        "pcd.jpg": bytes(2048) + b"PCD_" + bytes(60),
        "sun.jpg": b"\x59\xa6\x6a\x95" + bytes(60),
        "djvu.jpg": b"AT&TFORM" + bytes(60),
        "jxl.jpg": b"\xff\x0a" + bytes(60),
    }
    for name, data in told.items():
        yield Case(name, data, ("not-a-picture",))
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    yield Case("heif.jpg", heic, ("heic", "damaged"))  # the second where something reads it
    image = Image.fromarray(SMOOTH)
    for kind in (
        "EPS",
        "PDF",
        "ICO",
        "ICNS",
        "TGA",
        "PCX",
        "SGI",
        "DDS",
        "JPEG2000",
        "SPIDER",
        "MSP",
        "XBM",
    ):
        mode = {"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")
        yield Case(f"{kind.lower()} inside.jpg", saved(image.convert(mode), kind), ("not-a-picture",))


_GROUPS: tuple[Callable[[], Iterator[Case]], ...] = (_cut, _short, _png, _bombs, _foreign)


# Mutations


def mutated(random: np.random.Generator) -> tuple[str, bytes]:
    """A valid picture with one to four random edits; the kind of the picture and its bytes."""
    kinds = list(VALID)
    kind = kinds[random.integers(len(kinds))]
    data = bytearray(VALID[kind])
    for _ in range(random.integers(1, 5)):
        at, long = int(random.integers(max(1, len(data)))), int(random.integers(1, 65))
        match random.integers(8):
            case 0 | 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << int(random.integers(8))]) if data else b""
            case 2:
                data[at : at + 1] = random.bytes(1)
            case 3:
                data[at : at + long] = bytes(len(data[at : at + long]))
            case 4:
                data[at : at + long] = data[at : at + long][::-1]
            case 5:
                data[at : at + long] = b"\xff" * long
            case 6:
                other = VALID[kinds[random.integers(len(kinds))]]
                data[at:] = other[int(random.integers(len(other))) :]
            case _:
                del data[max(1, at) :]
    return kind, bytes(data)


def reference(data: bytes) -> np.ndarray | None:
    """The pixels of a picture of 8 bits as Pillow decodes it whole: uint8 (h, w, 3); None for other kinds of numbers."""
    if data.startswith(b"PF"):  # of which Pillow knows nothing
        return None
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return None
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    layered = np.asarray(image.convert("RGBA"))
    return over(layered[..., :3], layered[..., 3])
