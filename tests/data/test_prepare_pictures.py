"""One picture of each kind, made in memory: its verdict, its notes, its pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from hdit_cli.data.prepare.options import PrepareOptions, parse_size
from hdit_cli.data.prepare.pictures.fit import encode, fit
from hdit_cli.data.prepare.pictures.pictures import read_picture
from hdit_cli.data.prepare.sources.refused import Refused
from hdit_cli.errors import UsageError

RAMP = np.arange(64 * 64, dtype=np.float64).reshape(64, 64) / (64 * 64 - 1)  # 0..1
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kept(data, size=(64, 64), **options):
    """RGB array and notes of a picture."""
    chosen = PrepareOptions(size=size, **options)
    image, notes = fit(read_picture(io.BytesIO(data), chosen), chosen)
    assert image.mode == "RGB" and image.size == (size[1], size[0]) and not image.info
    return np.asarray(image), notes


def code(data, **options):
    with pytest.raises(Refused) as caught:
        read_picture(io.BytesIO(data), PrepareOptions(**options))
    assert "0x7f" not in caught.value.detail
    return caught.value.code


def png(width, height, depth, colour, raw):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


# Kept


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_pass_through_to_the_bit(kind):
    pixels, notes = kept(saved(Image.fromarray(NOISE), kind))
    assert np.array_equal(pixels, NOISE) and notes == []


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "GIF"])
def test_lossy_formats_are_read(kind):
    smooth = np.stack([RAMP * 255, RAMP[::-1] * 255, RAMP.T * 255], axis=-1).astype(np.uint8)
    pixels, notes = kept(saved(Image.fromarray(smooth), kind))
    assert np.abs(pixels.astype(int) - smooth).mean() < 8 and notes == []


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
def test_exif_turn_commutes_with_the_fit(turn, how):
    """A picture stored in any of the eight ways gives what the upright one gives."""
    upright = Image.fromarray(NOISE[:63, :41])
    T = Image.Transpose
    undo = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE}
    undo |= {6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270}
    stored = upright.transpose(undo[turn]) if turn in undo else upright
    exif = Image.Exif()
    exif[0x0112] = turn
    expected, _ = kept(saved(upright), size=(20, 30), fit=how)
    pixels, notes = kept(saved(stored, exif=exif), size=(20, 30), fit=how)
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert ("exif-turned" in notes) == (turn != 1)


@pytest.mark.parametrize("turn", [0, 9, 65535])
def test_exif_turn_out_of_range_is_noted(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels, notes = kept(saved(Image.fromarray(NOISE), exif=exif))
    assert np.array_equal(pixels, NOISE) and notes == ["bad-exif"]


def test_broken_exif_is_tolerated():
    _, notes = kept(saved(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff junk"))
    assert notes == ["bad-exif"]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        pixels, notes = kept(data)
        assert "first-frame" in notes and pixels[0, 0, 0] > 200 and pixels[0, 0, 2] < 50


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_over_the_background(mode):
    image = Image.new("RGBA", (64, 64), (255, 0, 255, 0))
    image.paste((10, 10, 10, 255), (0, 0, 32, 64))
    pixels, notes = kept(saved(image.convert(mode)), background="#00ff00")
    assert "alpha" in notes
    assert pixels[5, 5].tolist() == [10, 10, 10] and pixels[5, 60].tolist() == [0, 255, 0]


def test_an_opaque_alpha_channel_is_no_note():
    assert kept(saved(Image.fromarray(NOISE).convert("RGBA")))[1] == []


def test_16_bit_grey_is_divided_by_257():
    values = np.rint(RAMP * 65535).astype(np.uint16)
    expected = np.rint(values / 257.0)
    for kind in ("PNG", "TIFF"):
        pixels, notes = kept(saved(Image.fromarray(values), kind))
        assert np.array_equal(pixels[..., 0], expected) and notes == ["16-bit", "grey"]
    big_endian = png(64, 64, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    assert np.array_equal(kept(big_endian)[0][..., 1], expected)
    pgm = b"P5 64 64 65535\n" + values.astype(">u2").tobytes()
    pixels, notes = kept(pgm)
    assert np.array_equal(pixels[..., 2], expected) and "16-bit" in notes


def test_16_bit_colour_is_noted():
    values = np.rint(RAMP * 65535)
    colour = np.stack([values, values.T, values[::-1]], axis=-1).astype(">u2")
    pixels, notes = kept(png(64, 64, 16, 2, b"".join(b"\0" + row.tobytes() for row in colour)))
    assert notes == ["16-bit"] and np.abs(pixels - colour / 257.0).max() <= 1


def test_float_of_unit_range_is_scaled_else_clipped():
    pixels, notes = kept(saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"))
    assert np.array_equal(pixels[..., 0], np.rint(RAMP.astype(np.float32) * 255.0)) and notes == ["float", "grey"]
    values = (RAMP * 400 - 50).astype(np.float32)
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    pixels, notes = kept(saved(Image.fromarray(values), "TIFF"))
    expected = np.rint(np.clip(np.nan_to_num(values, nan=0.0), 0, 255))
    assert np.array_equal(pixels[..., 0], expected)
    assert notes == ["clipped", "float", "grey", "not-finite"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_pfm(order):
    colour = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=-1)
    scale = b"-1.0" if order == "<" else b"1.0"
    data = b"PF\n64 64\n" + scale + b"\n" + colour[::-1].astype(f"{order}f4").tobytes()
    pixels, notes = kept(data)
    assert np.array_equal(pixels, np.rint(colour.astype(np.float32) * 255.0)) and notes == ["float"]
    assert code(data[:-1]) == "truncated"
    assert code(b"PF\n64 x\n1.0\n") == "damaged"
    assert code(b"PF\n99999 99999\n1.0\n") == "too-many-pixels"
    assert code(b"PF\n0 9\n1.0\n") == "zero-size"


def test_cmyk_without_and_with_a_broken_profile():
    ink = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    pixels, notes = kept(saved(ink, "TIFF"))
    assert notes == ["cmyk", "constant"] and pixels[0, 0].tolist() == [0, 255, 255]
    pixels, notes = kept(saved(ink, "TIFF", icc_profile=b"no profile" * 20))
    assert notes == ["bad-icc", "cmyk", "constant"] and pixels[0, 0].tolist() == [0, 255, 255]


def test_lab_with_and_without_a_profile():
    lab = Image.new("LAB", (64, 64), (128, 128, 128))  # L* = 50, neutral: sRGB 119
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for extra, expected in (({}, ["constant", "lab"]), ({"icc_profile": profile}, ["constant", "icc", "lab"])):
        pixels, notes = kept(saved(lab, "TIFF", **extra))
        assert notes == expected and np.abs(pixels[0, 0].astype(int) - 119).max() <= 2


def test_grey_constant_and_upscaled_are_noted():
    assert kept(saved(Image.fromarray(NOISE[..., 0])))[1] == ["grey"]
    assert kept(saved(Image.new("RGB", (64, 64), "teal")))[1] == ["constant"]
    assert kept(saved(Image.fromarray(NOISE[:63])))[1] == ["upscaled"]
    assert kept(saved(Image.fromarray(NOISE[:1, :1])))[0].shape == (64, 64, 3)


def test_one_bit_palette_and_extreme_shapes_are_kept():
    assert kept(saved(Image.fromarray(NOISE[..., 0] > 127)))[1] == ["grey"]
    assert kept(saved(Image.fromarray(NOISE).quantize(16)))[1] == []
    for how in ("crop", "pad", "squash"):
        for shape in ((4000, 3), (3, 4000), (1, 1)):
            assert kept(saved(Image.new("RGB", shape, "red")), fit=how)[0].shape == (64, 64, 3)


# Reduction


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_pictures_agree_with_plain_lanczos(kind):
    """Draft decoding and box reduction are for speed: below what anyone sees."""
    y, x = np.mgrid[0:831, 0:1003]
    waves = [np.sin(x / 9 + y / 31), np.cos(x / 23 - y / 5), np.sin(np.hypot(x - 450, y - 350) / 11)]
    big = np.stack([127.5 + 127.5 * wave for wave in waves], axis=-1).astype(np.uint8)
    data = saved(Image.fromarray(big), kind)
    with Image.open(io.BytesIO(data)) as image:
        box = ((1003 - 831) / 2, 0, (1003 + 831) / 2, 831)
        plain = np.asarray(image.convert("RGB").resize((52, 52), Image.Resampling.LANCZOS, box=box))
    pixels, _ = kept(data, size=(52, 52))
    assert np.abs(pixels.astype(float) - plain).mean() < 1.0


def test_bands_are_seamless(monkeypatch):
    monkeypatch.setattr("hdit_cli.data.prepare.pictures.pictures._BAND_PIXELS", 1 << 40)
    big = np.random.default_rng(1).integers(0, 256, (900, 700), dtype=np.uint8)
    for image in (Image.fromarray(big), Image.fromarray(big > 99), Image.fromarray(big.astype(np.uint16) * 257)):
        data = saved(image)
        whole = kept(data, size=(40, 30))[0]
        monkeypatch.setattr("hdit_cli.data.prepare.pictures.pictures._BAND_PIXELS", 5000)
        assert np.array_equal(kept(data, size=(40, 30))[0], whole)
        monkeypatch.setattr("hdit_cli.data.prepare.pictures.pictures._BAND_PIXELS", 1 << 40)


def test_fits():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, :20], wide[:, 60:] = (255, 0, 0), (0, 0, 255)
    data = saved(Image.fromarray(wide))
    cropped = kept(data, size=(40, 40))[0]
    assert np.array_equal(cropped, np.zeros((40, 40, 3), np.uint8))  # centre
    padded = kept(data, size=(40, 40), fit="pad", background="white")[0]
    assert (padded[:10] == 255).all() and (padded[30:] == 255).all() and padded[20, 2].tolist() == [255, 0, 0]
    squashed = kept(data, size=(40, 40), fit="squash")[0]
    assert squashed[20, 2].tolist() == [255, 0, 0] and squashed[20, 37].tolist() == [0, 0, 255]


# Refused


def test_refusals_by_content():
    good = {kind: saved(Image.fromarray(NOISE), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")}
    assert code(b"") == "empty"
    assert code(b"<html>503</html>") == "not-a-picture"
    assert code(b"%!PS-Adobe-3.0 EPSF-3.0") == "not-a-picture"
    assert code(b"BM, said the text") == "not-a-picture"
    assert code(b"P5 is a letter and a digit") == "not-a-picture"
    assert code(b"\x89PNG\r\n\x1a\n" + bytes(60)) == "damaged"
    for kind in ("JPEG", "PNG", "WEBP"):
        assert code(good[kind][: len(good[kind]) // 2]) == "truncated"
    flipped = bytearray(good["PNG"])
    flipped[len(flipped) // 2] ^= 1
    assert code(bytes(flipped)) == "damaged"
    assert code(png(0, 9, 8, 2, b"")) == "zero-size"
    assert code(b"GIF89a\0\0\x09\0" + bytes(40)) == "zero-size"


def test_too_many_pixels_is_told_from_the_header():
    rows = png(30_000, 30_000, 1, 0, b"")  # no rows at all: decoding it would say truncated
    assert code(rows) == "too-many-pixels"
    data = saved(Image.fromarray(NOISE))
    assert code(data, max_pixels=64 * 64 - 1) == "too-many-pixels"
    assert code(data, max_pixels=64) == "too-many-pixels"
    before = Image.MAX_IMAGE_PIXELS
    assert kept(data, max_pixels=64 * 64)[1] == [] and before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_any_damage_gets_a_verdict(kind):
    """Cuts and flips never raise anything but a refusal."""
    data = saved(Image.fromarray(NOISE[:24, :24]), kind)
    random = np.random.default_rng(2)
    options = PrepareOptions(size=(16, 16))
    refused = 0
    for trial in range(120):
        broken = bytearray(data[: random.integers(1, len(data))] if trial % 2 else data)
        for position in random.integers(0, len(broken), 0 if trial % 2 else 4):
            broken[position] = random.integers(0, 256)
        try:
            fit(read_picture(io.BytesIO(bytes(broken)), options), options)
        except Refused as verdict:
            assert verdict.code in (
                "not-a-picture",
                "truncated",
                "damaged",
                "too-many-pixels",
                "zero-size",
                "too-large",
            )
            refused += 1
    assert refused > 20


def test_decoder_warnings_stay_quiet(recwarn):
    _, notes = kept(saved(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff junk"))
    assert "bad-exif" in notes and len(recwarn) == 0


# Writing, options


def test_jpeg_is_quality_95_without_chroma_subsampling():
    image = Image.fromarray(NOISE)
    with Image.open(io.BytesIO(encode(image, "jpeg"))) as read, Image.open(io.BytesIO(encode(image, "png"))) as exact:
        assert [sampling[1:3] for sampling in read.layer] == [(1, 1)] * 3
        assert read.quantization[0][0] == 2  # of the standard table at 95
        assert np.array_equal(np.asarray(exact), NOISE)
    with Image.open(io.BytesIO(encode(image, "webp"))) as webp:
        assert webp.format == "WEBP" and webp.size == (64, 64)


def test_sizes_and_options_are_checked():
    assert parse_size("256") == (256, 256) and parse_size("128x64") == (128, 64) and parse_size(" 8X9 ") == (8, 9)
    for text in ("", "x", "12x", "-1", "1.5", "1x2x3", "99999999"):
        with pytest.raises(UsageError):
            parse_size(text)
    for wrong in (
        {"size": (0, 9)},
        {"size": (9, 99_999)},
        {"fit": "stretch"},
        {"format": "gif"},
        {"shard_size": 0},
        {"max_pixels": 0},
        {"background": "no colour"},
    ):
        with pytest.raises(UsageError) as caught:
            PrepareOptions(**wrong)
        assert caught.value.hint


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_crop_at_scale_1_is_what_lanczos_comes_to(mode):
    image = Image.fromarray(NOISE).convert(mode)
    box = (8, 3, 40, 35)
    plain = image.resize((32, 32), Image.Resampling.LANCZOS, box=box)
    assert np.array_equal(np.asarray(image.crop(box)), np.asarray(plain))
    array, notes = kept(saved(Image.fromarray(NOISE[:32])), size=(32, 32))
    assert np.array_equal(array, NOISE[:32, 16:48])
    assert notes == []


def test_one_colour_is_told_and_two_are_not():
    flat = np.full((64, 64, 3), 7, dtype=np.uint8)
    assert kept(saved(Image.fromarray(flat)))[1] == ["constant"]
    flat[63, 63, 2] = 8
    assert kept(saved(Image.fromarray(flat)))[1] == []
