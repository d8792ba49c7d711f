"""Paella's VQ model, as its authors and as diffusers save it, becomes a codec; what is wrong with it is told in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from hdit_cli import cli
from hdit_cli.engine.run.codec_file import codec_section, load_codec
from hdit_cli.models.codecs.vq_vae import VQVAE

SIZES = {"levels": 2, "bottleneck_blocks": 2, "c_hidden": 8, "c_latent": 4, "codebook_size": 16}
CONFIG = {
    "_class_name": "PaellaVQModel", "in_channels": 3, "out_channels": 3, "up_down_scale_factor": 2, "levels": 2,
    "bottleneck_blocks": 2, "embed_dim": 8, "latent_channels": 4, "num_vq_embeddings": 16, "scale_factor": 0.25,
}  # fmt: skip


def official(**changes):
    """Tensors as the authors' class names them."""
    torch.manual_seed(0)
    network = VQVAE(**{**SIZES, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("gammas"):
                parameter.normal_(std=0.3)
        network.vquantizer.codebook.weight.normal_()
        network.down_blocks[-1][1].momentum = 1.0
        network.encode(torch.rand(4, 3, 16, 16))
        network.down_blocks[-1][1].follow(torch.ones(()))
    return {**network.state_dict(), "down_blocks.3.1.num_batches_tracked": torch.tensor(3)}


def diffusers(tensors):
    return {name.replace("vquantizer.codebook", "vquantizer.embedding"): tensor for name, tensor in tensors.items()}


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == code, printed.err
    return printed


def weights(path):
    return {name: tensor for name, tensor in official().items() if "tracked" not in name}, load_file(path)


@pytest.mark.parametrize("form", ["pt", "wrapped", "averaged", "safetensors", "diffusers", "bin"])
def test_every_form_of_it_gives_the_same_codec(form, tmp_path, capsys):
    tensors, source = official(), tmp_path / "vq.pt"
    if form == "pt":
        torch.save(tensors, source)
    elif form == "wrapped":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "step": 7}, source)
    elif form == "averaged":
        raw = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        torch.save({"state_dict": raw, "ema_state_dict": tensors}, source)
    elif form == "safetensors":
        source = tmp_path / "vq.safetensors"
        save_file(tensors, source)
    else:
        source = tmp_path / "vqgan"
        source.mkdir()
        (source / "config.json").write_text(json.dumps({**CONFIG, "scale_factor": 0.3764}))
        if form == "bin":
            torch.save(diffusers(tensors), source / "diffusion_pytorch_model.bin")
        else:
            save_file(diffusers(tensors), source / "diffusion_pytorch_model.safetensors")
    out = tmp_path / "codec.safetensors"
    told = json.loads(typed(capsys, "convert", source, "--out", out, "--json").out)
    assert told == {"path": str(out), "codec": "vq-vae", "factor": 4, "channels": 1, "vocabulary": 16}
    expected, found = weights(out)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in found)
    assert codec_section(out).arguments() == {**SIZES, "scale_factor": 0.3764}
    assert load_codec(out).encode(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 4)


def test_half_precision_and_other_sizes_are_read_from_the_tensors(tmp_path, capsys):
    sizes = {"levels": 3, "bottleneck_blocks": 1, "c_hidden": 16, "c_latent": 2, "codebook_size": 9}
    halved = {name: tensor.half() for name, tensor in official(**sizes).items() if "tracked" not in name}
    torch.save(halved, tmp_path / "vq.pt")
    (tmp_path / "config.json").write_text(json.dumps({"c_hidden": 16, "scale_factor": 0.5}))
    out = tmp_path / "codec.safetensors"
    said = typed(capsys, "convert", tmp_path / "vq.pt", "--config", tmp_path / "config.json", "--out", out)
    assert "a codec, tokens below 9 at 1/8 of the size" in said.out
    assert codec_section(out).arguments() == {**sizes, "scale_factor": 0.5}
    assert all(torch.equal(tensor, halved[name].float()) for name, tensor in load_file(out).items())
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "strange.json").write_text('{"hidden": 3}')
    words = ("convert", tmp_path / "vq.pt", "--force", "--out", out, "--config")
    assert "the tensors alone were read" in typed(capsys, *words, tmp_path / "strange.json").err


def test_what_is_wrong_is_told(tmp_path, capsys):
    def refused(words, *, code=4, config=None, **changes):
        tensors = {**diffusers(official()), **changes}
        tensors = {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
        folder = tmp_path / "vqgan"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG if config is None else {**CONFIG, **config}))
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        told = typed(capsys, "convert", folder, "--out", tmp_path / "x.safetensors", code=code).err
        assert words in told and "pydantic" not in told and len(told.splitlines()) <= 3, told
        assert not (tmp_path / "x.safetensors").exists()

    bad = official()["out_block.0.bias"]
    bad[0] = float("inf")
    refused("out_block.0.bias holds NaN or infinity", out_block__0__bias=bad)
    refused("says c_hidden 16, and its tensors 8", config={"embed_dim": 16})
    refused("says levels '2'", config={"levels": "2"})
    refused("says in_channels 4", config={"in_channels": 4})
    refused("scale_factor", config={"scale_factor": 0})
    refused("scale_factor", config={"scale_factor": [1]})
    refused("lacks down_blocks.0.depthwise.1.bias", **{"down_blocks.0.depthwise.1.bias": None})
    refused("has an unknown tensor discriminator.x", discriminator__x=torch.zeros(1))
    refused("none of a VQ tokenizer", up_blocks__0__0__weight=torch.zeros(2))
    refused(
        "c_hidden must be a multiple of 2", config={"embed_dim": 7}, up_blocks__0__0__weight=torch.zeros(7, 4, 1, 1)
    )
    refused("out_block.0.bias is of type int64", out_block__0__bias=torch.zeros(12, dtype=torch.int64))
    many = {f"up_blocks.{i}.weight": torch.zeros(1) for i in range(20, 60)}
    refused("levels", config={"levels": 42, "bottleneck_blocks": -38}, **many)
    torch.save({**official(), "out_block.0.bias": torch.zeros(12, dtype=torch.int8)}, tmp_path / "vq.pt")
    told = typed(capsys, "convert", tmp_path / "vq.pt", "--out", tmp_path / "x.safetensors", code=4).err
    assert "out_block.0.bias is of type int8" in told


def test_the_tokens_are_those_of_the_diffusers_library(tmp_path, capsys):
    """Where it is installed: the same latents, and the same pixels of the same codes."""
    module = pytest.importorskip(
        "diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model",
        reason="diffusers is not installed, or keeps this network elsewhere",
    )
    theirs = module.PaellaVQModel(**{key: value for key, value in CONFIG.items() if key != "_class_name"}).eval()
    theirs.load_state_dict(diffusers(official()))
    theirs.save_pretrained(tmp_path / "vqgan")
    out = tmp_path / "codec.safetensors"
    typed(capsys, "convert", tmp_path / "vqgan", "--out", out)
    assert codec_section(out).scale_factor == 0.25
    codec, pixels = load_codec(out), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        _, _, (_, _, indices) = theirs.vquantizer(theirs.encode((pixels + 1) / 2).latents)
        found = codec.encode(pixels)
        assert torch.equal(found.flatten(), indices.flatten()) and len(found.unique()) > 3
        codes = theirs.vquantizer.embedding(found).movedim(-1, 1)
        assert torch.allclose(codec.decode(found), theirs.decode(codes).sample.clamp(0, 1) * 2 - 1, atol=1e-5)
