"""Weights of Paella's token network, as its authors' class names them, become a model; what they do not tell is asked for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hdit_cli import cli
from hdit_cli.engine.load import load
from hdit_cli.engine.run.codec_file import load_codec, write
from hdit_cli.models import paella_names
from hdit_cli.models.codecs.vq_vae import VQVAE
from hdit_cli.models.paella import Paella
from hdit_cli.recipe import Recipe, vq_vae

SIZES = {
    "num_labels": 16, "c_in": 8, "c_out": 8, "c_r": 6, "patch_size": 2, "c_cond": 12, "c_hidden": [8, 16], "nhead": [-1, 4],
    "blocks": [2, 3], "level_config": ["CT", "CTAF"], "clip_embd": 5, "byt5_embd": 7, "clip_seq_len": 3, "kernel_size": 5,
}  # fmt: skip


def official(**changes):
    torch.manual_seed(0)
    network = Paella(**{**SIZES, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == code, printed.err
    return printed


def config_at(folder, **values):
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


@pytest.mark.parametrize("form", ["pt", "safetensors", "half", "wrapped"])
@torch.no_grad()
def test_it_is_the_same_network(form, tmp_path, capsys):
    network, source = official(), tmp_path / "paella_v3.pt"
    tensors = network.state_dict()
    if form == "half":
        tensors = {name: tensor.half() for name, tensor in tensors.items()}
        network.load_state_dict(tensors)
    if form == "safetensors":
        source = tmp_path / "paella_v3.safetensors"
        save_file(tensors, source)
    elif form == "wrapped":
        torch.save({"state_dict": {f"module.{name}": t for name, t in tensors.items()}}, source)
    else:
        torch.save(tensors, source)
    out = tmp_path / "paella.hdit.safetensors"
    said = typed(capsys, "convert", source, "--config", config_at(tmp_path, nhead=[-1, 4], size=8), "--out", out)
    assert "heads" not in said.err
    model = load(out)
    section = model.recipe["model"]
    assert (section["type"], section["vocabulary"], section["size"]) == ("paella", 16, [8, 8])
    assert (section["kinds"], section["blocks"], section["heads"]) == (["CT", "CTAF"], [2, 3], [0, 4])
    assert (section["text_width"], section["clip_width"], section["clip_tokens"]) == (7, 5, 3)
    tokens, t = torch.randint(16, (2, 8, 8)), torch.tensor([0.3, 0.9])
    told = {"byt5": torch.randn(2, 4, 7), "clip": torch.randn(2, 5), "clip_image": torch.randn(2, 5)}
    assert torch.allclose(model.network(tokens, t, **told), network(tokens, t, **told), atol=1e-5)


def test_it_draws_pictures_with_a_codec_of_its_vocabulary_alone(tmp_path, capsys):
    out = tmp_path / "paella.safetensors"
    torch.save(official(byt5_embd=0, clip_embd=0).state_dict(), tmp_path / "paella.pt")
    typed(
        capsys, "convert", tmp_path / "paella.pt", "--config", config_at(tmp_path, nhead=[-1, 4], size=8), "--out", out
    )
    for name, codes in (("codec", 16), ("other", 17)):
        section = vq_vae.VQVAE(levels=2, bottleneck_blocks=1, c_hidden=8, c_latent=4, codebook_size=codes)
        write(tmp_path / f"{name}.safetensors", VQVAE(**section.arguments()).state_dict(), section)
    words = ("sample", out, "-n", 1, "--steps", 2, "--out", tmp_path / "pictures")
    assert "works on tokens below 16, and the codec" in typed(capsys, *words, code=2).err
    said = typed(capsys, *words, "--codec", tmp_path / "other.safetensors", code=2).err
    assert "makes tokens below 17, and the network takes tokens below 16" in said
    typed(capsys, *words, "--codec", tmp_path / "codec.safetensors")
    assert (tmp_path / "pictures" / "00000.png").is_file()
    assert (
        load(out, codec=tmp_path / "codec.safetensors").codec.fingerprint()
        == load_codec(tmp_path / "codec.safetensors").fingerprint()
    )


@pytest.mark.slow
def test_what_no_tensor_tells_is_taken_or_asked_for(tmp_path, capsys):
    out = tmp_path / "paella.safetensors"
    torch.save(official().state_dict(), tmp_path / "paella.pt")
    words = ("convert", tmp_path / "paella.pt", "--force", "--out", out)
    assert "how many heads its attention has, and 16 is no width" in typed(capsys, *words, code=2).err
    assert not out.exists()
    said = typed(capsys, *words, "--config", config_at(tmp_path, nhead=[-1, 4])).err
    assert "64 x 64 tokens" not in said.partition("note")[0] and "for how many tokens" in said
    divided = config_at(tmp_path, nhead=[-1, 4], blocks=[1, 3], level_config=["CTCT", "CTAF"], dropout=[0.2, 0.2])
    typed(capsys, *words, "--config", divided)
    section = load(out).recipe["model"]
    assert (
        section["blocks"] == [1, 3]
        and section["dropout"] == 0.2
        and load_file(out).keys() == official().state_dict().keys()
    )
    for changes, code, wrong in (
        ({"c_r": 7}, 4, "says time_features 7, and its tensors 6"),
        ({"nhead": [4]}, 4, "names heads of 1 levels"),
        ({"nhead": 4}, 4, "heads 4, which is no list"),
        ({"self_attn": [True, False]}, 2, "a self_attention for each level"),
        ({"nhead": [-1, 3]}, 2, "must be a multiple of its 3 heads"),
    ):
        told = typed(capsys, *words, "--config", config_at(tmp_path, **{"nhead": [-1, 4], **changes}), code=code).err
        assert wrong in told and len(told.splitlines()) <= 3, told


def test_damaged_ones_are_refused(tmp_path, capsys):
    def refused(words, **changes):
        tensors = {**official().state_dict(), **{name.replace("__", "."): t for name, t in changes.items()}}
        save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, tmp_path / "x.safetensors")
        config = config_at(tmp_path, nhead=[-1, 4])
        said = typed(
            capsys,
            "convert",
            tmp_path / "x.safetensors",
            "--config",
            config,
            "--out",
            tmp_path / "out.safetensors",
            code=4,
        ).err
        assert words in said and len(said.splitlines()) <= 3 and not (tmp_path / "out.safetensors").exists(), said

    refused("clf.1.bias holds NaN", clf__1__bias=torch.full((32,), float("nan")))
    refused("lacks up_blocks.0.0.depthwise.weight", up_blocks__0__0__depthwise__weight=None)
    refused("none of Paella's network", in_mapper__0__weight=torch.zeros(3))
    refused("begins with no convolution", down_blocks__0__0__depthwise__weight=None)
    refused("it names level 9, and holds 3 of them", down_blocks__9__0__depthwise__weight=torch.zeros(8, 1, 5, 5))
    refused("it names block 9, and holds 5 of them", down_blocks__0__9__depthwise__weight=torch.zeros(8, 1, 5, 5))
    refused("has an unknown tensor more", more=torch.zeros(1))


def test_the_published_network_is_told_by_its_shapes_alone():
    with torch.device("meta"):
        tensors = Paella(byt5_embd=2560).state_dict()
    described = paella_names.recipe(tensors, None)
    recipe = Recipe.from_dict({**described.values, "name": "paella"})
    with torch.device("meta"):
        network = Paella(**recipe.model.arguments(outputs=1))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_008_350_592
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in tensors.items()}
    assert recipe.model.heads == (0, 16, 16) and recipe.model.size == (64, 64)
    assert [note.partition(":")[0] for note in described.notes] == [
        "nothing says how many heads it has",
        "nothing says for how many tokens it was trained",
    ]
