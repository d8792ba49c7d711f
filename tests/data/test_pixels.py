import io

import numpy as np
import pytest
from PIL import Image

from hdit_cli.data import pixels as module
from hdit_cli.data.pixels import Pixels, frame_header_end


def noise(height, width, *, seed=0, mode="RGB"):
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=mode)


def encoded(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 95, "subsampling": "4:4:4"} if kind == "JPEG" else {}) | options)
    return stream.getvalue()


def plainly(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def opened(monkeypatch):
    """How often Pillow opened a picture."""
    calls, plain = [], Image.open
    monkeypatch.setattr(module.Image, "open", lambda *a, **k: calls.append(1) or plain(*a, **k))
    return calls


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (1, 1), (7, 300), (256, 255), (3, 2000)])
def test_the_same_pixels_as_opening_it(size):
    decode = Pixels()
    for seed in range(3):
        data = encoded(noise(*size, seed=seed))
        assert np.array_equal(decode(data), plainly(data))


def test_pictures_of_one_header_are_opened_once(opened):
    decode = Pixels()
    for seed in range(5):
        decode(encoded(noise(32, 48, seed=seed)))
    assert len(opened) == 1
    decode(encoded(noise(48, 32)))
    decode(encoded(noise(48, 32, seed=1)))
    assert len(opened) == 2
    decode(encoded(noise(32, 48, seed=9)))
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (noise(40, 30, mode="L"), "JPEG", {}),
        (noise(40, 30, mode="CMYK"), "JPEG", {}),
        (noise(40, 30), "JPEG", {"progressive": True}),
        (noise(40, 30), "JPEG", {"subsampling": "4:2:0", "quality": 50}),
        (noise(40, 30), "JPEG", {"exif": b"Exif\0\0" + bytes(90), "comment": b"text"}),
        (noise(40, 30), "PNG", {}),
        (noise(40, 30, mode="RGBA"), "PNG", {}),
        (noise(40, 30), "WEBP", {}),
    ],
)
def test_other_pictures_in_between(image, kind, options):
    decode, usual = Pixels(), encoded(noise(40, 30))
    odd = encoded(image, kind, **options)
    for data in (usual, odd, usual, odd, odd, usual):
        assert np.array_equal(decode(data), plainly(data))


def test_the_number_of_headers_remembered_is_bounded(opened):
    decode = Pixels()
    for width in range(1, 100):
        decode(encoded(noise(2, width)))
    assert len(decode._sizes) == module._MOST_HEADERS
    decode(encoded(noise(2, 1)))
    assert len(opened) == 99


@pytest.mark.parametrize("damage", ["cut", "cut in the tables", "no end", "zeros", "another size inside"])
def test_a_damaged_picture_of_a_known_header_raises(damage):
    decode, data = Pixels(), encoded(noise(64, 64))
    end = frame_header_end(data)
    decode(data)
    bad = {
        "cut": data[: len(data) // 2],
        "cut in the tables": data[: end + 30],
        "no end": data[:end],
        "zeros": data[:end] + bytes(len(data) - end),
        # a second frame header: what the first one told must not be overruled
        "another size inside": data[:end] + encoded(noise(128, 128))[frame_header_end(data) - 19 :],
    }[damage]
    assert bad.startswith(data[:end])
    with pytest.raises((OSError, ValueError)):
        decode(bad)
    assert np.array_equal(decode(data), plainly(data))


def test_where_a_frame_header_ends():
    data = encoded(noise(16, 16))
    end = frame_header_end(data)
    assert data[end - 19 : end - 17] == b"\xff\xc0"
    assert data[end - 14 : end - 10] == bytes([0, 16, 0, 16])
    for other in (b"", b"\xff\xd8", data[:30], b"\xff\xd8\xff\xd9" + data[2:], encoded(noise(16, 16), "PNG")):
        assert frame_header_end(other) == 0
