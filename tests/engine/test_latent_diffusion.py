"""A network of latents on a codec that was loaded: convert, train, go on, sample, score, export; and what is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli import cli
from hdit_cli.engine.load import load
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.codec_file import load_codec
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs import kl_vae_names
from hdit_cli.models.codecs.kl_vae import KLVAE
from hdit_cli.models.codecs.latents import TILE, in_tiles

CONFIG = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "latent_channels": 4, "layers_per_block": 1,
    "norm_num_groups": 4, "in_channels": 3, "scaling_factor": 0.5, "shift_factor": 0.1, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
LEVELS = [{"depth": 1, "width": 16, "head_dim": 8, "attention": "global"}]


def random_codec(seed):
    torch.manual_seed(seed)
    return KLVAE(widths=(8, 16), channels=4, layers=1, groups=4).eval()


def diffusers_folder(folder, seed=0):
    folder.mkdir()
    save_file(random_codec(seed).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    return printed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A codec, another one, and a run of latents on the first."""
    folder = tmp_path_factory.mktemp("latents")
    for name, seed in (("vae", 0), ("other", 1)):
        diffusers_folder(folder / name, seed)
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert", str(folder / name), "--out", str(folder / f"{name}.safetensors")])
        assert not stop.value.code
    return folder


def recipe_of(place, **changes):
    model = {
        "size": [8, 8],
        "patch": 2,
        "levels": LEVELS,
        "mapping_width": 16,
        "mapping_depth": 1,
        "channels": 4,
        "classes": "data",
    }
    return tiny_recipe(model=model, codec__path=str(place / "vae.safetensors"), **changes)


@pytest.fixture(scope="module")
def run(place, tiny_data):
    folder = place / "run"
    train(folder, recipe_of(place), data=tiny_data, watch=lambda event: None)
    return folder


def digests(folder):
    """SHA-256 of what depends on no path: the grids and the optimizer."""
    newest = checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    files = [*sorted((folder / "samples").iterdir()), folder / "checkpoints" / newest / "optimizer.safetensors"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The codec


def test_a_converted_codec_is_the_network_it_was(place):
    codec, network = load_codec(place / "vae.safetensors"), random_codec(0)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    gaussian, noise = network.encode(x), torch.randn(2, 4, 8, 8)
    assert (codec.factor, codec.channels) == (2, 4)
    assert torch.equal(codec.encode(x), (gaussian.mean - 0.1) * 0.5)
    assert torch.allclose(codec.encode(x, noise), (gaussian.sample(noise) - 0.1) * 0.5, atol=1e-6)
    z = torch.randn(2, 4, 8, 8)
    assert torch.allclose(codec.decode(z), network.decode(z / 0.5 + 0.1), atol=1e-5)
    mean, std = codec.statistics
    assert torch.allclose(mean, torch.full((4,), 0.1)) and torch.allclose(std, torch.full((4,), 2.0))
    assert codec.fingerprint() == hashlib.sha256((place / "vae.safetensors").read_bytes()).hexdigest()


def test_a_file_of_latent_diffusion_gives_the_same_codec(place, tmp_path, capsys):
    whole = {f"first_stage_model.{name}": t for name, t in kl_vae_names.to_ldm(random_codec(0).state_dict()).items()}
    torch.save({"state_dict": {**whole, "model.diffusion_model.out.weight": torch.zeros(2)}}, tmp_path / "sd.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    words = (
        "convert",
        tmp_path / "sd.ckpt",
        "--config",
        tmp_path / "config.json",
        "--out",
        tmp_path / "sd.safetensors",
        "--json",
    )
    told = json.loads(typed(capsys, *words).out)
    assert (told["codec"], told["factor"], told["channels"]) == ("kl-vae", 2, 4)
    ours, theirs = load_file(place / "vae.safetensors"), load_file(tmp_path / "sd.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (
        hdit_cli.load_codec(tmp_path / "sd.safetensors").fingerprint()
        == load_codec(place / "vae.safetensors").fingerprint()
    )


def test_what_a_codec_is(place, capsys):
    assert hdit_cli.__version__ not in str(
        checkpoint.read_header(place / "vae.safetensors")
    )  # another version, the same file
    told = json.loads(typed(capsys, "info", place / "vae.safetensors", "--json").out)
    assert (told["kind"], told["codec"], told["factor"], told["channels"]) == ("codec", "kl-vae", 2, 4)
    assert told["params"] == sum(p.numel() for p in random_codec(0).parameters())
    assert (told["shift"], told["scale"]) == ([0.1], [0.5])
    assert "is a codec, not a model" in typed(capsys, "sample", place / "vae.safetensors", code=4).err


def test_a_file_that_is_damaged_or_lies_is_refused(place, tmp_path):
    good = place / "vae.safetensors"
    tensors = load_file(good)
    metadata = json.loads(good.read_bytes()[8 : 8 + int.from_bytes(good.read_bytes()[:8], "little")])["__metadata__"]

    def refused(words, *, tensors=tensors, **changes):
        save_file(tensors, tmp_path / "bad.safetensors", {**metadata, **changes})
        with pytest.raises(CheckpointError, match=words):
            load_codec(tmp_path / "bad.safetensors")

    name = "decoder.conv_in.weight"
    refused("holds NaN", tensors={**tensors, name: tensors[name] * float("nan")})
    refused("lacks decoder", tensors={k: v for k, v in tensors.items() if k != name})
    refused(f"{name} is of type F16", tensors={**tensors, name: tensors[name].half()})
    refused("is of type F64", tensors={n: tensor.double() for n, tensor in tensors.items()})
    section = json.loads(metadata["hdit.codec"])
    for change in (
        {"widths": [8] * 8},
        {"widths": [7, 16]},
        {"scale": [0.0]},
        {"attends": [5]},
        {"layers": 16},
        {"type": "no"},
    ):
        refused(
            "describes no codec|asks for a codec|has shape|lacks", **{"hdit.codec": json.dumps({**section, **change})}
        )
    refused("is not JSON", **{"hdit.codec": "{"})
    refused("is no codec", **{"hdit.format": "other"})
    with pytest.raises(CheckpointError, match="no codec"):
        load_codec(tmp_path / "absent.safetensors")


@torch.no_grad()
def test_large_maps_are_decoded_in_pieces(place):
    """Pieces fade into each other with weights that sum to 1: of a decoder that sees one place at a time nothing changes."""
    z = torch.randn(1, 4, 2 * TILE + 5, TILE + 1)
    plain = in_tiles(lambda part: part[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3), z, factor=2)
    assert torch.allclose(plain, z[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-5)
    codec = load_codec(place / "vae.safetensors")
    assert codec.decode(z).shape == (1, 3, 4 * TILE + 10, 2 * TILE + 2)


def test_a_configuration_that_is_none_is_refused_in_words(place, tmp_path, capsys):
    """Whatever stands in a config.json that was downloaded: one sentence, and nothing is written."""

    def refused(*, code, words, tensors=None, **changes):
        folder = tmp_path / "source"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save_file({**random_codec(0).state_dict(), **(tensors or {})}, folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        told = typed(capsys, "convert", folder, "--out", tmp_path / "x.safetensors", code=code).err
        assert words in told and "pydantic" not in told and not (tmp_path / "x.safetensors").exists()

    refused(code=4, words="down_block_types 5, which is no list", down_block_types=5)
    refused(code=2, words="a block of the kind [1]", up_block_types=[[1]])
    refused(code=2, words="the activation 'relu'", act_fn="relu")
    refused(code=4, words="says out_channels 4", out_channels=4)
    refused(code=4, words="says use_quant_conv False", use_quant_conv=False)
    refused(code=4, words="says mid_block_add_attention False", mid_block_add_attention=False)
    refused(code=4, words="scale is nearer to 0 than 1e-06", scaling_factor=0)
    refused(code=4, words="scale is nearer to 0 than 1e-06", scaling_factor=1e-300)
    refused(code=4, words="what is no number", scaling_factor=10**400)
    refused(code=4, words="latents_mean '1234', which is no list", latents_mean="1234", latents_std=[1, 1, 1, 1])
    refused(code=4, words="divide into True groups", norm_num_groups=True)
    refused(code=4, words="none of a KL autoencoder", tensors={"encoder.conv_in.weight": torch.zeros(3)})
    far = {f"encoder.down_blocks.{10**12}.x": torch.zeros(1)}  # as many levels are not counted through
    refused(code=4, words="it names level 1000000000000", tensors=far)


# A run


def test_a_run_of_latents_is_a_function_of_its_recipe(place, run, tiny_data):
    """Broken off at half and gone on, from the recipe in the run itself: the same bytes. The codec lies beside."""
    from hdit_cli.recipe import load_recipe

    kept = sorted(path.name for path in run.glob("kl-vae-*.safetensors"))
    sha256 = load_codec(place / "vae.safetensors").fingerprint()
    assert kept == [f"kl-vae-{sha256[:8]}.safetensors"]
    half = place / "half"
    train(half, recipe_of(place, train__steps=4), data=tiny_data, watch=lambda event: None)
    again = load_recipe(str(half / "recipe.toml"), ["train.steps=8"])
    assert again.codec.path == str(half / kept[0])
    train(half, again, data=tiny_data, watch=lambda event: None)
    metadata = checkpoint.read_header(run / "ckpt.safetensors")
    needs = json.loads(metadata["hdit.needs_codec"])
    assert needs == {"type": "kl-vae", "sha256": sha256, "factor": 2, "channels": 4}
    ours, theirs = digests(half), digests(run)
    assert ours == theirs
    weights = [load_file(folder / "ckpt.safetensors") for folder in (half, run)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_another_codec_is_refused(place, run, tiny_data, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    other = recipe_of(place).model_copy(
        update={"codec": recipe_of(place).codec.model_copy(update={"path": str(place / "other.safetensors")})}
    )
    with pytest.raises(UsageError, match="the codec is not the one"):
        train(copy, other, data=tiny_data, watch=lambda event: None)
    assert len([*copy.glob("kl-vae-*")]) == 1  # nor does it come to lie in the run
    with pytest.raises(UsageError, match="is another codec"):
        load(run, codec=place / "other.safetensors")
    with pytest.raises(UsageError, match="makes latents of 4"):
        train(tmp_path / "new", recipe_of(place, model__channels=8), data=tiny_data, watch=lambda event: None)
    with pytest.raises(CheckpointError, match="no codec"):
        gone = recipe_of(place)
        gone = gone.model_copy(
            update={"codec": gone.codec.model_copy(update={"path": str(tmp_path / "gone.safetensors")})}
        )
        train(tmp_path / "new", gone, data=tiny_data, watch=lambda event: None)


def test_a_run_goes_on_where_the_codec_that_it_named_is_gone(place, tiny_data, tmp_path):
    shutil.copy(place / "vae.safetensors", tmp_path / "mine.safetensors")
    recipe = recipe_of(place, train__steps=4).with_codec(str(tmp_path / "mine.safetensors"))
    train(tmp_path / "run", recipe, data=tiny_data, watch=lambda event: None)
    (tmp_path / "mine.safetensors").unlink()
    seen = []
    longer = recipe_of(place, train__steps=5).with_codec(str(tmp_path / "mine.safetensors"))
    train(tmp_path / "run", longer, data=tiny_data, watch=seen.append)
    assert seen[-1].step == 5
    assert any("the run's copy of its own is taken" in getattr(event, "text", "") for event in seen)


def test_the_size_is_that_of_the_latents(place, tiny_data, tmp_path):
    wrong = recipe_of(place, model__size=[16, 16])
    with pytest.raises(UsageError, match="trains 32x32 images, the data set holds 16x16") as caught:
        train(tmp_path / "run", wrong, data=tiny_data, watch=lambda event: None)
    assert "model.size=[8,8]" in caught.value.hint


def test_latents_are_drawn_anew_or_are_the_mean(place, tiny_data, tmp_path):
    losses = {}
    for sample in (True, False):
        recipe = recipe_of(
            place, codec={"path": str(place / "vae.safetensors"), "sample": sample}, train__steps=4, train__log_every=1
        )
        train(tmp_path / str(sample), recipe, data=tiny_data, watch=lambda event: None)
        losses[sample] = [
            json.loads(line)["loss"] for line in (tmp_path / str(sample) / "metrics.jsonl").read_text().splitlines()
        ]
    assert losses[True] != losses[False]


# What comes of it


def test_samples_are_pictures_and_are_made_again(place, run, tmp_path, capsys):
    typed(capsys, "sample", run, "-n", 2, "--steps", 2, "--out", tmp_path / "a")
    record = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert record["codec"] == {"path": None, "sha256": load_codec(place / "vae.safetensors").fingerprint()}
    typed(capsys, "sample", "--from", tmp_path / "a" / "samples.json", "--out", tmp_path / "b")
    names = ("00000.png", "00001.png", "grid.png")
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]
    images = hdit_cli.generate(load(run), n=2, steps=2, size=(16, 32))
    assert images.shape == (2, 16, 32, 3)
    with pytest.raises(UsageError, match="no multiple of 2, the codec's factor"):
        hdit_cli.generate(load(run), n=1, steps=2, size=(15, 16))


def test_a_picture_may_be_the_start(run, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "start.png")
    typed(
        capsys, "sample", run, "-n", 1, "--steps", 4, "--init-image", tmp_path / "start.png", "--out", tmp_path / "out"
    )
    assert (tmp_path / "out" / "00000.png").is_file()


def test_a_checkpoint_away_from_its_codec(place, run, tmp_path, capsys):
    alone = tmp_path / "down" / "load" / "ckpt.safetensors"
    alone.parent.mkdir(parents=True)
    shutil.copy(run / "ckpt.safetensors", alone)
    sha8 = load_codec(place / "vae.safetensors").fingerprint()[:8]
    told = typed(capsys, "sample", alone, "-n", 1, "--steps", 2, "--out", tmp_path / "x", code=2).err
    assert f"its codec kl-vae-{sha8}.safetensors is not at hand" in told and "--codec FILE" in told
    typed(capsys, "sample", alone, "-n", 1, "--steps", 2, "--out", tmp_path / "a", "--codec", place / "vae.safetensors")
    shutil.copy(place / "other.safetensors", alone.parent / f"kl-vae-{sha8}.safetensors")
    assert "other bytes" in typed(capsys, "sample", alone, "-n", 1, "--steps", 2, "--out", tmp_path / "y", code=4).err


def test_scores_stand_beside_the_codecs_own(run, capsys):
    told = json.loads(
        typed(capsys, "eval-fid", run, "-n", 8, "--steps", 2, "--metrics", "swd", "--allow-small", "--json").out
    )
    score = told["scores"][0]
    assert score["details"]["of_the_codec"] > 0 and told["size"] == [16, 16]
    (note,) = (note for note in told["notes"] if "through the codec" in note)
    assert "the very latents" in note  # and no bound: a model may score better than a poor codec's reconstructions
    assert told["model"]["codec"] == load(run).codec.fingerprint()


def test_an_export_carries_its_codec(place, run, tmp_path, capsys):
    told = json.loads(typed(capsys, "export", run, "--out", tmp_path / "out" / "x.safetensors", "--json").out)
    assert (tmp_path / "out" / "x.safetensors").is_file() and told["codec"].startswith(
        str(tmp_path / "out" / "kl-vae-")
    )
    model = load(tmp_path / "out" / "x.safetensors")
    assert model.codec.fingerprint() == load_codec(place / "vae.safetensors").fingerprint()
    assert model.image_size == (16, 16) and model.shape() == (4, 8, 8)


def test_a_codec_for_a_model_of_pixels_is_refused(place, tiny_data, tmp_path, capsys):
    train(tmp_path / "pixels", tiny_recipe(train__steps=4), data=tiny_data, watch=lambda event: None)
    told = typed(capsys, "sample", tmp_path / "pixels", "-n", 1, "--codec", place / "vae.safetensors", code=2).err
    assert "works on pixels" in told and "leave --codec out" in told


def test_a_received_file_names_no_codec_that_is_opened(place, run):
    model = load(run)
    assert model.recipe["codec"]["path"] == ""


@pytest.mark.parametrize(
    "lie", [{"channels": 4.0}, {"factor": 16}, {"sha256": "eight"}], ids=["no count", "factor", "another codec"]
)
def test_a_header_that_lies_about_its_codec_is_refused(place, run, tmp_path, capsys, lie):
    """Of other channels, or of another factor, than the codec of that SHA-256 has: told before anything is computed."""
    codec = place / "vae.safetensors"
    needs = json.loads(checkpoint.read_header(run / "ckpt.safetensors")["hdit.needs_codec"]) | lie
    if needs["sha256"] == "eight":
        folder = tmp_path / "eight"
        folder.mkdir()
        wide = KLVAE(widths=(8, 16), channels=8, layers=1, groups=4)
        save_file(wide.state_dict(), folder / "diffusion_pytorch_model.safetensors")
        (folder / "config.json").write_text('{"norm_num_groups": 4, "scaling_factor": 0.5}')
        codec = tmp_path / "eight.safetensors"
        typed(capsys, "convert", folder, "--out", codec)
        needs["sha256"] = load_codec(codec).fingerprint()
    told = {**checkpoint.read_header(run / "ckpt.safetensors"), "hdit.needs_codec": json.dumps(needs)}
    save_file(load_file(run / "ckpt.safetensors"), tmp_path / "lies.safetensors", told)
    words = ("sample", tmp_path / "lies.safetensors", "--codec", codec, "-n", 1, "--steps", 1, "--out", tmp_path / "x")
    said = typed(capsys, *words, code=4).err
    assert "its codec has other channels" in said or "the checkpoint needs latents of 4 channels" in said
    assert not (tmp_path / "x").exists()


def test_verify_reads_the_codec_of_a_run(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (kept,) = copy.glob("kl-vae-*.safetensors")
    assert f"{kept.name}" in typed(capsys, "verify", copy).out
    damaged = bytearray(kept.read_bytes())
    damaged[-1] ^= 1
    kept.write_bytes(damaged)
    assert "has other bytes than its name says" in typed(capsys, "verify", copy, code=4).err
    kept.unlink()
    assert f"{kept.name} is missing" in typed(capsys, "verify", copy, code=4).err


def test_a_run_from_another_codecs_weights_is_told_so(place, run, tiny_data, tmp_path):
    from hdit_cli.engine.training.init import match, read_source

    source = read_source(run)
    same, other = recipe_of(place), recipe_of(place, codec={"path": str(place / "other.safetensors")})
    words = "it learnt the latents of the codec"
    assert not any(words in note for note in match(source, same, classes=["blue", "red"]).notes)
    told = [note for note in match(source, other, classes=["blue", "red"]).notes if words in note]
    before, now = (load_codec(place / f"{name}.safetensors").fingerprint()[:8] for name in ("vae", "other"))
    assert told == [f"{words} {before}, and starts here with the latents of the codec {now}"]
