"""Colour profiles written by hand (ICC version 2), so that what they must do to a colour is plain arithmetic."""

import struct

import numpy as np

# primaries and white of each space as XYZ of the D50 white point, columns red, green, blue (Bradford-adapted)
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
D50 = (0.9642, 1.0, 0.8249)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(x) + _fixed(y) + _fixed(z)


def _curve(gamma: "float | np.ndarray") -> bytes:
    """A power, or a table of uint16."""
    if isinstance(gamma, np.ndarray):
        data = b"curv\0\0\0\0" + struct.pack(">I", len(gamma)) + gamma.astype(">u2").tobytes()
    else:
        data = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return data + bytes(-len(data) % 4)


def _text(text: str) -> bytes:
    data = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text.encode() + bytes(1 + 78)
    return data + bytes(-len(data) % 4)


def _profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    tags = {**tags, b"wtpt": _xyz(*D50), b"cprt": b"text\0\0\0\0none\0\0\0\0"}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02200000, kind, space, b"XYZ ") + bytes(12) + b"acsp" + bytes(28)
    head += _fixed(D50[0]) + _fixed(D50[1]) + _fixed(D50[2])
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb(primaries: np.ndarray, gamma: "float | np.ndarray", name: str = "a space") -> bytes:
    """A matrix profile: one curve for the three channels."""
    columns = {tag: _xyz(*primaries[:, i]) for i, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", {b"desc": _text(name), **columns, **curves})


def grey(gamma: "float | np.ndarray") -> bytes:
    return _profile(b"GRAY", {b"desc": _text("greys"), b"kTRC": _curve(gamma)})


def srgb_curve(entries: int) -> np.ndarray:
    """The curve of sRGB as a table, as profiles have it."""
    return np.rint(linear_of_srgb(np.linspace(0, 1, entries)) * 65535).astype(np.uint16)


def linear_of_srgb(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_of_linear(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)


def to_srgb(colours: np.ndarray, primaries: np.ndarray, gamma: float) -> np.ndarray:
    """What colours of a space are in sRGB: (..., 3) of 0..255 => float (..., 3) of 0..255."""
    xyz = (np.asarray(colours) / 255) ** gamma @ primaries.T
    return 255 * srgb_of_linear(xyz @ np.linalg.inv(SRGB).T)
