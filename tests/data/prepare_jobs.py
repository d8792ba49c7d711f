"""What the kill tests of prepare share: the server of jobs, a small source, and what a folder holds."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent


class Jobs:
    """Preparations in processes of their own, several at a time."""

    def __init__(self, folder):
        self.folder, self.numbers = folder, itertools.count()
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "prepare_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, source, out, *, options, workers=1, **job):
        """Starts one; returns what `wait` takes."""
        log = str(self.folder / f"job-{next(self.numbers)}.json")
        self._send({"source": str(source), "out": str(out), "options": options, "workers": workers, "log": log, **job})
        return log

    def wait(self, log):
        """How it went: exit code (minus the signal that killed it), and what it told."""
        self._send({"wait": log})
        return json.loads(self.process.stdout.readline())

    def run(self, source, out, **job):
        return self.wait(self.start(source, out, **job))

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def _send(self, job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()


def make_pictures(root, *, count):
    """Pictures in two classes: every third a copy of another, some of them saved in another format; a few defects."""
    for number in range(count):
        folder = root / ("daisy", "rose")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        seed = number // 2 if number % 3 == 0 else number
        pixels = np.random.default_rng(seed).integers(0, 256, (18, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{'bmp' if number % 4 == 1 else 'png'}")
    (root / "daisy" / "000.txt").write_text("a daisy")
    (root / "rose" / "broken.jpg").write_bytes(b"\xff\xd8\xff not much")
    (root / "zz.png").write_bytes(b"")
    return root


def digests(folder):
    """SHA-256 of every file by its path, lock files and temporaries too."""
    paths = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
