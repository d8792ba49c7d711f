"""Deep compression autoencoders through the diffusers library, of random weights alone: no published ones were at hand."""

import builtins
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny_recipe

from hdit_cli import cli
from hdit_cli.engine.load import load
from hdit_cli.engine.memory.trace import follow
from hdit_cli.engine.run.codec_file import codec_section, load_codec, outline
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.recipe.dc_ae import DCAE

CONFIG = {
    "_class_name": "AutoencoderDC", "in_channels": 3, "latent_channels": 4, "attention_head_dim": 4,
    "encoder_block_types": ["ResBlock", "EfficientViTBlock"], "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
    "encoder_block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16], "encoder_layers_per_block": [1, 1],
    "decoder_layers_per_block": [1, 1], "encoder_qkv_multiscales": [[], [5]], "decoder_qkv_multiscales": [[], [5]],
    "decoder_norm_types": ["batch_norm", "rms_norm"], "decoder_act_fns": ["relu", "silu"], "scaling_factor": 0.25,
}  # fmt: skip


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("diffusers", reason="diffusers is not installed: it is of the extra `latents`")


def built(library, **changes):
    torch.manual_seed(0)
    settings = {key: value for key, value in {**CONFIG, **changes}.items() if not key.startswith("_")}
    return library.AutoencoderDC(**settings).eval()


def folder_of(library, folder, **changes):
    """As the library saves it: the weights, with counts of batch norms, beside the configuration."""
    built(library, **changes).save_pretrained(folder)
    return folder


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert (stop.value.code or 0) == code, printed.err
    return printed


@pytest.fixture(scope="module")
def place(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dc-ae")
    folder_of(library, folder / "vae")
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(folder / "vae"), "--out", str(folder / "codec.safetensors")])
    assert not stop.value.code
    return folder


@torch.no_grad()
def test_it_encodes_and_decodes_as_the_library_does(library, place, capsys):
    theirs, codec = built(library), load_codec(place / "codec.safetensors")
    x = torch.rand(2, 3, 32, 48) * 2 - 1
    latent = theirs.encode(x).latent
    assert (codec.kind, codec.factor, codec.channels, codec.vocabulary, codec.draws) == ("dc-ae", 2, 4, 0, False)
    assert torch.allclose(codec.encode(x), latent * 0.25, atol=1e-6)
    assert torch.equal(codec.encode(x, torch.randn(2, 4, 16, 24)), codec.encode(x))  # nothing is drawn
    stored = codec.moments(x)
    assert stored.shape == (2, 8, 16, 24) and not stored[:, 4:].any()
    assert torch.equal(codec.latent(stored, torch.randn(2, 4, 16, 24)), codec.encode(x))
    assert torch.allclose(codec.decode(latent * 0.25), theirs.decode(latent).sample, atol=1e-5)
    assert torch.equal(codec.statistics[1], torch.full((4,), 4.0))
    stored = load_file(place / "codec.safetensors")
    assert all(t.dtype == torch.float32 for t in stored.values()) and not any("tracked" in name for name in stored)
    told = json.loads(typed(capsys, "info", place / "codec.safetensors", "--json").out)
    assert told["params"] == sum(p.numel() for p in theirs.parameters()) and told["codec"] == "dc-ae"
    assert told["gmacs_at_64"]["encode"] > 0 and told["scaling_factor"] == 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers_per_block": [0, 1], "decoder_layers_per_block": [0, 2]},
        {"downsample_block_type": "Conv", "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm"},
        {"encoder_out_shortcut": False, "decoder_in_shortcut": False, "latent_channels": 5, "decoder_act_fns": "silu"},
    ],
)
@torch.no_grad()
def test_every_way_of_building_one_converts(library, changes, tmp_path, capsys):
    source = folder_of(library, tmp_path / "vae", **changes)
    typed(capsys, "convert", source, "--out", tmp_path / "codec.safetensors")
    codec, x = load_codec(tmp_path / "codec.safetensors"), torch.rand(1, 3, 16, 16)
    assert torch.allclose(codec.encode(x), built(library, **changes).encode(x).latent * 0.25, atol=1e-6)
    assert codec.decode(codec.encode(x)).shape == x.shape


def test_large_maps_are_decoded_in_pieces(place, monkeypatch):
    codec = load_codec(place / "codec.safetensors")
    monkeypatch.setattr("hdit_cli.models.codecs.dc_ae._LARGEST", 64)
    with torch.no_grad():
        assert codec.decode(torch.randn(1, 4, 40, 32)).shape == (1, 3, 80, 64)


def test_what_is_wrong_is_told(library, place, tmp_path, capsys):
    def refused(words, *, code=4, config=None, **changes):
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        save_file({**tensors, **changes}, folder / "diffusion_pytorch_model.safetensors")
        told = {**CONFIG, **(config or {})}
        (folder / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))
        said = typed(capsys, "convert", folder, "--out", tmp_path / "x.safetensors", code=code).err
        assert words in said and "pydantic" not in said and len(said.splitlines()) <= 3, said
        assert not (tmp_path / "x.safetensors").exists()

    tensors = load_file(place / "vae" / "diffusion_pytorch_model.safetensors")
    name = "decoder.conv_in.bias"
    refused("holds NaN", **{name: tensors[name] * float("nan")})
    refused(f"{name} has shape [5]", **{name: torch.zeros(5)})
    refused("has an unknown tensor other", other=torch.zeros(1))
    refused("in_channels 2", config={"in_channels": 2})
    refused("the setting 'teacher'", code=2, config={"teacher": 1})
    refused("no configuration", code=2, config=dict.fromkeys((key for key in CONFIG if key[0] != "_"), ...))
    refused("encoder_block_types", config={"encoder_block_types": ["ResBlock", "Custom"]})
    refused("scaling_factor is nearer to 0", config={"scaling_factor": 0})
    refused("decoder_norm_types has 3 entries for 2 levels", config={"decoder_norm_types": ["rms_norm"] * 3})
    refused("only the outermost level", config={"encoder_layers_per_block": [1, 0]})
    refused("less than attention_head_dim", config={"attention_head_dim": 32})
    refused("does not divide 4 times", config={"encoder_block_out_channels": [8, 20]})
    refused("no multiple of latent_channels", config={"latent_channels": 3})
    refused("even size 4", config={"decoder_qkv_multiscales": [[], [4]]})
    refused("downsample_block_type", config={"downsample_block_type": "pool"})
    refused("encoder_block_out_channels", config={"encoder_block_out_channels": 8})
    refused("autoencoder of its kind", config={"encoder_layers_per_block": [64, 64]})


def test_a_header_that_lies_is_refused(library, place, tmp_path):
    from hdit_cli.engine.run.header import CODEC_FORMAT

    section = codec_section(place / "codec.safetensors").model_dump(mode="json")
    tensors = load_file(place / "codec.safetensors")
    for change, said in (
        ({"latent_channels": 8}, "has shape"),
        ({"encoder_layers_per_block": [60, 64]}, "asks for a codec of"),
        ({"decoder_act_fns": ["os.system", "relu"]}, "describes no codec: decoder_act_fns"),
    ):
        metadata = {"hdit.format": CODEC_FORMAT, "hdit.codec": json.dumps({**section, **change})}
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        with pytest.raises(CheckpointError, match=said):
            load_codec(tmp_path / "x.safetensors")


def test_a_run_on_it_draws_nothing_and_says_so(place, tiny_data, tmp_path):
    model = {"size": [8, 8], "patch": 2, "levels": [{"depth": 1, "width": 16, "head_dim": 8, "attention": "global"}]}
    model |= {"mapping_width": 16, "mapping_depth": 1, "channels": 4, "classes": "data"}
    said = []
    for changes in ({}, {"codec__sample": True}, {"codec__sample": False}):
        recipe = tiny_recipe(model=model, codec__path=str(place / "codec.safetensors"), train__steps=3, **changes)
        run = tmp_path / str(len(said))
        events = []
        train(run, recipe, data=tiny_data, watch=events.append)
        said.append(sum("codec.sample is true, and draws nothing" in str(event) for event in events))
    assert said == [0, 1, 0]
    weights = [load_file(tmp_path / str(i) / "ckpt.safetensors") for i in range(3)]
    assert all(torch.equal(other[name], weights[0][name]) for other in weights for name in other)
    assert load(tmp_path / "0").codec.kind == "dc-ae" and len([*(tmp_path / "0").glob("dc-ae-*.safetensors")]) == 1


def test_its_memory_is_followed(place):
    section = codec_section(place / "codec.safetensors")

    def encode(codec):
        codec.moments(torch.zeros(2, 3, 16, 16))

    with torch.no_grad():
        assert follow(outline(section), encode, device="cpu").peak > 2 * 3 * 16 * 16 * 4


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"DC-AE.*cannot be imported: No module named 'diffusers'") as caught:
        outline(DCAE(**{key: value for key, value in CONFIG.items() if key not in ("_class_name", "in_channels")}))
    assert caught.value.hint == "pip install 'hdit-cli[latents]'"
