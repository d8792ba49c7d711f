"""The real command, killed at random moments: more than twenty starts that each import torch."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import SCALE, chance, digests, half_checkpoints, leftovers, tiny

from hdit_cli.recipe import Recipe

pytestmark = pytest.mark.slow


def start(file, data, run):
    words = ["train", str(file), "--data", str(data), "--run", str(run)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "hdit_cli", *words], stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def alive(group):
    """Processes of a group that are not zombies."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def shared_memory():
    """Names in /dev/shm that no process maps: left behind."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= {line.rpartition("/dev/shm/")[2] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return {name for name in os.listdir("/dev/shm") if name not in mapped}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_twenty_kills_of_the_real_command(chaos_data, tmp_path):
    """SIGKILL of the whole process group, with workers, from before the import to after the last step."""
    random = chance("real command")
    file = tmp_path / "chaos.toml"
    recipe = tiny(train__steps=300, train__save_every=10, train__log_every=5, train__sample_every=100, data__workers=2)
    file.write_text(Recipe.from_dict(recipe).to_toml())
    whole = start(file, chaos_data, tmp_path / "whole")
    _, said = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    before = shared_memory()
    run, kills, began, starts = tmp_path / "run", 0, time.monotonic(), 0
    while kills < 20 * SCALE:
        process = start(file, chaos_data, run)
        starts += 1
        # some die while torch is imported, some while workers start or before the first save, most while it trains and saves
        awaited = random.choice(["", "parameters", "saved step", "saved step"])
        if awaited:
            next((line for line in process.stderr if awaited in line), None)
        time.sleep(random.uniform(0, 1.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
        deadline = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive(process.pid) == []
        assert half_checkpoints(run) == []
        if process.returncode == 0:
            assert digests(run) == digests(tmp_path / "whole")
            run = tmp_path / f"run{starts}"  # finished before its time: the next kills go to another
    last = start(file, chaos_data, run)
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert digests(run) == digests(tmp_path / "whole")
    assert leftovers(run) == []
    deadline = time.monotonic() + 10
    while shared_memory() - before and time.monotonic() < deadline:
        time.sleep(0.5)  # those of other programs come and go; what nobody maps stays
    assert shared_memory() - before == set()
    print(f"{kills} kills, {starts} starts, {(time.monotonic() - began) / kills:.1f} s a kill")
