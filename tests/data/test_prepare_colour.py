"""Pictures with colour profiles: the colours that were meant, wherever pictures are read."""

import io
import zlib
from pathlib import Path

import iccprofiles as icc
import numpy as np
import pytest
from PIL import Image, ImageCms

from hdit_cli.data.folder import FolderReader
from hdit_cli.data.prepare.options import PrepareOptions
from hdit_cli.data.prepare.pictures import colour
from hdit_cli.data.prepare.pictures.fit import fit
from hdit_cli.data.prepare.pictures.pictures import read_picture
from hdit_cli.engine.sampling.picture import read_picture_for

WIDE = Path(__file__).parents[2].parent / "shared" / "data" / "reports" / "wide-gamut-rgb"
P3 = icc.rgb(icc.DISPLAY_P3, 2.2)
COLOURS = np.random.default_rng(5).integers(40, 200, (16, 16, 3), dtype=np.uint8)
LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
MEANT = icc.to_srgb(COLOURS, icc.DISPLAY_P3, 2.2)


def saved(pixels, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kept(data, **options):
    chosen = PrepareOptions(size=(16, 16), **options)
    image, notes = fit(read_picture(io.BytesIO(data), chosen), chosen)
    return np.asarray(image), notes


def off(found, expected):
    return np.abs(found.astype(float) - expected).max()


@pytest.mark.skipif(not WIDE.is_dir(), reason=f"no pictures at {WIDE}")
def test_one_colour_through_several_profiles():
    paths = sorted(path for path in WIDE.iterdir() if path.suffix in (".png", ".jpg"))
    reader = FolderReader(WIDE, skip=frozenset({"README"}))
    assert len(paths) == len(reader) >= 7
    for path, index in zip(paths, range(len(reader)), strict=True):
        pixels, notes = kept(path.read_bytes())
        assert off(pixels, [200, 90, 40]) <= 2, path.name
        assert notes == (["constant"] if path.name == "srgb.png" else ["constant", "icc"])
        assert off(reader.picture(index), [200, 90, 40]) <= 2
        x0 = read_picture_for(path, size=(16, 16), channels=3).x0
        assert off((x0[0].permute(1, 2, 0).numpy() + 1) * 127.5, [200, 90, 40]) <= 2


@pytest.mark.parametrize(("kind", "options", "most"), [
    ("PNG", {}, 1), ("TIFF", {}, 1), ("WEBP", {"lossless": True}, 1), ("JPEG", {"quality": 100, "subsampling": 0}, 6),
    ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 13),
])  # fmt: skip
def test_every_format_that_has_profiles(kind, options, most):
    pixels, notes = kept(saved(COLOURS, kind, icc_profile=P3, **options))
    assert notes == ["icc"] and off(pixels, MEANT) <= most and off(COLOURS, MEANT) > 10


def test_palettes_and_large_pictures_in_bands(monkeypatch):
    flat = np.full((16, 16, 3), (185, 97, 57), np.uint8)
    for image in (Image.fromarray(flat).quantize(4), Image.fromarray(flat).resize((700, 900))):
        monkeypatch.setattr("hdit_cli.data.prepare.pictures.pictures._BAND_PIXELS", 5000)
        pixels, notes = kept(saved(image, icc_profile=P3))
        assert notes == ["constant", "icc"] and off(pixels, icc.to_srgb(flat, icc.DISPLAY_P3, 2.2)) <= 1


def test_colours_are_converted_before_they_are_laid_over_the_background():
    alpha = np.full((16, 16, 1), 128, np.uint8)
    layered = np.concatenate([COLOURS, alpha], axis=-1)
    for image in (Image.fromarray(layered), Image.fromarray(layered).convert("RGBa")):
        data = saved(image.convert("RGBA"), icc_profile=P3)
        pixels, notes = kept(data, background="#00ff00")
        expected = MEANT * 128 / 255 + np.array([0, 255, 0]) * 127 / 255
        assert notes == ["alpha", "icc"] and off(pixels, expected) <= 3
    keyed = saved(
        np.where(np.arange(16)[:, None, None] < 8, COLOURS, 7).astype(np.uint8), transparency=(7, 7, 7), icc_profile=P3
    )
    pixels, notes = kept(keyed)
    assert notes == ["alpha", "icc"] and off(pixels[:8], MEANT[:8]) <= 1 and (pixels[8:] == 255).all()


@pytest.mark.parametrize("profile", [
    icc.rgb(icc.SRGB, icc.srgb_curve(1024), "sRGB IEC61966-2.1"), icc.rgb(icc.SRGB, icc.srgb_curve(4096), "c2"),
    icc.rgb(icc.SRGB + 0.0004, icc.srgb_curve(512), "Camera RGB"),
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
])  # fmt: skip
def test_srgb_under_any_name_changes_nothing(profile):
    for data, plain in (
        (saved(COLOURS, icc_profile=profile), saved(COLOURS)),
        (saved(COLOURS, "JPEG", icc_profile=profile), saved(COLOURS, "JPEG")),
        (saved(LEVELS, icc_profile=profile), saved(LEVELS)),  # grey, as many programs save it
    ):
        assert kept(data)[1] == kept(plain)[1] and np.array_equal(kept(data)[0], kept(plain)[0])


def test_a_profile_that_only_calls_itself_srgb_is_followed():
    pixels, notes = kept(saved(COLOURS, icc_profile=icc.rgb(icc.DISPLAY_P3, 2.2, "sRGB IEC61966-2.1")))
    assert notes == ["icc"] and off(pixels, MEANT) <= 1


def test_grey_profiles():
    expected = 255 * icc.srgb_of_linear((LEVELS / 255) ** 1.8)
    pixels, notes = kept(saved(LEVELS, icc_profile=icc.grey(1.8)))
    assert notes == ["grey", "icc"] and off(pixels, expected[..., None]) <= 1
    layered = Image.merge("LA", (Image.fromarray(LEVELS), Image.new("L", (16, 16), 128)))
    pixels, notes = kept(saved(layered, icc_profile=icc.grey(1.8)))
    assert notes == ["alpha", "grey", "icc"] and off(pixels, (expected * 128 / 255 + 127)[..., None]) <= 2
    pixels, notes = kept(saved(LEVELS, icc_profile=icc.grey(icc.srgb_curve(1024))))
    assert notes == ["grey"] and np.array_equal(pixels[..., 0], LEVELS)


def test_16_bits_with_a_profile_are_converted_before_they_become_8():
    values = (np.arange(256).reshape(16, 16) ** 2).astype(np.uint16)  # many dark ones: a linear profile spreads them
    expected = 255 * icc.srgb_of_linear(values / 65535)
    for kind in ("PNG", "TIFF"):
        pixels, notes = kept(saved(values, kind, icc_profile=icc.grey(1.0)))
        assert notes == ["16-bit", "grey", "icc"] and off(pixels, expected[..., None]) <= 1
        pixels, notes = kept(saved(values, kind, icc_profile=icc.grey(icc.srgb_curve(4096))))
        assert notes == ["16-bit", "grey"] and np.array_equal(pixels[..., 0], (values.astype(int) + 128) // 257)


@pytest.mark.parametrize("profile", [
    b"junk" * 40, P3[:200], icc.grey(1.8), icc.rgb(icc.DISPLAY_P3 * 0, 2.2), icc.rgb(icc.DISPLAY_P3, np.zeros(64)),
    ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
], ids=["junk", "cut", "of greys", "no colours", "all black", "lab"])  # fmt: skip
def test_profiles_that_cannot_be_used_are_noted_and_the_picture_is_kept_as_it_is(profile):
    pixels, notes = kept(saved(COLOURS, icc_profile=profile))
    assert notes == ["bad-icc"] and np.array_equal(pixels, COLOURS)


def test_a_profile_of_another_kind_of_picture():
    pixels, notes = kept(saved(LEVELS, icc_profile=P3))
    assert notes == ["bad-icc", "grey"] and np.array_equal(pixels[..., 0], LEVELS)


def test_a_profile_that_cannot_be_unpacked():
    data = saved(COLOURS, icc_profile=P3)
    at = data.index(b"iCCP")
    size = int.from_bytes(data[at - 4 : at], "big")
    body = b"iCCP" + b"name\0\0" + b"\xaa" * (size - 6)
    broken = data[:at] + body + zlib.crc32(body).to_bytes(4, "big") + data[at + 4 + size + 4 :]
    pixels, notes = kept(broken)
    assert notes == ["bad-icc"] and np.array_equal(pixels, COLOURS)


def test_what_was_made_of_a_profile_is_kept(monkeypatch):
    made, real = [], ImageCms.buildTransform
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *a, **k: made.append(a) or real(*a, **k))
    profile = icc.rgb(icc.DISPLAY_P3, 2.1)
    for _ in range(3):
        kept(saved(COLOURS, icc_profile=profile))
    assert len(made) == 1
    for gamma in np.linspace(1.2, 2.6, 40):
        kept(saved(COLOURS, icc_profile=icc.rgb(icc.DISPLAY_P3, float(gamma))))
    assert colour._colour.cache_info().currsize <= 2 * colour._KEPT
