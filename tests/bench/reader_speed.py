"""The reader on one core against a bare loop of Pillow, and the first batch of a million samples.

    python tests/bench/reader_speed.py [--source ../shared/data/flowers] [--rounds 7]

The data sets are made on the spot: JPEG, quality 95, 4:4:4, of the pictures of the source, or of drawn ones where it is
absent. The reader gives uint8 (3, H, W), its checksum tested; the bare loop has the bytes in memory, and decodes.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from alternate import alternate, machine, ratios, show, spread
from PIL import Image

from hdit_cli.data import shard_index, shards
from hdit_cli.data.decoders import decode
from hdit_cli.data.reader import ShardReader

FIRST_BATCH = """
import sys, time

if __name__ == "__main__":  # worker processes import this file again
    import torch

    start = time.perf_counter()
    from pathlib import Path
    from hdit_cli.data.loader import Loader
    from hdit_cli.data.order import split
    from hdit_cli.data.reader import ShardReader

    slots = split(64, world=1, rank=0, accumulate=1)
    reader = ShardReader(Path(sys.argv[1]))
    with Loader(reader, batch_size=64, seed=0, position=0, steps=1, slots=slots, workers=int(sys.argv[2])) as batches:
        (batch,) = next(iter(batches))
        print(time.perf_counter() - start)
"""


def pictures(source, *, count):
    paths = sorted(source.rglob("*.jpg"))
    if not paths:
        print(f"no pictures in {source}: drawn ones", file=sys.stderr)
        return [Image.effect_mandelbrot((320, 320), (-2, -1.5, 1, 1.5), 50 + n).convert("RGB") for n in range(count)]
    return [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // count)][:count]]


def encoded(image, side):
    left, top = ((length - min(image.size)) / 2 for length in image.size)
    box = left, top, image.width - left, image.height - top
    stream = io.BytesIO()
    small = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
    small.save(stream, "JPEG", quality=95, subsampling="4:4:4")
    return stream.getvalue()


def make_set(folder, files, side):
    folder.mkdir()
    with shards.writing_shard(folder, 0) as writer:
        for number, data in enumerate(files):
            writer.add(number, {".jpg": data}, label=0)
    told = [writer.info(shards.shard_name(0))]
    shards.save_manifest(folder, shards.Manifest(len(files), ["flower"], [side, side], told))


def rate_of(function, count):
    """A second of this core, so that other processes count as little as they can."""
    start = time.thread_time()
    function()
    return count / (time.thread_time() - start)


def reading(source, work, *, side, rounds):
    files = [encoded(image, side) for image in pictures(source, count=300)]
    make_set(work / str(side), files, side)
    reader, numbers = ShardReader(work / str(side)), np.random.default_rng(0).permutation(len(files))

    def ours():
        for chunk in np.array_split(numbers, -(-len(numbers) // 32)):
            decode(reader, chunk)

    def bare():
        for data in files:
            with Image.open(io.BytesIO(data)) as image:
                image.load()

    ways = {"ours": lambda: rate_of(ours, len(files)), "bare": lambda: rate_of(bare, len(files))}
    found = alternate(ways, rounds=rounds)
    facts = {f"{name}, images per core second": spread(rates) for name, rates in found.items()}
    return {"bytes of a picture": sum(map(len, files)) // len(files), **facts, "ours / bare": ratios(*found.values())}


def make_million(folder, *, number=1_000, size=1_000):
    """A thousand shards of a thousand pictures, all the same bytes under a thousand names."""
    folder.mkdir()
    data = encoded(Image.effect_noise((64, 64), 40).convert("RGB"), 64)
    stride = 512 * (1 + -(-len(data) // 512))
    index = np.zeros(size, shard_index.INDEX_DTYPE)
    index["offset"], index["size"], index["crc32"] = np.arange(size) * stride + 512, len(data), zlib.crc32(data)
    block = b"".join(bytes(512) + data.ljust(stride - 512, b"\0") for _ in range(size))
    (folder / "block").write_bytes(block)
    for shard in range(number):  # as from a warm disk: the pages of one tar
        (folder / shards.shard_name(shard)).hardlink_to(folder / "block")
        (folder / f"{shard:05d}.idx").write_bytes(index.tobytes())
    told = {"format": shards.FORMAT, "count": number * size, "classes": ["noise"], "image_size": [64, 64]}
    digest = hashlib.sha256(block).hexdigest()
    infos = [
        {"name": shards.shard_name(shard), "count": size, "bytes": len(block), "sha256": digest}
        for shard in range(number)
    ]
    (folder / shards.MANIFEST).write_text(json.dumps({**told, "shards": infos}))


def first_batch(folder, workers):
    code = folder.parent / "first_batch.py"
    code.write_text(FIRST_BATCH)
    command = [sys.executable, str(code), str(folder), str(workers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/flowers"))
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        facts = {f"{side} px": reading(chosen.source, work, side=side, rounds=chosen.rounds) for side in (64, 256)}
        make_million(work / "million")
        ways = {f"{n} workers": lambda n=n: first_batch(work / "million", n) for n in (0, 2)}
        found = alternate(ways, rounds=chosen.rounds)
    first = {f"{name}, seconds": spread(values, digits=2) for name, values in found.items()}
    show({"machine": machine("pillow", "numpy", "torch"), **facts, "first batch of 1,000,000": first})


if __name__ == "__main__":
    main()
