"""A small data set made on the spot: pictures whose pixels tell their number."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from hdit_cli.data import shard_index, shards


def pixels_of(number: int, *, height: int = 8, width: int = 12) -> np.ndarray:
    """uint8 (H, W, 3): the number in the two lowest bytes of every pixel, the column in the third."""
    out = np.empty((height, width, 3), dtype=np.uint8)
    out[..., 0], out[..., 1], out[..., 2] = number % 256, number // 256, np.arange(width)
    return out


def make_set(folder: Path, *, count: int, shard_size: int = 10, classes: int = 3, height: int = 8) -> Path:
    """PNG pictures 0 ... count - 1, class = number % classes; every seventh has none, and none has where classes = 0."""
    folder.mkdir(parents=True)
    infos = []
    for shard, first in enumerate(range(0, count, shard_size)):
        with shards.writing_shard(folder, shard) as writer:
            for number in range(first, min(count, first + shard_size)):
                stream = io.BytesIO()
                Image.fromarray(pixels_of(number, height=height)).save(stream, "PNG")
                label = number % classes if classes and number % 7 else shards.NO_LABEL
                writer.add(number, {".png": stream.getvalue(), ".json": b"{}"}, label=label)
        infos.append(writer.info(shards.shard_name(shard)))
    names = [f"class {i}" for i in range(classes)]
    shards.save_manifest(folder, shards.Manifest(count=count, classes=names, image_size=[height, 12], shards=infos))
    return folder


def damage(folder: Path, number: int, *, shard_size: int = 10) -> Path:
    """Changes one byte of a picture, the size of the file unchanged; returns the shard."""
    path = folder / shards.shard_name(number // shard_size)
    record = np.frombuffer(path.with_suffix(".idx").read_bytes(), shard_index.INDEX_DTYPE)[number % shard_size]
    data = bytearray(path.read_bytes())
    data[int(record["offset"]) + int(record["size"]) // 2] ^= 1
    path.write_bytes(data)
    return path
