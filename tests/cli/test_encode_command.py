"""`hdit encode` as it is typed: what it prints, its exit codes, and what other commands say of what it made."""

import json
import shutil
import subprocess
import sys

import pytest

from hdit_cli import cli


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == code, printed.err
    return printed


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    import torch

    from hdit_cli.engine.run import codec_file
    from hdit_cli.models.codecs.kl_vae import KLVAE
    from hdit_cli.recipe.kl_vae import KLVAE as Section

    torch.manual_seed(0)
    shape = {"widths": (8, 16), "channels": 4, "layers": 1, "groups": 4}
    path = tmp_path_factory.mktemp("codec") / "vae.safetensors"
    codec_file.write(path, KLVAE(**shape).state_dict(), Section(**shape))
    return path


def test_the_set_is_made_once_told_and_looked_at(made, codec, tmp_path, capsys):
    shutil.copytree(made / "data", tmp_path / "set")
    told = json.loads(typed(capsys, "encode", tmp_path / "set", "--codec", codec, "--json").out)
    out = tmp_path / "set-kl-vae"
    assert (told["path"], told["count"], told["complete_before"]) == (str(out), 12, False)
    assert told["codec"]["path"] == str(out / "codec.safetensors") and len(told["statistics"]["std"]) == 4
    said = typed(capsys, "encode", tmp_path / "set", "--codec", codec).out
    assert "complete already, 12 pictures" in said and "8x8 4 channels" in said and "[codec] path" in said
    facts = json.loads(typed(capsys, "info", out, "--json").out)
    assert (facts["kind"], facts["count"], facts["pictures"]) == ("data set", 12, True)
    assert (
        facts["encoded"]["sha256"] == told["codec"]["sha256"] and facts["encoded"]["std"] == told["statistics"]["std"]
    )
    assert "00000.codec" in typed(capsys, "verify", out).out
    scored = typed(capsys, "eval-fid", out, "--metrics", "swd", "--reference", tmp_path / "set", "-n", 4, "--json").out
    assert json.loads(scored)  # its codec does not make it a checkpoint
    data = bytearray((out / "00000.codec").read_bytes())
    data[0] ^= 1
    (out / "00000.codec").write_bytes(data)
    printed = typed(capsys, "verify", out, code=3)
    assert "00000.codec" in printed.err and "hdit encode" in printed.err


def test_what_a_user_may_get_wrong(made, codec, tmp_path, capsys):
    data, out = made / "data", tmp_path / "out"
    for words, code, said in (
        ((data, "--codec", tmp_path / "absent.safetensors"), 4, "no codec"),
        ((data, "--codec", made / "run" / "ckpt.safetensors"), 4, "is no codec"),
        ((tmp_path / "absent", "--codec", codec), 3, "no data set at"),
        ((data, "--codec", codec, "--out", made / "run"), 2, "is not an encoded set"),
        ((data, "--codec", codec, "--out", data), 2, "lie in each other"),
        ((data,), 2, "codec"),
        ((data, "--codec", codec, "--batch-size", 0), 2, "--batch-size"),
    ):
        given = words if "--out" in words else (*words, "--out", out)
        assert said.lower() in typed(capsys, "encode", *given, code=code).err.lower()
    assert not out.exists()


def test_ctrl_c_is_75_and_the_same_command_goes_on(made, codec, tmp_path, capsys, monkeypatch):
    from hdit_cli.engine.encoding import making

    real = making.Maker.make

    def stopped(maker, task):
        real(maker, task)
        raise KeyboardInterrupt

    words = ("encode", made / "data", "--codec", codec, "--out", tmp_path / "set")
    with monkeypatch.context() as patched:
        patched.setattr(making.Maker, "make", stopped)
        said = typed(capsys, *words, code=75).err
    assert "interrupted: stopped after" in said and "the same command goes on" in said
    typed(capsys, *words)
    typed(capsys, "verify", tmp_path / "set")


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(made, codec, tmp_path):
    for name, more in (("one", ()), ("two", ("--processes", "2", "--oversubscribe"))):
        words = ["encode", made / "data", "--codec", codec, "--out", tmp_path / name, *more]
        subprocess.run([sys.executable, "-m", "hdit_cli", *map(str, words)], check=True, timeout=300)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
