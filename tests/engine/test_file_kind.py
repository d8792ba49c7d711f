"""A file of another kind in the place of a checkpoint: it is told what it is, and what to do."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from test_generate import make

from hdit_cli import cli
from hdit_cli.engine.load import load
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.file_kind import looked_at, prefix_of, unwrapped

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 20)
    return buffer.getvalue()


def written(save, *arguments, **options):
    buffer = io.BytesIO()
    save(buffer, *arguments, **options)
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.safetensors"))
    return buffer.getvalue()


def torch_file(*, as_zip):
    return written(lambda f: torch.save({"a": torch.zeros(2)}, f, _use_new_zipfile_serialization=as_zip))


def picture(form):
    return written(lambda f: Image.new("RGB", (8, 8)).save(f, form))


KINDS = {
    "torch": (torch_file(as_zip=True), "PyTorch", "hdit convert"),
    "torch of old": (torch_file(as_zip=False), "PyTorch", "hdit convert"),
    "torch, cut": (torch_file(as_zip=True)[:300], "cut short", "again"),
    "pickle": (b"\x80\x04\x95\x0f\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.", "PyTorch", "hdit convert"),
    "torchscript": (zipped("net/data.pkl", "net/constants.pkl", "net/code/x.py"), "TorchScript", "torch.jit.load"),
    "exported": (zipped("net/archive_format", "net/models/model.json"), "torch.export", "torch.export.load"),
    "keras": (zipped("config.json", "model.weights.h5"), "Keras", "another program"),
    "zip": (zipped("a.jpg", "b.txt"), "zip archive", "unpack"),
    "lfs": (LFS, "git-lfs pointer", "git lfs pull"),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page", "/resolve/"),
    "page, untidy": (b"\xef\xbb\xbf\r\n  <HTML lang=en>", "web page", "download"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page", "download"),
    "refusal": (b"Invalid username or password.", "begins 'Invalid username", "download"),
    "samples": (written(np.savez, np.zeros((1, 8, 8, 3), np.uint8)), "NumPy archive", "hdit eval-fid"),
    "array": (written(np.save, np.zeros(3)), "NumPy array", "arr_0"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF", "safetensors"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(64), "ONNX", "safetensors"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "safetensors"),
    "tar": (tar(), "tar archive", "unpack"),
    "gzip": (gzip.compress(b"abc"), "gzip", "gunzip"),
    "png": (picture("PNG"), "picture", "hdit prepare"),
    "jpeg": (picture("JPEG"), "picture", "hdit eval-fid"),
    "webp": (picture("WEBP"), "picture", "hdit prepare"),
    "json": (b'{"model": {"type": "image_transformer_v2"}}', "JSON", "safetensors"),
    "recipe": (b"[model]\nsize = [16, 16]\n", "recipe", "hdit train"),
    "empty": (b"", "empty", "again"),
    "blank": (b"\n\n", "empty", "again"),
}


def fails(capsys, *words, code=4):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    text = capsys.readouterr().err
    assert stop.value.code == code, text
    assert "bug" not in text
    return text


@pytest.mark.parametrize("name", KINDS)
def test_every_place_that_takes_a_checkpoint_says_what_the_file_is(name, tmp_path, capsys):
    data, kind, hint = KINDS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    out = ("--out", tmp_path / "out")
    for words in (["info", path], ["sample", path, *out], ["export", path, *out], ["convert", path, *out]):
        if words[0] == "convert" and hint == "hdit convert":
            continue
        text = fails(capsys, *words)
        assert kind in text
        assert hint in text
        assert text.count("\n") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["page", "lfs", "torchscript", "empty"])
def test_convert_looks_inside_whatever_the_suffix(name, tmp_path, capsys):
    path = tmp_path / "model.pth"
    path.write_bytes(KINDS[name][0])
    assert KINDS[name][1] in fails(capsys, "convert", path, "--out", tmp_path / "out")


def test_a_cut_safetensors_file_is_still_called_that(tmp_path, capsys):
    checkpoint.save_inference(tmp_path / "a.safetensors", make())
    for size in (4, 100, 5000):
        (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:size])
        assert "not a whole safetensors file" in fails(capsys, "info", tmp_path / "cut.safetensors")
    assert looked_at(tmp_path / "a.safetensors") is looked_at(tmp_path) is looked_at(tmp_path / "nowhere") is None
    (tmp_path / "noise").write_bytes(np.random.default_rng(0).bytes(9000))
    assert looked_at(tmp_path / "noise") is None


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "ema.", "model.", "state_dict.", "ema.module."]
)
def test_wrapped_names_are_told_and_taken_off(prefix, tmp_path, capsys):
    model = make()
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in model.network.state_dict().items()}
    assert prefix_of(state) == prefix
    foreign, ours, out = tmp_path / "foreign.safetensors", tmp_path / "ours.safetensors", tmp_path / "out.safetensors"
    safetensors.torch.save_file(state, foreign, {"format": "pt"})
    for command in ("info", "sample"):
        text = fails(capsys, command, foreign)
        assert f"all begin with {prefix!r}" in text
        assert f"`hdit convert {foreign} --config CONFIG.json`" in text
    # one of ours that another program wrapped: its own header is enough
    safetensors.torch.save_file(state, ours, checkpoint.metadata_of(model))
    assert f"`hdit convert {ours}`" in fails(capsys, "export", ours, "--out", tmp_path / "x")
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(ours), "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert printed.err == f"note: taken off the names of the tensors: {prefix!r}\n"
    assert json.loads(printed.out)["path"] == str(out)
    found = load(out, device="cpu").network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.network.state_dict().items())


def test_of_several_sets_the_averaged_one_is_taken():
    names = ["ema.a.weight", "ema.b", "model.a.weight", "model.b"]
    assert unwrapped(names) == {"a.weight": "ema.a.weight", "b": "ema.b"}
    assert unwrapped(["a.weight", "ema.b"]) == {"a.weight": "a.weight", "ema.b": "ema.b"}
    assert unwrapped(["module.a", "b"]) == {"module.a": "module.a", "b": "b"}
    assert prefix_of([]) == ""
