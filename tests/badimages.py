"""Bad and odd pictures, all built in memory, each with the verdict it must get and, where kept, the pixels it must give.

The expected pixels come from the arrays that the pictures were made of, by plain arithmetic: no code of the package, and
no resampling, since nearly all pictures have the size that the data set will have. Mutated pictures are compared with
`reference`, which decodes with Pillow at full size.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps

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


def fixed() -> list[Case]:
    """All fixed cases; names are unique."""
    made = [case for make in _GROUPS for case in make()]
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


def _sample_depths() -> Iterator[Case]:
    """PNG of 1, 2, 4 and 16 bits a sample, grey and by palette, packed by hand."""
    for depth in (1, 2, 4):
        levels = RNG.integers(0, 1 << depth, (H, W))
        packed = np.packbits((levels[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8).reshape(H, -1), axis=1)
        value = levels * 255 // ((1 << depth) - 1)
        data = png(header(W, H, depth=depth, colour=0), idat(packed), END)
        yield Case(f"grey {depth} bit.png", data, ("grey",), grey(value))
        palette = RNG.integers(0, 256, (1 << depth, 3), dtype=np.uint8)
        plte = chunk(b"PLTE", palette.tobytes())
        data = png(header(W, H, depth=depth, colour=3), plte, idat(packed), END)
        yield Case(f"palette {depth} bit.png", data, (), palette[levels])
        trns = chunk(b"tRNS", b"\0")
        data = png(header(W, H, depth=depth, colour=3), plte, trns, idat(packed), END)
        clear = np.where(levels == 0, 0, 255)
        yield Case(f"palette {depth} bit one clear.png", data, ("alpha",), over(palette[levels], clear))
    wide = RNG.integers(0, 65536, (H, W, 3))
    data = png(header(W, H, depth=16), idat(wide.astype(">u2").reshape(H, -1)), END)
    yield Case("rgb 16 bit.png", data, ("16-bit",), (wide / 257).round().astype(np.uint8), off=1)
    data = png(header(W, H, depth=16, colour=0), idat(wide[..., 0].astype(">u2")), END)
    yield Case("grey 16 bit.png", data, ("16-bit", "grey"), grey((wide[..., 0] + 128) // 257))
    alpha = np.concatenate([wide, RNG.integers(0, 65536, (H, W, 1))], axis=-1)
    data = png(header(W, H, depth=16, colour=6), idat(alpha.astype(">u2").reshape(H, -1)), END)
    expected = over(wide / 257, alpha[..., 3] / 257)
    yield Case("rgba 16 bit.png", data, ("16-bit", "alpha"), expected, off=1)


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
        ".DS_Store": b"\0\0\0\1Bud1" + bytes(60),
        "._x.jpg": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
        "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "note.ppm": b"P6 is the road to take, not P7",
        "letter.bmp": b"BM, we should talk about the pictures",
        "base.png": b"SQLite format 3\0" + bytes(80),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "zeros.jpg": bytes(5000),
        "random.jpg": np.random.default_rng(5).bytes(5000),
        "letters.png": bytes(range(256)) * 9,
        "heif.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
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
        "IM",
        "SPIDER",
        "MSP",
        "XBM",
    ):
        mode = {"SPIDER": "F", "MSP": "1", "XBM": "1", "IM": "L"}.get(kind, "RGB")
        yield Case(f"{kind.lower()} inside.jpg", saved(image.convert(mode), kind), ("not-a-picture",))


def _lying_names() -> Iterator[Case]:
    """Content decides: pictures of other formats than their names tell are kept, plainly."""
    for name, kind, off in (
        ("png inside.jpg", "png", 0),
        ("lossless webp inside.png", "lossless webp", 0),
        ("tiff inside.jpg", "tiff", 0),
        ("deflated tiff inside.gif", "deflated tiff", 0),
        ("bmp inside.jpg", "bmp", 0),
        ("ppm inside.tif", "ppm", 0),
        ("no suffix", "png", 0),
        ("picture.xyz", "png", 0),
    ):
        yield Case(name, VALID[kind], (), NOISE, off)
    for name, kind, off in (
        ("jpeg inside.png", "jpeg", 2),
        ("webp inside.jpg", "webp", 4),
        ("avif inside.jpg", "avif", 4),
    ):
        yield Case(name, VALID[kind], (), SMOOTH, off)
    yield Case("pfm inside.jpg", VALID["pfm"], ("float",), NOISE)


# Modes


def _inks() -> Iterator[Case]:
    c, m, y = (255 - SMOOTH[..., i].astype(int) for i in range(3))
    k = np.full((H, W), 40)
    cmyk = Image.fromarray(np.stack([c, m, y, k], axis=-1).astype(np.uint8), "CMYK")
    expected = np.rint(SMOOTH / 255 * (255 - 40)).astype(np.uint8)
    yield Case("cmyk.tif", saved(cmyk, "TIFF"), ("cmyk",), expected, off=1)
    for quality in (100, 95):
        data = saved(cmyk, "JPEG", quality=quality, subsampling=0)  # with Adobe's marker: inverted
        yield Case(f"cmyk {quality}.jpg", data, ("cmyk",), expected, off=3)
    lab = Image.fromarray(np.stack([GREY, np.zeros((H, W)), np.zeros((H, W))], axis=-1).astype(np.uint8), "LAB")
    light = (GREY / 255 * 100 + 16) / 116  # CIE Lab, no colour: Y from L, then the curve of sRGB
    linear = np.where(light > 6 / 29, light**3, 3 * (6 / 29) ** 2 * (light - 4 / 29))
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    yield Case("lab.tif", saved(lab, "TIFF"), ("lab",), grey(np.rint(curve.clip(0, 1) * 255)), off=2)
    yield Case("ycck.jpg", _ycck(), ("cmyk", "constant"), grey(np.full((H, W), 128)), off=3)


def _ycck() -> bytes:
    """Four components and Adobe's transform 2: the first three are YCbCr of the inverted inks. Grey, no black."""
    flat = Image.merge("CMYK", [Image.new("L", (W, H), value) for value in (127, 127, 127, 0)])
    data = bytearray(saved(flat, "JPEG", quality=100, subsampling=0))
    # stored inverted: 128, 128, 128 reads as Y = 128 and no colour under transform 2, too
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def _numbers() -> Iterator[Case]:
    high = RNG.integers(0, 65536, (H, W))
    expected = grey((high + 128) // 257)
    yield Case("16 bit.tif", saved(high.astype(np.uint16), "TIFF"), ("16-bit", "grey"), expected)
    yield Case(
        "16 bit maps.pgm", b"P5 %d %d 65535\n" % (W, H) + high.astype(">u2").tobytes(), ("16-bit", "grey"), expected
    )
    whole = Image.fromarray(high.astype(np.int32))
    yield Case("32 bit.tif", saved(whole, "TIFF"), ("16-bit", "grey"), expected)
    odd = high.astype(np.int32)
    odd[0, 0], odd[0, 1] = -5, 70_000
    clipped = expected.copy()
    clipped[0, 0], clipped[0, 1] = 0, 255
    yield Case("32 bit beyond.tif", saved(Image.fromarray(odd), "TIFF"), ("16-bit", "clipped", "grey"), clipped)
    unit = RNG.random((H, W)).astype(np.float32)
    rounded = np.rint(unit.astype(float) * 255)
    yield Case("float.tif", saved(Image.fromarray(unit), "TIFF"), ("float", "grey"), grey(rounded))
    large = (unit * 254 + 1).astype(np.float32)
    yield Case(
        "float to 255.tif", saved(Image.fromarray(large), "TIFF"), ("float", "grey"), grey(np.rint(large.astype(float)))
    )
    beyond = large * 3 - 100
    notes = ("clipped", "float", "grey")
    yield Case(
        "float beyond.tif",
        saved(Image.fromarray(beyond), "TIFF"),
        notes,
        grey(np.rint(beyond.astype(float)).clip(0, 255)),
    )
    holes = unit.copy()
    holes[0, 0], holes[0, 1], holes[0, 2] = np.nan, np.inf, -np.inf
    filled = rounded.copy()
    filled[0, :3] = 0, 255, 0
    yield Case(
        "float not finite.tif", saved(Image.fromarray(holes), "TIFF"), ("float", "grey", "not-finite"), grey(filled)
    )
    never = np.full((H, W), np.nan, dtype=np.float32)
    notes = ("constant", "float", "grey", "not-finite")
    yield Case("float all nan.tif", saved(Image.fromarray(never), "TIFF"), notes, grey(np.zeros((H, W))))
    colours = RNG.random((H, W, 3))
    yield Case(
        "colours.pfm",
        pfm(colours),
        ("float",),
        np.rint(colours.astype(np.float32).astype(float) * 255).astype(np.uint8),
    )
    yield Case("grey.pfm", b"Pf\n%d %d\n-1.0\n" % (W, H) + unit[::-1].tobytes(), ("float", "grey"), grey(rounded))
    yield Case(
        "colours nan.pfm",
        pfm(np.where(colours > 0.5, np.nan, 0.25)),
        ("float", "not-finite"),
        np.where(colours > 0.5, 0, 64).astype(np.uint8),
    )
    for text in (b"PF\nx y\n-1\n", b"PF\n3 3\nnan\n", b"PF\n3 3\n0\n", b"PF\n-3 3\n1\n", b"PF\n3\n1\n"):
        yield Case(f"bad header {text[3:].hex()}.pfm", text + bytes(108), ("damaged",))
    ascii_map = b"P3\n# a comment\n%d %d\n255\n" % (W, H) + " ".join(map(str, NOISE.ravel())).encode()
    yield Case("written out.ppm", ascii_map, (), NOISE)
    bits = NOISE[..., 0] > 127
    yield Case("bits.pbm", b"P4 %d %d\n" % (W, H) + np.packbits(~bits, axis=1).tobytes(), ("grey",), grey(bits * 255))
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        image = Image.fromarray(NOISE[..., 0])
        notes = () if kind == "WEBP" else ("grey",)
        yield Case(
            f"grey.{kind.lower()}",
            saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})),
            notes,
            grey(NOISE[..., 0]),
        )


def _alpha() -> Iterator[Case]:
    for value in (0, 1, 128, 254):
        alpha = np.full((H, W), value)
        layered = np.dstack([NOISE, alpha]).astype(np.uint8)
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
            notes = ("alpha", "constant") if value == 0 else ("alpha",)
            yield Case(
                f"alpha {value}.{kind.lower()}", saved(layered, kind, **options), notes, over(NOISE, alpha), off=1
            )
    opaque = np.dstack([NOISE, np.full((H, W), 255)]).astype(np.uint8)
    yield Case("opaque.png", saved(opaque), (), NOISE)
    ramp = np.dstack([GREY, NOISE[..., 1]]).astype(np.uint8)
    expected = over(grey(GREY), NOISE[..., 1])
    yield Case("grey alpha.png", saved(Image.fromarray(ramp, "LA")), ("alpha", "grey"), expected, off=1)
    two = Image.fromarray((GREY > 99).astype(np.uint8), "P")
    two.putpalette([200, 10, 10, 10, 10, 200])
    red, blue = np.array([200, 10, 10]), np.array([10, 10, 200])
    is_blue = (GREY > 99)[..., None]
    yield Case(
        "clear by number.gif",
        saved(two, "GIF", transparency=0),
        ("alpha",),
        np.where(is_blue, blue, 255).astype(np.uint8),
    )
    half = over(np.broadcast_to(red, (H, W, 3)), np.full((H, W), 100))
    data = saved(two, transparency=bytes([100, 255]))
    yield Case("clear by table.png", data, ("alpha",), np.where(is_blue, blue, half).astype(np.uint8), off=1)
    clear = np.where((NOISE[3, 4] == NOISE).all(axis=-1), 0, 255)
    data = saved(Image.fromarray(NOISE), transparency=tuple(int(v) for v in NOISE[3, 4]))
    yield Case("clear by colour.png", data, ("alpha",), over(NOISE, clear))
    data = saved(Image.fromarray(GREY), transparency=int(GREY[3, 4]))
    yield Case("clear by grey.png", data, ("alpha", "grey"), over(grey(GREY), np.where(GREY[3, 4] == GREY, 0, 255)))


# What stands around the pixels


def _turned() -> Iterator[Case]:
    turns = {
        1: NOISE, 2: NOISE[:, ::-1], 3: NOISE[::-1, ::-1], 4: NOISE[::-1],
        5: NOISE.transpose(1, 0, 2), 6: np.rot90(NOISE), 7: NOISE[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(NOISE, -1),
    }  # fmt: skip
    for turn, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        notes = ("exif-turned",) if turn > 1 else ()
        for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            yield Case(
                f"turn {turn}.{kind.lower()}",
                saved(np.ascontiguousarray(stored), kind, exif=exif, **options),
                notes,
                NOISE,
            )
    for turn in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("PNG", "TIFF"):
            yield Case(f"turn {turn}.{kind.lower()}", saved(NOISE, kind, exif=exif), ("bad-exif",), NOISE)
    plain = saved(NOISE)
    at = plain.index(b"IDAT") - 4
    blocks = {
        "loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",  # a directory that is followed by itself
        "empty": b"",
        "cut": b"II*\0\x08\0\0\0\xff\xff",
        "junk": b"not EXIF at all",
        "far": b"II*\0\xff\xff\xff\x7f",
        "large": b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(65_000),
    }
    for name, block in blocks.items():
        data = plain[:at] + chunk(b"eXIf", block) + plain[at:]
        notes = ("bad-exif",) if name in ("cut", "junk", "far") else ()
        yield Case(f"exif {name}.png", data, notes, NOISE)


def _profiles() -> Iterator[Case]:
    """A profile of an RGB picture is left alone; that of CMYK and Lab is used where it can be."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in {"good": srgb, "junk": b"junk" * 40, "lab": lab, "huge": srgb + bytes(1 << 19)}.items():
        yield Case(f"profile {name}.png", saved(NOISE, icc_profile=profile), (), NOISE)
        yield Case(f"profile {name}.tif", saved(NOISE, "TIFF", icc_profile=profile), (), NOISE)
    inks = Image.fromarray(np.dstack([255 - NOISE, np.zeros((H, W))]).astype(np.uint8), "CMYK")
    for name, profile in {"junk": b"junk" * 40, "of rgb": srgb}.items():
        data = saved(inks, "TIFF", icc_profile=profile)
        yield Case(f"cmyk profile {name}.tif", data, ("bad-icc", "cmyk"), NOISE, off=1)


def _animations() -> Iterator[Case]:
    first, then = Image.fromarray(NOISE), Image.fromarray(NOISE[::-1].copy())
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = saved(first, kind, save_all=True, append_images=[then, first], **options)
        yield Case(f"animated.{kind.lower()}", data, ("first-frame",), NOISE)
    palette = first.quantize(32)
    data = saved(palette, "GIF", save_all=True, append_images=[then.quantize(32)])
    yield Case("animated.gif", data, ("first-frame",), np.asarray(palette.convert("RGB")))
    data = saved(first, "MPO", save_all=True, append_images=[then], quality=100, subsampling=0)
    yield Case("two views.mpo", data, ("first-frame",), NOISE, off=3)


def _sizes() -> Iterator[Case]:
    """Of one colour, so that whatever the resampling does, the colour stays."""
    colour = np.array([200, 30, 90], dtype=np.uint8)
    expected = np.broadcast_to(colour, (H, W, 3)).copy()
    for width, height in (
        (1, 1),
        (1, 50),
        (50, 1),
        (3, 400),
        (400, 3),
        (2, 2000),
        (2000, 2),
        (5, 4),
        (W - 1, H - 1),
        (64, 48),
        (1000, 1),
    ):
        for kind in ("PNG", "BMP"):
            data = saved(np.broadcast_to(colour, (height, width, 3)).copy(), kind)
            small = min(width / W, height / H) < 1
            notes = ("constant", "upscaled") if small else ("constant",)
            yield Case(f"size {width}x{height}.{kind.lower()}", data, notes, expected)
    double = np.repeat(np.repeat(NOISE // 2 * 2, 2, axis=0), 2, axis=1)
    yield Case("twice as large.png", saved(double), (), NOISE // 2 * 2, off=40)


def _followed() -> Iterator[Case]:
    whole = VALID["jpeg"]
    archive = b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    for name, data in {
        "jpeg and zip": whole + archive,
        "two jpegs": whole + whole,
        "jpeg and ff": whole + b"\xff" * 500,
    }.items():
        yield Case(f"{name}.jpg", data, (), SMOOTH, off=2)
    for kind in ("png", "gif", "bmp", "tiff", "ppm", "lossless webp", "pfm"):
        expected = np.asarray(Image.fromarray(SMOOTH).quantize(64).convert("RGB")) if kind == "gif" else NOISE
        yield Case(f"followed {kind}", VALID[kind] + b"more" * 50, ("float",) if kind == "pfm" else (), expected)
    for value in (0, 128, 255):
        flat = np.full((H, W, 3), value, dtype=np.uint8)
        for kind in ("PNG", "JPEG", "WEBP"):
            yield Case(f"all {value}.{kind.lower()}", saved(flat, kind), ("constant",), flat, off=1)
    again = saved(NOISE, compress_level=1)
    yield Case("the same pixels.png", again, (), NOISE)
    yield Case("the same bytes.png", VALID["png"], (), NOISE)


_GROUPS: tuple[Callable[[], Iterator[Case]], ...] = (
    _cut, _short, _png, _sample_depths, _bombs, _foreign, _lying_names, _inks, _numbers, _alpha,
    _turned, _profiles, _animations, _sizes, _followed,
)  # fmt: skip


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
    image = Image.open(io.BytesIO(data))
    image.load()
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return None
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    layered = np.asarray(image.convert("RGBA"))
    return over(layered[..., :3], layered[..., 3])
