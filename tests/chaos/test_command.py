"""The real command, killed at random moments: every start imports torch, which costs seconds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import chance, digests, half_checkpoints, leftovers, tiny, trials

from hdit_cli.recipe import Recipe

pytestmark = pytest.mark.slow


def start(file, data, run, *options):
    words = ["train", str(file), "--data", str(data), "--run", str(run), *options]
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
@trials(4, 20)
def test_kills_of_the_real_command(chaos_data, tmp_path, count):
    """SIGKILL of the whole process group, with workers, from before the import to after the last step."""
    random = chance("real command")
    file = tmp_path / "chaos.toml"
    recipe = tiny(train__steps=200, train__save_every=10, train__log_every=5, train__sample_every=100, data__workers=2)
    file.write_text(Recipe.from_dict(recipe).to_toml())
    whole = start(file, chaos_data, tmp_path / "whole")
    _, said = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    before = shared_memory()
    run, kills, began, starts = tmp_path / "run", 0, time.monotonic(), 0
    while kills < count:
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


def test_the_number_of_processes_may_change_over_kills(chaos_data, tmp_path):
    """2 processes, killed, then 1: the losses of one unbroken process, in float64, with dropout."""
    file = tmp_path / "chaos.toml"
    changes = {"steps": 80, "save_every": 10, "log_every": 1, "sample_every": 0, "batch_size": 6, "precision": "fp64"}
    file.write_text(Recipe.from_dict(tiny(**{f"train__{key}": value for key, value in changes.items()})).to_toml())
    whole = start(file, chaos_data, tmp_path / "whole")
    _, said = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    run = tmp_path / "run"
    for processes, awaited in (("2", "saved step"), ("1", "")):
        process = start(file, chaos_data, run, "--processes", processes)
        if awaited:
            assert next((line for line in process.stderr if awaited in line), None)
            os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        assert process.returncode == (-9 if awaited else 0), said
    found, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "whole")
    )
    assert [line["step"] for line in found] == list(range(1, 81))
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-9)
