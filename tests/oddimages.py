"""Odd pictures that are kept: what is unusual about each, the notes that it leaves, and the pixels that it must give."""

from collections.abc import Callable, Iterator

import numpy as np
from makingimages import (
    END,
    GREY,
    NOISE,
    RNG,
    SMOOTH,
    VALID,
    Case,
    H,
    W,
    chunk,
    grey,
    header,
    idat,
    over,
    pfm,
    png,
    saved,
)
from PIL import Image, ImageCms


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
    """sRGB under any wrapping is no matter; what is no profile, or one of other pictures, is noted and not used."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in {"good": srgb, "junk": b"junk" * 40, "lab": lab, "huge": srgb + bytes(1 << 19)}.items():
        notes = () if name in ("good", "huge") else ("bad-icc",)
        yield Case(f"profile {name}.png", saved(NOISE, icc_profile=profile), notes, NOISE)
        yield Case(f"profile {name}.tif", saved(NOISE, "TIFF", icc_profile=profile), notes, NOISE)
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


GROUPS: tuple[Callable[[], Iterator[Case]], ...] = (
    _sample_depths, _lying_names, _inks, _numbers, _alpha, _turned, _profiles, _animations, _sizes, _followed,
)  # fmt: skip
