"""A grid of what a model will see: pictures spread over the whole data set, decoded from its shards."""

import io
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from hdit_cli import files
from hdit_cli.data.prepare.options import WRITTEN
from hdit_cli.data.shards import Manifest, index_path, place_in

PREVIEW = "preview.png"

_MOST = 64  # pictures
_SIDE = 128  # pixels at most of each
_GAP = 2
_THREADS = 2


def write_preview(folder: Path, manifest: Manifest) -> None:
    """Writes preview.png, up to 8 x 8 pictures in the order of the data set."""
    shown = min(_MOST, manifest.count)
    chosen = [index * manifest.count // shown for index in range(shown)]
    columns = math.ceil(math.sqrt(shown))
    rows = math.ceil(shown / columns)
    sizes = [bucket.size for bucket in manifest.buckets] or [manifest.image_size]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    shrink = max(1.0, max(height, width) / _SIDE)
    cell = max(1, round(width / shrink)), max(1, round(height / shrink))
    step = cell[0] + _GAP, cell[1] + _GAP
    grid = Image.new("RGB", (columns * step[0] + _GAP, rows * step[1] + _GAP), "white")
    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow lets go of the interpreter while it decodes
        small = pool.map(lambda data: _small(data, shrink=shrink), _pictures(folder, manifest, chosen))
        for number, picture in enumerate(small):
            row, column = divmod(number, columns)
            corner = [_GAP + place * side for place, side in zip((column, row), step, strict=True)]
            inside = [(side - own) // 2 for side, own in zip(cell, picture.size, strict=True)]
            grid.paste(picture, (corner[0] + inside[0], corner[1] + inside[1]))
    buffer = io.BytesIO()
    # runs alone: on photographs as small as a search for more, in half the time
    grid.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    files.write_bytes(folder / PREVIEW, buffer.getvalue())


def _small(data: bytes, *, shrink: float) -> Image.Image:
    """A picture at 1 / `shrink` of its size."""
    with Image.open(io.BytesIO(data), formats=WRITTEN) as image:
        inner = (max(1, round(image.width / shrink)), max(1, round(image.height / shrink)))
        image.draft(None, inner)  # a JPEG is decoded at 1/2, 1/4 or 1/8, not below this size
        return image.convert("RGB").resize(inner, Image.Resampling.LANCZOS)


def _pictures(folder: Path, manifest: Manifest, chosen: list[int]) -> list[bytes]:
    """The encoded pictures with these numbers (ascending) in the whole data set."""
    found, first = [], 0
    for shard in manifest.shards:
        wanted = [number - first for number in chosen if first <= number < first + shard.count]
        if wanted:
            index = index_path(folder, shard).read_bytes()
            with open(folder / shard.name, "rb") as handle:
                for number in wanted:
                    offset, size = place_in(index, number, sized=bool(manifest.buckets))
                    handle.seek(offset)
                    found.append(handle.read(size))
        first += shard.count
    return found
