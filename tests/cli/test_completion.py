"""What the shell is offered after TAB."""

import json
import struct
import subprocess
import sys

import pytest

from hdit_cli import cli


@pytest.fixture
def offered(capsys, monkeypatch):
    """The words that bash is given for a command line; the last one is being typed."""

    def complete(*words):
        line = " ".join(["hdit", *map(str, words)])
        monkeypatch.setenv("_HDIT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main([])
        printed = capsys.readouterr()
        assert not printed.err
        return printed.out.split("\n")[:-1] if printed.out.endswith("\n") else printed.out.split("\n")

    return complete


def checkpoint(path, classes):
    header = json.dumps({"__metadata__": {"hdit.classes": json.dumps(classes)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_components(offered):
    assert offered("sample", "x", "--sampler", "dpmpp-2m") == ["dpmpp-2m", "dpmpp-2m-sde"]
    assert offered("eval-fid", "x", "--schedule", "k") == ["karras"]
    assert offered("eval-fid", "x", "--metrics", "fid,k") == ["fid,kid", "fid,kd"]
    assert "fid,fid" not in offered("eval-fid", "x", "--metrics", "fid,f")
    assert offered("prepare", "x", "--fit", "c") == ["crop"]


def test_recipes_and_their_keys(offered, tmp_path):
    for command in ("train", "bench", "info", "recipe"):
        assert "flowers256" in offered(command, "flow")
    assert offered("train", "flowers256", "--set", "train.st") == ["train.steps=", "train.stop_after="]
    assert "model.levels.2.depth=" in offered("train", "flowers256", "--set", "model.levels.2.de")
    assert "model.levels.2.depth=" not in offered("train", "smoke/tiny", "--set", "model.levels.2.de")
    assert offered("train", "no-such-recipe", "--set", "train.see") == ["train.seed="]
    assert offered("train", "flowers256", "--set", "sample.sampler=eul") == [
        "sample.sampler=euler",
        "sample.sampler=euler-ancestral",
    ]
    assert offered("bench", "flowers256", "--set", "train.precision=b") == ["train.precision=bf16"]
    assert offered("train", "flowers256", "--set", "data.flip=") == ["data.flip=true", "data.flip=false"]


def test_classes_of_the_checkpoint_that_was_typed(offered, made, tmp_path):
    assert offered("sample", made / "run", "--class", "t") == ["tulip"]
    file = checkpoint(tmp_path / "c.safetensors", ["rose", "rosemary", "lily", 3, "a\x1b[2J"])
    assert offered("eval-fid", file, "--class", "ros") == ["rose", "rosemary"]
    assert offered("sample", file, "--class", "lily,ros") == ["lily,rose", "lily,rosemary"]
    assert offered("sample", file, "--class", "a") == ["all"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 4) + b"[[[[", struct.pack("<Q", 2) + b"{}"])
def test_what_cannot_be_read_offers_nothing(content, offered, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(content)
    assert offered("sample", tmp_path / "c.safetensors", "--class", "r") == [""]
    assert offered("sample", tmp_path / "none", "--class", "r") == [""]
    assert offered("sample", "--class", "r") == [""]


def test_classes_are_read_without_torch(tmp_path):
    file = checkpoint(tmp_path / "c.safetensors", ["rose"])
    program = (
        "import sys, types\nfrom hdit_cli.commands.completion import classes, settings\n"
        f"print(classes(types.SimpleNamespace(params={{'checkpoint': {str(file)!r}}}, args=[]), 'r'))\n"
        "settings(types.SimpleNamespace(params={}, args=[]), 'train.')\n"
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['rose']\n[]\n"
