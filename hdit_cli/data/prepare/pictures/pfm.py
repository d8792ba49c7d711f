"""Portable float maps in colour ("PF"), which Pillow does not read (it reads the grey ones, "Pf").

Three header lines of text (PF; width and height; scale, negative = little-endian), then rows of float32 RGB, bottom row
first.
"""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from einops import rearrange

from hdit_cli.data.prepare.sources.refused import Refused

_LONGEST_LINE = 100


@dataclass(frozen=True)
class Header:
    """(w, h) in pixels, and the byte order of the numbers ("<" or ">")."""

    size: tuple[int, int]
    order: str


def read_header(stream: BinaryIO) -> Header:
    """Reads the three lines, and leaves the stream at the first number.

    Raises:
        Refused: damaged.
    """
    stream.readline(_LONGEST_LINE)
    try:
        width, height = (int(word) for word in stream.readline(_LONGEST_LINE).split())
        scale = float(stream.readline(_LONGEST_LINE))
    except ValueError as error:
        raise Refused("damaged", "begins like PFM, but has no header of that format") from error
    if width < 0 or height < 0 or not np.isfinite(scale) or scale == 0:
        raise Refused("damaged", "begins like PFM, but its header makes no sense")
    return Header(size=(width, height), order="<" if scale < 0 else ">")


def read_channels(stream: BinaryIO, header: Header) -> np.ndarray:
    """The three channels, top row first.

    Returns:
        float32 (3, H, W).

    Raises:
        Refused: truncated.
    """
    width, height = header.size
    wanted = width * height * 3 * 4
    data = stream.read(wanted)
    if len(data) < wanted:
        raise Refused("truncated", f"{len(data)} of {wanted} bytes")
    values = np.frombuffer(data, dtype=f"{header.order}f4")
    return rearrange(values, "(h w c) -> c h w", h=height, w=width)[:, ::-1].astype(np.float32)
