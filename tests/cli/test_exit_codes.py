"""Every row of the exit-code table, by what a user would really do wrong: one sentence, a hint, no traceback."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from hdit_cli import cli


def fails(capsys, code, *words, hint=True):
    """Runs a command in this process; it must fail with `code`, in one message. Returns the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    text = capsys.readouterr().err
    assert stop.value.code == code, text
    assert "Traceback" not in text
    assert "bug" not in text
    if code != 2 or "Usage:" not in text:
        assert len(re.findall(r"^error: ", text, re.MULTILINE)) == 1
        assert not hint or "hint: " in text
    return text


def test_0_complete_already(made, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(made / "tiny.toml"), "--data", str(made / "data"), "--run", str(made / "run")])
    assert stop.value.code == 0
    assert "step 3" in capsys.readouterr().out


def test_2_recipe(made, tmp_path, capsys):
    bad = tmp_path / "bad.toml"
    bad.write_text((made / "tiny.toml").read_text().replace("batch_size", "batchsize"))
    text = fails(capsys, 2, "train", bad, "--data", made / "data", hint=False)
    assert "bad.toml:" in text
    assert "did you mean 'batch_size'" in text
    assert "flowers256" in fails(capsys, 2, "train", "flower256", "--data", made / "data")
    assert "16x16" in fails(capsys, 2, "train", "smoke/tiny", "--data", made / "data", "--run", tmp_path / "r")
    text = fails(
        capsys,
        2,
        "train",
        made / "tiny.toml",
        "--data",
        made / "data",
        "--run",
        tmp_path / "r",
        "--set",
        "model.classes=7",
    )
    assert "has 2" in text
    assert not (tmp_path / "r").exists()


def test_2_sampling(made, tmp_path, capsys):
    run = made / "run"
    assert "one of: rose, tulip" in fails(capsys, 2, "sample", run, "--class", "daisy", "--out", tmp_path / "s")
    assert "dpmpp-2m" in fails(capsys, 2, "sample", run, "--sampler", "dpmpp2m", "--out", tmp_path / "s")
    assert "multiples of 4" in fails(capsys, 2, "sample", run, "--size", "18", "--out", tmp_path / "s", hint=False)
    assert "LO:HI" in fails(capsys, 2, "sample", run, "--cfg-interval", "5", "--out", tmp_path / "s")
    fails(capsys, 2, "sample", run, "-n", "0", "--out", tmp_path / "s", hint=False)
    fails(capsys, 2, "sample", run, "--weights", "best", "--out", tmp_path / "s", hint=False)
    fails(capsys, 2, "sample")
    fails(capsys, 2, "sample", run, "--from", made / "tiny.toml", "--out", tmp_path / "s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "--force" in fails(capsys, 2, "sample", run, "--out", tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_2_changed_and_existing(made, tmp_path, capsys):
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", made / "run"]
    assert "train.seed: 0 -> 1" in fails(capsys, 2, *words, "--set", "train.seed=1")
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    assert "--force" in fails(capsys, 2, "export", made / "run", "--out", out)
    assert out.read_text() == "mine"


def test_2_locked(made, tmp_path, capsys):
    from hdit_cli import files

    run = tmp_path / "run"
    run.mkdir()
    with files.lock(run / ".lock", what="it"):
        text = fails(capsys, 2, "train", made / "tiny.toml", "--data", made / "data", "--run", run)
    assert f"pid {os.getpid()}" in text
    assert "host" in text


def test_3_data(made, pictures, tmp_path, capsys):
    fails(capsys, 3, "prepare", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(capsys, 3, "prepare", tmp_path / "empty", "--out", tmp_path / "o")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("hello")
    fails(capsys, 3, "prepare", tmp_path / "text", "--out", tmp_path / "o", "--size", "16", "--workers", "1")
    fails(capsys, 3, "train", made / "tiny.toml", "--data", tmp_path / "nowhere", "--run", tmp_path / "r")
    fails(capsys, 3, "train", made / "tiny.toml", "--run", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_3_corrupt_shard(made, tmp_path, capsys):
    import shutil

    shutil.copytree(made / "data", tmp_path / "data")
    shard = tmp_path / "data" / "00000.tar"
    data = bytearray(shard.read_bytes())
    for offset in range(600, len(data), 97):
        data[offset] ^= 0x55
    shard.write_bytes(data)
    text = fails(capsys, 3, "train", made / "tiny.toml", "--data", tmp_path / "data", "--run", tmp_path / "r")
    assert "00000.tar" in text


def test_3_scores(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    by_name = ("-n", "4", "--steps", "2", "--metrics", "fid")
    text = fails(capsys, 3, "eval-fid", made / "run", *by_name, "--allow-small")
    assert str(tmp_path / "cache") in text
    assert "nvidia" in text
    text = fails(
        capsys,
        3,
        "eval-fid",
        made / "run",
        "-n",
        "4",
        "--steps",
        "2",
        "--metrics",
        "fid",
        "--allow-small",
        "--inception",
        tmp_path / "no.pt",
    )
    assert "no.pt" in text
    assert "2,048" in fails(capsys, 3, "eval-fid", made / "run", *by_name)


def test_4_checkpoints(made, tmp_path, capsys):
    fails(capsys, 4, "sample", tmp_path / "no.safetensors", "--out", tmp_path / "s")
    fails(capsys, 4, "info", made / "data" / "00000.tar")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"\x00" * 100)
    fails(capsys, 4, "sample", junk, "--out", tmp_path / "s")
    whole = (made / "run" / "ckpt.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "whole" in fails(capsys, 4, "sample", tmp_path / "cut.safetensors", "--out", tmp_path / "s")
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"a": zeros(1)}, tmp_path / "other.safetensors", metadata={"config": "{}"})
    assert "hdit convert" in fails(capsys, 4, "export", tmp_path / "other.safetensors", "--out", tmp_path / "e")
    pickle = tmp_path / "evil.pth"
    pickle.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "canary").encode() + b"'\ntR.")
    fails(capsys, 4, "convert", pickle, "--out", tmp_path / "e")
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "s").exists()


def test_4_pickle_inside_a_torch_file_is_not_run(tmp_path, capsys):
    import torch

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"model_ema": Evil(), "config": {}}, tmp_path / "evil.pth")
    text = fails(capsys, 4, "convert", tmp_path / "evil.pth", "--out", tmp_path / "e")
    assert "nothing in it was run" in text
    assert not (tmp_path / "canary").exists()


def test_5_divergence(made, tmp_path, capsys):
    """A learning rate nobody should use: it stops, names the cause, and publishes no bad number."""
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "run"]
    sets = [
        "optimizer.lr=10.0",
        "train.steps=200",
        "train.grad_clip=0.0",
        "train.save_every=1",
        "optimizer.betas=[0.0, 0.0]",
    ]
    text = fails(capsys, 5, *words, *[w for s in sets for w in ("--set", s)])
    assert "optimizer.lr" in text
    from hdit_cli import load

    if (tmp_path / "run" / "ckpt.safetensors").exists():
        load(tmp_path / "run", device="cpu")  # loading refuses tensors that are not finite


def limited(words, *, limit, value):
    def apply():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(limit, (value, value))

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "hdit_cli", *map(str, words)],
        capture_output=True,
        text=True,
        preexec_fn=apply,
        env=env,
        timeout=120,
    )


@pytest.mark.slow
def test_6_out_of_memory(made, tmp_path):
    words = [
        "train",
        made / "tiny.toml",
        "--data",
        made / "data",
        "--run",
        tmp_path / "run",
        "--set",
        "train.batch_size=40000",
    ]
    done = limited(words, limit=resource.RLIMIT_AS, value=5 << 29)
    assert done.returncode == 6, done.stderr
    assert "batch 40000, accumulate 1, precision fp32: a step needs about " in done.stderr
    assert "--set train.accumulate=2 (about " in done.stderr
    assert "--set model.levels.0.checkpoint=true (about " in done.stderr
    assert "--set train.precision=bf16 (about " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_74_disk_full(made, tmp_path):
    """The file size limit stands in for a full disk: what was saved before stays, nothing temporary is left."""
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "run"]
    done = limited(words, limit=resource.RLIMIT_FSIZE, value=20_000)
    assert done.returncode == 74, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    assert not [p for p in (tmp_path / "run").rglob("*") if p.name.startswith(".tmp-")]
    assert not (tmp_path / "run" / "ckpt.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
@pytest.mark.parametrize("processes", [1, 2])
def test_75_interrupted(made, tmp_path, number, processes):
    run = tmp_path / "run"
    words = ["train", made / "tiny.toml", "--data", made / "data", "--run", run, "--processes", processes]
    words += ["--set", "train.steps=100000"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "hdit_cli", *map(str, words)], stderr=subprocess.PIPE, text=True, env=env
    )
    deadline = time.monotonic() + 90
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(number)
    _, text = child.communicate(timeout=60)
    assert child.returncode == 75, text
    assert "Traceback" not in text
    assert "the same command goes on" in text
    saved = sorted(p.name for p in (run / "checkpoints").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert saved == [f"step-{lines[-1]['step']:08d}"]


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 2500], ids=["name", "path"])
@pytest.mark.parametrize(
    "words",
    [
        ("info", "@"), ("sample", "@"), ("sample", "RUN", "--out", "@"), ("sample", "--from", "@"), ("eval-fid", "@"),
        ("eval-fid", "RUN", "--metrics", "swd", "--reference", "@"), ("export", "RUN", "--out", "@"), ("convert", "@"),
        ("train", "RECIPE", "--run", "@"), ("train", "RECIPE", "--init", "@"), ("verify", "@"), ("report", "@"),
        ("train", "@"), ("prepare", "@"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_name_too_long_for_a_file(words, name, made, capsys):
    known = {"@": name, "RUN": made / "run", "RECIPE": made / "tiny.toml"}
    with pytest.raises(SystemExit) as stop:
        cli.main([str(known.get(word, word)) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code in (2, 3, 4, 74) and "hint: " in said and "bug" not in said


def test_3_data_of_a_checkpoint_under_a_name_too_long(made, tmp_path, capsys):
    with safe_open(made / "run" / "ckpt.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        metadata = file.metadata()
    data = {**json.loads(metadata["hdit.data"]), "path": "x" * 300}
    save_file(tensors, tmp_path / "c.safetensors", metadata={**metadata, "hdit.data": json.dumps(data)})
    assert "--reference" in fails(capsys, 3, "eval-fid", tmp_path / "c.safetensors", "--metrics", "swd", "-n", 4)


def test_2_a_circle_of_links_where_pictures_are_kept(made, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = ("eval-fid", made / "run", "-n", 4, "--steps", 1, "--metrics", "swd", "--save", tmp_path / "loop")
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert stop.value.code in (2, 74) and "bug" not in capsys.readouterr().err
