"""`sample` in two processes makes the pictures that one makes; a child that fails ends the others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(*words):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)], capture_output=True, text=True, env=env, timeout=120
    )


@pytest.mark.slow
def test_sample_with_two_processes(made, tmp_path):
    words = ["sample", made / "run", "-n", "5", "--steps", "3", "--batch-size", "1"]
    for processes in (1, 2):
        done = command(*words, "--processes", processes, "--out", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "2").iterdir())
    assert len(names) == 7
    for name in names:
        if name != "samples.json":  # it records the number of threads
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
def test_an_error_in_the_children_comes_back_once_and_soon(made, tmp_path):
    start = time.monotonic()
    done = command(
        "train",
        made / "tiny.toml",
        "--data",
        made / "data",
        "--run",
        tmp_path / "r",
        "--processes",
        3,
        "--oversubscribe",
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "batch" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_an_error_in_one_child_alone_is_told(made, tmp_path):
    """The second process meets a damaged picture that the first never reads."""
    import shutil

    from hdit_cli.data.order import sample_at, split
    from hdit_cli.data.shard_index import read_index
    from hdit_cli.data.shards import load_manifest

    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    manifest = load_manifest(data)
    place = int(sample_at(split(4, world=2, rank=1, accumulate=1)[0][:1], count=manifest.count, seed=0)[0])
    entry = read_index(data, manifest.shards[0])[place]
    raw = bytearray((data / "00000.tar").read_bytes())
    raw[int(entry["offset"]) + int(entry["size"]) // 2] ^= 0xFF
    (data / "00000.tar").write_bytes(raw)
    done = command(
        "train",
        made / "tiny.toml",
        "--data",
        data,
        "--run",
        tmp_path / "r",
        "--processes",
        2,
        "--set",
        "train.log_every=100",
    )
    assert done.returncode == 3, done.stderr
    assert "00000.tar" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_stopped_process_does_not_make_the_command_deaf(made, tmp_path, signals):
    """One of two is stopped (SIGSTOP). The first signal wakes it, and all is saved; the second ends everything at once."""
    import signal

    run = tmp_path / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--processes", 2, "--oversubscribe"]
    words += ["--set", "train.steps=100000"]
    child = subprocess.Popen(
        [sys.executable, "-m", "hdit_cli", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(0.5)
    for _ in range(signals):
        child.send_signal(signal.SIGTERM)
    _, text = child.communicate(timeout=60)
    assert child.returncode == 75, text
    assert "Traceback" not in text
    assert not any(os.path.exists(f"/proc/{rank}") for rank in ranks)
    if signals == 1:
        assert len(list((run / "checkpoints").iterdir())) == 1
