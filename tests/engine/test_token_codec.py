"""Files of tokenizers: written, read, told of, and refused where they lie."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_run import tiny_recipe

from hdit_cli import cli
from hdit_cli.engine.memory.trace import follow
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, header
from hdit_cli.engine.run.codec_file import codec_section, found_for, keep_beside, load_codec, outline, write
from hdit_cli.errors import CheckpointError
from hdit_cli.models.codecs.latents import Absent
from hdit_cli.models.codecs.vq_vae import VQVAE as Network
from hdit_cli.recipe import Recipe
from hdit_cli.recipe.codec import kept
from hdit_cli.recipe.vq_vae import VQVAE

SECTION = VQVAE(levels=2, bottleneck_blocks=1, c_hidden=8, c_latent=4, codebook_size=16)


def weights(seed=0):
    torch.manual_seed(seed)
    return Network(**SECTION.arguments()).eval().state_dict()


@pytest.fixture
def file(tmp_path):
    write(tmp_path / "codec.safetensors", weights(), SECTION)
    return tmp_path / "codec.safetensors"


def test_a_file_is_read_as_it_was_written(file, tmp_path):
    codec = load_codec(file)
    assert codec_section(file) == SECTION and (codec.kind, codec.vocabulary, codec.factor) == ("vq-vae", 16, 4)
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in codec.network.state_dict().items())
    assert not codec.training and not any(parameter.requires_grad for parameter in codec.parameters())
    write(tmp_path / "other.safetensors", weights(1), SECTION)
    assert load_codec(tmp_path / "other.safetensors").fingerprint() != codec.fingerprint()


def test_it_goes_along_and_is_found(file, tmp_path):
    codec = load_codec(file)
    needs = checkpoint.needs_of(codec)
    assert needs == {"type": "vq-vae", "sha256": codec.fingerprint(), "factor": 4, "channels": 1, "vocabulary": 16}
    (tmp_path / "run").mkdir()
    place = keep_beside(codec, tmp_path / "run")
    assert kept(tmp_path / "run") == [place] and place.name == f"vq-vae-{codec.fingerprint()[:8]}.safetensors"
    wanted = Absent(**needs)
    assert found_for(wanted, named=None, beside=place.parent).fingerprint() == codec.fingerprint()
    assert "tokens below 16, and its codec vq-vae-" in wanted.pictures()
    with pytest.raises(CheckpointError, match=r"needs tokens below 17 at 1/4 of the size.*makes tokens below 16"):
        found_for(Absent(**{**needs, "vocabulary": 17}), named=None, beside=place.parent)
    with pytest.raises(CheckpointError, match="needs latents of 1 channels"):
        found_for(Absent(**{**needs, "vocabulary": 0}), named=file, beside=tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "xq-vae"}, "type is not what it must be"),
        ({"c_hidden": 9}, "describes no codec: c_hidden"),
        ({"codebook_size": 1 << 40}, "codebook_size is not what it must be"),
        ({"codebook_size": 17}, "vquantizer.codebook.weight has shape"),
        ({"bottleneck_blocks": 200}, "asks for a codec of"),
        ({"scale_factor": 0.0}, "scale_factor is not what it must be"),
        ({"levels": 8, "c_hidden": 1024}, "asks for a codec of"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path, change, said):
    told = {**SECTION.model_dump(mode="json"), **change}
    metadata = {"hdit.format": header.CODEC_FORMAT, "hdit.codec": json.dumps(told)}
    save_file(weights(), tmp_path / "x.safetensors", metadata)
    for read in (codec_section, load_codec):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path / "x.safetensors")


def test_a_checkpoint_that_lies_of_its_codec_is_refused():
    """A network of latents that needs tokens, and the other way round."""
    recipe = tiny_recipe(model__channels=1)
    network = build_network(recipe, classes=2)
    needs = {"type": "vq-vae", "sha256": "0" * 64, "factor": 4, "channels": 1, "vocabulary": 16}
    model = Model(build_task(network, recipe), recipe.to_dict(), ["a", "b"], weights="ema")
    metadata = checkpoint.metadata_of(model)
    for lie, said in (
        (needs, "another vocabulary than its network"),
        ({**needs, "vocabulary": True}, "another vocabulary"),
        ({**needs, "type": "kl-vae"}, "no vocabulary, or one that is not its own"),
        ({key: value for key, value in needs.items() if key != "vocabulary"}, "no vocabulary"),
        ({**needs, "more": 1}, "is no table"),
    ):
        with pytest.raises(CheckpointError, match=said):
            header.read_facts({**metadata, "hdit.needs_codec": json.dumps(lie)}, where="x")


def test_encoding_takes_the_memory_of_one_picture(file):
    """As it is followed beforehand: more pictures are more pixels and tokens, and no more maps."""

    def peak(images):
        def encode(codec):
            codec.moments(torch.zeros(images, 3, 32, 32))

        with torch.no_grad():
            return follow(outline(codec_section(file)), encode, device="cpu").peak

    assert 0 < peak(8) - peak(1) <= 8 * (3 * 32 * 32 * 4 + 8 * 8 * 8) * 2


def test_nan_is_refused(tmp_path):
    bad = weights()
    bad["down_blocks.3.1.running_var"][0] = float("nan")
    write(tmp_path / "x.safetensors", bad, SECTION)
    with pytest.raises(CheckpointError, match="running_var holds NaN"):
        load_codec(tmp_path / "x.safetensors")


def test_info_tells_of_it(file, capsys):
    with pytest.raises(SystemExit):
        cli.main(["info", str(file), "--json"])
    told = json.loads(capsys.readouterr().out)
    network = Network(**SECTION.arguments())
    assert (told["kind"], told["codec"], told["factor"], told["vocabulary"]) == ("codec", "vq-vae", 4, 16)
    assert told["params"] == sum(parameter.numel() for parameter in network.parameters())
    counted = dict.fromkeys(("encode", "decode"), 0)
    for part, modules in (
        ("encode", [network.in_block, network.down_blocks]),
        ("decode", [network.up_blocks, network.out_block]),
    ):

        def count(layer, given, made, part=part):
            each = given[0] if isinstance(layer, torch.nn.ConvTranspose2d) else made
            counted[part] += each.numel() * layer.weight[0].numel()

        for module in modules:
            for layer in module.modules():
                if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.ConvTranspose2d)):
                    layer.register_forward_hook(count)
    network.decode_indices(network.encode(torch.zeros(1, 3, 128, 128)).indices)
    counted["encode"] += 32 * 32 * 16 * 4  # the search
    assert told["gmacs_at_128"] == {name: round(value / 1e9, 9) for name, value in counted.items()}


def test_a_tokenizer_in_training_sees_pictures():
    """Its vocabulary is that of what it makes: the network itself needs no codec."""
    recipe = Recipe.from_dict(
        {
            "model": {"type": "vq-vae", "size": [16, 16], "c_hidden": 8, "codebook_size": 16},
            "task": {"type": "autoencode"},
        }
    )
    with torch.device("meta"):
        network = build_network(recipe, classes=0)
    model = Model(SimpleNamespace(network=network), recipe.to_dict())
    assert (model.channels, model.vocabulary, model.codec.pictures(), model.image_size) == (3, 0, "", (16, 16))
