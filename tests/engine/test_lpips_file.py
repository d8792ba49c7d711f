"""VGG16 and the heads of LPIPS as others keep them become one file that is checked before it is built.

The published weights are not at hand: files of their layout with random numbers, and narrow ones, since nothing here hangs
on how wide a layer is.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hdit_cli.cli import main
from hdit_cli.engine.run.lpips_file import load_lpips
from hdit_cli.errors import CheckpointError
from hdit_cli.models import lpips

WIDTHS = ((2, 3), (4, 3), (5, 3, 4), (3, 4, 5), (4, 3, 6))


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(lpips, "WIDTHS", WIDTHS)


@pytest.fixture
def vgg():
    """The state of torchvision's network: with a classifier, which LPIPS does not use."""
    torch.manual_seed(0)
    found = {n: torch.randn_like(t) for n, t in lpips.LPIPS(heads=False).state_dict().items()}
    return {**found, "classifier.0.weight": torch.randn(2, 6), "classifier.0.bias": torch.randn(2)}


@pytest.fixture
def heads():
    """The state of the lpips package's heads, which lie behind a dropout."""
    return {f"lin{k}.model.1.weight": torch.rand(1, widths[-1], 1, 1) for k, widths in enumerate(WIDTHS)}


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command in an own folder => what it says, checked for its exit code."""
    monkeypatch.chdir(tmp_path)

    def typed(*words, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code, said.err
        assert "Traceback" not in said.err
        return said

    return typed


def distance(net):
    generator = torch.Generator().manual_seed(3)
    return net(*(torch.rand(2, 1, 3, 16, 16, generator=generator) * 2 - 1))


def test_vgg_and_heads_become_one_file(run, vgg, heads):
    torch.save(vgg, "vgg16-397923af.pth", _use_new_zipfile_serialization=False)  # as the published file is
    torch.save(heads, "vgg.pth", _use_new_zipfile_serialization=False)
    said = run("convert", "vgg16-397923af.pth", "--heads", "vgg.pth", "--out", "lpips.safetensors")
    assert "lpips.safetensors: LPIPS" in said.out
    assert "left out, since LPIPS does not use them: classifier.0.bias, classifier.0.weight" in said.err
    assert "vgg16 is not the file that torchvision publishes" in said.err
    assert "heads is not the file that lpips 0.1 publishes" in said.err
    net = load_lpips("lpips.safetensors")
    assert net.heads and net.file == "lpips.safetensors" and len(net.sha256) == 64
    for name, tensor in net.state_dict().items():
        own = heads[f"{name[:4]}.model.1.weight"] if name.startswith("lin") else vgg[name]
        assert torch.equal(tensor, own)
    told = json.loads(run("info", "lpips.safetensors", "--json").out)
    assert (told["kind"], told["network"], told["heads"]) == ("perceptual loss", "vgg16", "lpips")
    assert told["sha256"] == net.sha256 and set(told["sources"]) == {"vgg16", "heads"}
    first = Path("lpips.safetensors").read_bytes()
    run("convert", "vgg16-397923af.pth", "--heads", "vgg.pth", "--out", "lpips.safetensors", "--force")
    assert Path("lpips.safetensors").read_bytes() == first


def test_other_layouts_give_the_same_network(run, vgg, heads):
    """Safetensors, half precision (which is exact here), DDP's names, and the lpips package's module whole."""
    exact = {name: tensor.half().float() for name, tensor in {**vgg, **heads}.items()}
    vgg, heads = ({name: exact[name] for name in part} for part in (vgg, heads))
    ends = (4, 9, 16, 23, 30)
    whole = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.ones(1, 3, 1, 1)}
    for name, tensor in vgg.items():
        if name.startswith("features."):
            _, number, part = name.split(".")
            slice_ = next(k for k, end in enumerate(ends, start=1) if int(number) < end)
            whole[f"net.slice{slice_}.{number}.{part}"] = tensor
    for k in range(5):
        whole[f"lin{k}.model.1.weight"] = whole[f"lins.{k}.model.1.weight"] = heads[f"lin{k}.model.1.weight"]
    torch.save(vgg, "a.pth")
    save_file({f"module.{name}": tensor.half() for name, tensor in vgg.items()}, "b.safetensors")
    save_file({name.replace(".model.1", ""): tensor for name, tensor in heads.items()}, "heads.safetensors")
    torch.save(whole, "c.pth")
    run("convert", "a.pth", "--heads", "heads.safetensors", "--out", "1.safetensors")
    run("convert", "b.safetensors", "--heads", "heads.safetensors", "--out", "2.safetensors")
    run("convert", "c.pth", "--out", "3.safetensors")
    said = run("convert", "c.pth", "--heads", "heads.safetensors", "--out", "4.safetensors", "--config", "none.json")
    assert "own heads are left out for those of --heads" in said.err
    assert "--config none.json was not needed" in said.err
    first = distance(load_lpips("1.safetensors"))
    assert all(torch.equal(distance(load_lpips(f"{n}.safetensors")), first) for n in (2, 3, 4))


def test_vgg_alone_counts_every_channel_the_same(run, vgg):
    save_file(vgg, "vgg.safetensors")
    said = run("convert", "vgg.safetensors", "--out", "o.safetensors", "--json")
    assert json.loads(said.out) == {"path": "o.safetensors", "perceptual": "vgg16", "heads": False}
    assert "no heads: every channel counts the same" in said.err
    assert "none: every channel counts the same" in run("info", "o.safetensors").out
    net, uniform = load_lpips("o.safetensors"), lpips.LPIPS()
    uniform.load_state_dict(net.state_dict(), strict=False)  # heads begin as ones
    torch.testing.assert_close(distance(net), distance(uniform))


def test_what_is_neither_is_refused_and_nothing_is_written(run, vgg, heads, tmp_path):
    features = {name: tensor for name, tensor in vgg.items() if name.startswith("features")}
    wrong = {
        "it has no features.17.bias": {n: t for n, t in features.items() if "17" not in n},
        "which have no features.30.weight": {**features, "features.30.weight": torch.zeros(2)},
        "features.0.weight has shape [2, 3, 11, 11], not [2, 3, 3, 3]": {
            **features, "features.0.weight": torch.zeros(2, 3, 11, 11),
        },
        "features.5.bias holds NaN": {**features, "features.5.bias": torch.full((4,), torch.nan)},
        "features.5.bias is of type I64": {**features, "features.5.bias": torch.zeros(4, dtype=torch.int64)},
    }  # fmt: skip
    for told, tensors in wrong.items():
        save_file(tensors, "x.safetensors")
        assert told in run("convert", "x.safetensors", "--out", "o.safetensors", code=4).err
    save_file(vgg, "x.safetensors")
    wrong_heads = {
        "lin1.weight has shape [1, 7, 1, 1], not [1, 3, 1, 1]": {
            **heads, "lin1.model.1.weight": torch.zeros(1, 7, 1, 1),
        },
        "which have no lin5.weight": {**heads, "lin5.model.1.weight": torch.zeros(1, 7, 1, 1)},
        "has no lin3.weight": {n: t for n, t in heads.items() if "lin3" not in n},
        "lin2.weight holds numbers below 0": {**heads, "lin2.model.1.weight": torch.full((1, 4, 1, 1), -0.5)},
        "lin2.weight holds NaN": {**heads, "lin2.model.1.weight": torch.full((1, 4, 1, 1), torch.inf)},
        "holds no heads of LPIPS": vgg,
    }  # fmt: skip
    for told, tensors in wrong_heads.items():
        save_file(tensors, "h.safetensors")
        said = run("convert", "x.safetensors", "--heads", "h.safetensors", "--out", "o.safetensors", code=4).err
        assert told in said and ("lpips/weights/v0.1/vgg.pth" in said or "get it again" in said)
    assert "no heads of LPIPS at" in run("convert", "x.safetensors", "--heads", "no.pth", code=4).err
    torch.save(heads, "vgg.pth")
    said = run("convert", "vgg.pth", "--out", "o.safetensors", code=2).err
    assert "holds the heads of LPIPS alone" in said and "--heads vgg.pth" in said
    save_file({"conv.weight": torch.zeros(3)}, "x.safetensors")
    for source in ("x.safetensors", tmp_path):
        said = run("convert", source, "--heads", "vgg.pth", "--out", "o.safetensors", code=2).err
        assert "--heads vgg.pth goes with VGG16's weights" in said
    assert "no checkpoint gone.pth" in run("convert", "gone.pth", "--heads", "vgg.pth", code=4).err
    assert not (tmp_path / "o.safetensors").exists()


def test_a_file_is_checked_before_it_is_built(run, vgg, heads):
    with pytest.raises(CheckpointError, match=r"no weights of LPIPS at w\.safetensors") as caught:
        load_lpips("w.safetensors")
    for word in ("vgg16-397923af.pth", "lpips/weights/v0.1/vgg.pth", "--out w.safetensors"):
        assert word in caught.value.hint
    torch.save(vgg, "a.pth")
    torch.save(heads, "vgg.pth")
    run("convert", "a.pth", "--heads", "vgg.pth", "--out", "w.safetensors")
    assert "already" in run("convert", "w.safetensors", code=2).err
    assert "holds weights of LPIPS, not a model" in run("sample", "w.safetensors", code=4).err
    good = load_file("w.safetensors")
    told = {"format": "pt", "hdit.format": "hdit-lpips/1", "hdit.sources": "{}"}
    cases = [
        ("holds no weights of LPIPS as hdit keeps them", vgg, {"format": "pt"}),
        ("lacks features.28.bias", {n: t for n, t in good.items() if n != "features.28.bias"}, told),
        ("unknown tensor classifier", vgg, told),
        ("has shape", {**good, "lin0.weight": torch.zeros(1, 9, 1, 1)}, told),
        ("is of type F16", {n: t.half() for n, t in good.items()}, told),
        ("holds NaN or infinity", {**good, "features.28.bias": torch.full((6,), torch.inf)}, told),
        ("below 0", {**good, "lin0.weight": -good["lin0.weight"]}, told),
    ]
    for words, tensors, metadata in cases:
        save_file(tensors, "bad.safetensors", metadata)
        with pytest.raises(CheckpointError, match=words):
            load_lpips("bad.safetensors")
    for sources in ("[]", '{"vgg16": "../x"}', '{"path": "x"}', "{"):
        save_file(good, "bad.safetensors", {**told, "hdit.sources": sources})
        assert "the header of bad.safetensors cannot be read" in run("info", "bad.safetensors", code=4).err
    Path("cut.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-8])
    for path, words in (("cut.safetensors", "is not a whole safetensors file"), ("a.pth", "is a PyTorch file")):
        with pytest.raises(CheckpointError, match=words):
            load_lpips(path)
