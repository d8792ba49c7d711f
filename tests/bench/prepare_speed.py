"""`hdit prepare` at 256 px against a bare loop of Pillow in two processes, and against EDM's dataset_tool.py.

    python tests/bench/prepare_speed.py --source ../shared/data/flowers [--edm PATH/dataset_tool.py] [--rounds 5]

All are whole commands, start of Python included. The bare loop decodes, resizes and encodes the same pixels with the same
draft and reduction and the same encoder's settings, in two processes, and writes one file; it checks nothing. EDM's tool is
one process, as it is, and ours is then run with one worker. Large pictures: the flowers upscaled to 4,000 pixels.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alternate import adopt_orphans, alternate, ended, machine, ratios, show, spread
from PIL import Image

BARE = """
import io, sys, multiprocessing
from PIL import Image

def one(path):
    with open(path, "rb") as handle:
        image = Image.open(handle, formats=("JPEG",))
        (w, h), drafted = image.size, 1.0
        ratio = min(w, h) / 256
        if ratio / 2 >= 2:
            told = image.draft(None, (int(w / (ratio / 2)), int(h / (ratio / 2))))
            drafted = 1.0 if told is None else w / told[1][2]
        image.load()
    factor = max(1, int(ratio / drafted / 4))
    image = image.convert("RGB") if image.mode != "RGB" else image
    image = image.reduce(factor) if factor > 1 else image
    scale, side = drafted * factor, min(w, h)
    left, top = (w - side) / 2, (h - side) / 2
    box = left / scale, top / scale, min((w - left) / scale, image.width), min((h - top) / scale, image.height)
    out = io.BytesIO()
    image.resize((256, 256), Image.Resampling.LANCZOS, box=box).save(out, "JPEG", quality=95, subsampling="4:4:4")
    return out.getvalue()

if __name__ == "__main__":
    target, processes, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    with multiprocessing.get_context("fork").Pool(processes) as pool, open(target, "wb") as handle:
        for data in pool.imap(one, paths, chunksize=4):
            handle.write(data)
"""


def timed(command, count):
    """Pictures a second of the clock, and a second of a core: its own time and that of all processes below it."""
    adopt_orphans()  # the server of the workers outlives the command
    start, busy = time.perf_counter(), cpu_seconds()
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if told.returncode:
        raise SystemExit(told.stdout + told.stderr)
    took = time.perf_counter() - start
    for _ in ended():
        pass
    return count / took, count / (cpu_seconds() - busy)


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ways(folder, work, *, edm, workers):
    paths = sorted(str(path) for path in folder.rglob("*.jpg"))
    out = work / "out"

    def ours():
        shutil.rmtree(out, ignore_errors=True)
        chosen = ["--size", "256", "--out", str(out), "--workers", str(workers)]
        return timed([sys.executable, "-m", "hdit_cli", "prepare", str(folder), *chosen], len(paths))

    def bare():
        return timed([sys.executable, "-c", BARE, str(work / "bare"), str(workers), *paths], len(paths))

    def theirs():
        target = work / "edm.zip"
        target.unlink(missing_ok=True)
        chosen = [f"--source={folder}", f"--dest={target}", "--transform=center-crop", "--resolution=256x256"]
        return timed([sys.executable, edm, *chosen], len(paths))

    return {"ours": ours, "bare": bare} | ({"edm": theirs} if edm else {})


def compared(found):
    facts = {}
    for number, unit in enumerate(("second", "core second")):
        rates = {name: [pair[number] for pair in pairs] for name, pairs in found.items()}
        facts |= {f"{name}, images per {unit}": spread(values) for name, values in rates.items()}
        facts |= {f"ours / {name}, per {unit}": ratios(rates["ours"], rates[name]) for name in rates if name != "ours"}
    return facts


def some(source, work, *, count):
    """Copies of `count` pictures spread over the source."""
    paths = sorted(path for path in source.rglob("*.jpg"))
    for path in paths[:: max(1, len(paths) // count)][:count]:
        link = work / "source" / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link) if os.stat(path).st_dev == os.stat(link.parent).st_dev else shutil.copyfile(path, link)
    return work / "source"


def large(source, work, *, count):
    """JPEGs of 12 megapixels."""
    (work / "large").mkdir()
    for number, path in enumerate(sorted(source.rglob("*.jpg"))[:: 1_000 // count][:count]):
        with Image.open(path) as image:
            image.convert("RGB").resize((4000, 3000)).save(work / "large" / f"{number}.jpg", quality=90)
    return work / "large"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("../shared/data/flowers"))
    parser.add_argument("--edm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1_400)
    parser.add_argument("--large", type=int, default=24)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        flowers, big = some(chosen.source, work, count=chosen.pictures), large(chosen.source, work, count=chosen.large)
        two = alternate(ways(flowers, work, edm=None, workers=2), rounds=chosen.rounds)
        one = alternate(ways(flowers, work, edm=chosen.edm, workers=1), rounds=chosen.rounds)
        twelve = alternate(ways(big, work, edm=chosen.edm, workers=1), rounds=chosen.rounds)
    show(
        {
            "machine": machine("pillow", "numpy"),
            "two workers": compared(two),
            "one worker": compared(one),
            "12 megapixels, one worker": compared(twelve),
        }
    )


if __name__ == "__main__":
    main()
