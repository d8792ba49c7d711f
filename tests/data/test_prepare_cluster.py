"""`--engine ray`: a cluster of two workers comes to the same bytes as the processes here, also when one is killed half-way."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_jobs import digests

from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.errors import UsageError

OPTIONS = PrepareOptions(size=(64, 64), shard_size=8, hold_out=0.1, dedupe=True)
has_ray = importlib.util.find_spec("ray") is not None

SCRIPT = """
import sys
from pathlib import Path
from hdit_cli.data.prepare import PrepareOptions, prepare

options = PrepareOptions(size=(64, 64), shard_size=8, hold_out=0.1, dedupe=True)
prepare(Path(sys.argv[1]), out=Path(sys.argv[2]), options=options, workers=2, engine="ray")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """48 pictures of a megapixel, a copy of one, a defect."""
    root = tmp_path_factory.mktemp("source") / "pictures"
    for number in range(48):
        folder = root / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((1000, 1000)).save(folder / f"{number:02d}.png", compress_level=1)
    (root / "1" / "copy.png").write_bytes((root / "0" / "00.png").read_bytes())
    (root / "zz.png").write_bytes(b"")
    return root


def at_work():
    """Process numbers of the cluster's workers that have a task in hand: the title says so."""
    found = set()
    for title in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if title.read_bytes().startswith(b"ray::make_alone"):
                found.add(int(title.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not has_ray, reason="Ray is not installed: pip install 'hdit-cli[ray]'")
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_worker_is_killed_half_way(source, tmp_path):
    prepare(source, out=tmp_path / "here", options=OPTIONS, workers=2)
    (tmp_path / "script.py").write_text(SCRIPT)
    out = tmp_path / "out"
    command = [sys.executable, str(tmp_path / "script.py"), str(source), str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    seen, killed = set(), None
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            seen |= at_work()
            done = len(list(out.glob(".prepare/[0-9]*.json")))
            if killed is None and 2 <= done <= 5 and at_work():
                killed = min(at_work())
                os.kill(killed, signal.SIGKILL)
            time.sleep(0.01)
        assert process.returncode == 0, process.stderr.read().decode()[-2000:]
    assert killed is not None and len(seen) >= 3  # another worker took the place of the one that was killed
    assert digests(out) == digests(tmp_path / "here")
    assert not at_work()


@pytest.mark.skipif(has_ray, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(UsageError, match="not installed") as caught:
        prepare(tmp_path / "pictures", out=tmp_path / "out", options=OPTIONS, workers=1, engine="ray")
    assert "pip install 'hdit-cli[ray]'" in caught.value.hint
    assert prepare(tmp_path / "pictures", out=tmp_path / "out", options=OPTIONS, workers=1).kept == 1


def test_an_engine_that_there_is_not(tmp_path):
    with pytest.raises(UsageError, match="unknown engine 'spark'"):
        prepare(tmp_path, out=tmp_path / "out", options=OPTIONS, workers=1, engine="spark")
