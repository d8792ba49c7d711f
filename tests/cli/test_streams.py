"""A closed stdin, stdout or stderr, a full disk behind them, a terminal that goes away: the command does its work all the same."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def hdit(*words, closed=(), **options):
    """The real command with some of its first three descriptors closed."""

    def close():
        for number in closed:
            os.close(number)

    return subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)], preexec_fn=close, env=ENV, timeout=120, **options
    )


@pytest.mark.parametrize("closed", [[1], [0, 1, 2]], ids=str)
def test_closed_streams(closed):
    done = hdit("recipe", "flowers256", closed=closed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_an_error_that_nobody_can_be_told():
    assert hdit("recipe", "flower256", closed=[2], stdout=subprocess.PIPE, text=True).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout():
    with open("/dev/full", "w") as full:
        done = hdit("recipe", "flowers256", stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 74
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [[1], [0, 1, 2]], ids=str)
def test_every_command_with_closed_streams(made, pictures, tmp_path, closed):
    """What the commands write is what they write otherwise: nothing printed gets into a file that was opened meanwhile."""
    run, data = tmp_path / "run", made / "data"
    commands = [
        ["prepare", pictures, "--out", tmp_path / "data", "--size", "16", "--workers", "1"],
        ["train", made / "tiny.toml", "--data", data, "--run", run, "--set", "data.workers=1"],
        ["info", run], ["info", run, "--json"], ["verify", run], ["doctor"], ["recipe"], ["report", run],
        ["sample", run, "-n", "1", "--steps", "2", "--out", tmp_path / "s"],
        ["eval-fid", run, "-n", "4", "--steps", "2", "--metrics", "swd"],
        ["export", run, "--no-grid", "--out", tmp_path / "e" / "x.safetensors"],
    ]  # fmt: skip
    for words in commands:
        done = hdit(*words, closed=closed, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
    assert (tmp_path / "data" / "00000.tar").read_bytes() == (data / "00000.tar").read_bytes()
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_terminal_that_is_closed(made, tmp_path, processes):
    """SIGHUP comes to the whole session, and writing to stderr fails from then on: it saves, and ends with 75."""
    run = tmp_path / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--processes", processes]
    words += ["--set", "train.steps=100000", "--set", "data.workers=1"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-m", "hdit_cli", *map(str, words)], ENV)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        try:
            os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    saved = sorted(path.name for path in (run / "checkpoints").iterdir())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert saved == [f"step-{last['step']:08d}"]


@pytest.mark.slow
def test_nohup_goes_on(made, tmp_path):
    """A run that was started to outlive its terminal does."""
    import signal

    run = tmp_path / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--set", "train.steps=60"]
    child = subprocess.Popen(
        [sys.executable, "-m", "hdit_cli", *map(str, words)],
        env=ENV, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGHUP)
    _, text = child.communicate(timeout=120)
    assert child.returncode == 0, text
