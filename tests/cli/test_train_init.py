"""`hdit train --init`: the table, the refusals, several processes."""

import json
import subprocess
import sys

import pytest

from hdit_cli import cli


def run(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *map(str, words)])
    printed = capsys.readouterr()
    return stop.value.code, printed.out, printed.err


def test_what_is_said(made, tmp_path, capsys):
    words = [made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "run", "--init", made / "run"]
    code, _, err = run(capsys, *words, "--dry-run")
    assert code == 0
    assert "would start from" in err
    assert not (tmp_path / "run").exists()
    code, _, err = run(capsys, *words, "--set", "train.steps=1")
    assert code == 0
    assert f"starts from {made / 'run'}: ema weights, step 3, sha256" in err
    assert "classes kept: rose, tulip" in err
    record = json.loads((tmp_path / "run" / "init.json").read_text())
    assert record["source"]["path"] == str(made / "run")
    assert record["parts"]["classes"]["loaded"] == [3, 48]
    code, _, err = run(capsys, *words, "--set", "train.steps=2")
    assert code == 0
    assert "starts from" not in err
    assert "goes on from step 1" in err


def test_what_is_refused(made, tmp_path, capsys):
    base = [made / "tiny.toml", "--data", made / "data"]
    new = [*base, "--run", tmp_path / "run"]
    code, _, err = run(capsys, *new, "--init", made / "run", "--set", "model.mapping_width=32")
    assert code == 2
    assert "model.mapping_width is 16 there, 32 here" in err
    code, _, err = run(capsys, *new, "--init", tmp_path / "none")
    assert code == 4
    assert not (tmp_path / "run").exists()
    code, _, err = run(capsys, *base, "--run", made / "run", "--init", made / "run", "--fresh")
    assert code == 2
    assert "would move" in err
    assert (made / "run" / "ckpt.safetensors").is_file()


def test_a_fresh_start_that_is_refused_moves_nothing(made, tmp_path, capsys):
    base = [made / "tiny.toml", "--run", made / "run", "--fresh"]
    assert run(capsys, *base, "--data", tmp_path / "none")[0] == 3
    assert run(capsys, *base, "--data", made / "data", "--init", tmp_path / "none")[0] == 4
    assert run(capsys, *base, "--data", made / "data", "--set", "model.size=[32, 32]")[0] == 2
    assert (made / "run" / "ckpt.safetensors").is_file()
    assert not (made / "run.old-1").exists()


def test_dit(made, tmp_path, capsys):
    """From smoke/dit to other patches; and no HDiT starts from it, nor it from an HDiT."""
    words = ["smoke/dit", "--data", made / "data", "--set", "train.steps=1", "--set", "train.sample_every=0"]
    words += ["--set", "model.size=[16,16]", "--set", "model.width=32"]
    old = tmp_path / "old"
    assert run(capsys, *words, "--run", old)[0] == 0
    larger = [*words, "--set", "model.patch=8", "--set", "model.depth=3", "--run", tmp_path / "new"]
    code, _, err = run(capsys, *larger, "--init", old)
    assert code == 0
    for told in (
        f"starts from {old}: ema weights, step 1, sha256",
        "positions computed for 2 x 2 tokens (4 x 4 there), not interpolated",
        "patches of 8 fitted to those of 4",
        "block 2 is new, the identity at the start",
        "classes kept: rose, tulip",
    ):
        assert told in err
    assert json.loads((tmp_path / "new" / "init.json").read_text())["parts"]["patches"]["fitted"][0] == 4
    code, _, err = run(capsys, *words, "--run", tmp_path / "none", "--init", made / "run")
    assert code == 2
    assert "model.type is hdit there, dit here" in err
    hourglass = [made / "tiny.toml", "--data", made / "data", "--run", tmp_path / "none", "--init", old]
    code, _, err = run(capsys, *hourglass)
    assert code == 2
    assert "model.type is dit there, hdit here" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_two_processes(made, tmp_path):
    command = [sys.executable, "-m", "hdit_cli", "train", made / "tiny.toml", "--data", made / "data"]
    losses = []
    for processes in (1, 2):
        words = ["--init", made / "run", "--processes", processes, "--run", tmp_path / f"run{processes}"]
        done = subprocess.run([*map(str, [*command, *words])], capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("starts from") == 1
        text = (tmp_path / f"run{processes}" / "metrics.jsonl").read_text()
        losses.append([json.loads(line)["loss"] for line in text.splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
