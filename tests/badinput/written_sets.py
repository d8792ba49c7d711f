"""A data set written without prepare: what is in it is known to the byte."""

import io

import numpy as np
from PIL import Image

from hdit_cli.data import shards

PER_SHARD, SHARDS, CLASSES = 5, 2, 4
COUNT = PER_SHARD * SHARDS


def pixels_of(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def make(folder, *, count=COUNT, per_shard=PER_SHARD):
    """PNG pictures that all have the same size in bytes, labels that are no function of the position, captions."""
    folder.mkdir()
    infos = []
    for first in range(0, count, per_shard):
        with shards.writing_shard(folder, len(infos)) as writer:
            for number in range(first, min(count, first + per_shard)):
                buffer = io.BytesIO()
                Image.fromarray(pixels_of(number)).save(buffer, "PNG", compress_level=0)
                label = number * 7 % CLASSES
                about = {".json": b'{"path": "%d"}\n' % number, ".txt": b"text %02d" % number, ".cls": b"%d" % label}
                writer.add(number, {".png": buffer.getvalue(), **about}, label=label)
        infos.append(writer.info(shards.shard_name(len(infos))))
    names = [f"class {i}" for i in range(CLASSES)]
    shards.save_manifest(folder, shards.Manifest(count=count, classes=names, image_size=[8, 8], shards=infos))
    return folder
