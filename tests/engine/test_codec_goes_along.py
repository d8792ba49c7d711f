"""The codec of a network of latents goes where its weights go, and is found where it lies later."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_latent_diffusion import place, random_codec, recipe_of, typed  # noqa: F401  (a fixture)

from hdit_cli.engine.load import load
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.run.codec_file import load_codec
from hdit_cli.engine.training.loop import train
from hdit_cli.engine.training.setup import check_same_codec, open_data
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.codecs import kl_vae_names


@pytest.fixture(scope="module")
def averaged(place, tiny_data):  # noqa: F811
    """A run of latents that keeps snapshots of its averages."""
    recipe = recipe_of(
        place,
        ema={"stds": [0.05, 0.1], "snapshot_every": 2},
        train__steps=4,
        train__sample_every=0,
        train__save_every=4,
    )
    train(place / "averaged", recipe, data=tiny_data, watch=lambda event: None)
    return place / "averaged"


def test_an_average_written_elsewhere_has_its_codec_beside(averaged, tmp_path, capsys):
    told = typed(capsys, "ema", averaged, "--std", "0.07,0.08", "--out", tmp_path / "out").out
    (codec,) = (tmp_path / "out").glob("kl-vae-*.safetensors")
    assert told.count(f"codec {codec}") == 1
    average = tmp_path / "out" / "ema-0.070.safetensors"
    assert not load(average).codec.pictures()
    typed(capsys, "sample", average, "-n", 1, "--steps", 1, "--out", tmp_path / "pictures")
    lost = tmp_path / "lost"
    shutil.copytree(averaged, lost)
    next(lost.glob("kl-vae-*.safetensors")).unlink()
    told = typed(capsys, "ema", lost, "--std", "0.07", "--out", tmp_path / "later").err
    assert f"{codec.name} is not in {lost}" in told


def test_a_model_card_names_the_codec(averaged, tmp_path, capsys):
    typed(capsys, "export", averaged, "--out", tmp_path / "out" / "x.safetensors", "--no-grid")
    (codec,) = (tmp_path / "out").glob("kl-vae-*.safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| codec | `{codec.name}`, SHA-256 `{load_codec(codec).fingerprint()}`: needed beside the file" in card


def test_samples_are_made_again_after_the_codec_was_moved(place, averaged, tmp_path, capsys):  # noqa: F811
    """Where it was is gone: it is found beside the checkpoint by its SHA-256, else --codec says where it is."""
    codec, alone = tmp_path / "codec.safetensors", tmp_path / "model" / "ckpt.safetensors"
    alone.parent.mkdir()
    shutil.copy(place / "vae.safetensors", codec)
    header = checkpoint.read_header(averaged / "ckpt.safetensors")
    for needs in ({}, {"hdit.needs_codec": header["hdit.needs_codec"]}):  # as it was converted, and as it was trained
        plain = {key: value for key, value in header.items() if key != "hdit.needs_codec"}
        save_file(load_file(averaged / "ckpt.safetensors"), alone, plain | needs)
        first, moved = tmp_path / f"first-{len(needs)}", tmp_path / "moved.safetensors"
        words = ("sample", alone, "--codec", codec, "-n", 1, "--steps", 1, "--out", first)
        assert f"next: hdit eval-fid {alone} --codec {codec}" in typed(capsys, *words).err
        codec.rename(moved)
        again = ("sample", "--from", first / "samples.json", "--out")
        said = typed(capsys, *again, tmp_path / "x", code=2 if needs else 4).err
        assert "is not at hand" in said and "--codec FILE" in said
        typed(capsys, *again, tmp_path / f"told-{len(needs)}", "--codec", moved)
        pictures = [(first / "00000.png").read_bytes(), (tmp_path / f"told-{len(needs)}" / "00000.png").read_bytes()]
        if needs:
            shutil.copy(moved, alone.parent / f"kl-vae-{load_codec(moved).fingerprint()[:8]}.safetensors")
            typed(capsys, *again, tmp_path / "beside")
            pictures.append((tmp_path / "beside" / "00000.png").read_bytes())
        assert len(set(pictures)) == 1
        moved.rename(codec)


def test_buckets_that_do_not_fit_are_told_in_pixels(place, tmp_path, capsys):  # noqa: F811
    """What the hint says of `hdit prepare` is of pictures, and helps: its pictures are trained on."""
    random = np.random.default_rng(0)
    (tmp_path / "source").mkdir()
    for number, size in enumerate([(32, 48), (32, 32), (48, 32), (32, 32)]):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "source" / f"{number}.png")

    def made(*words):
        out = tmp_path / f"data-{len(words)}-{words[-1]}"
        typed(capsys, "prepare", tmp_path / "source", *words, "--out", out, "--workers", 1)
        return out

    recipe = recipe_of(place, train__batch_size=2, model__classes=0)
    with pytest.raises(UsageError, match=r"pictures of 18x14, and of their latents, 9x7, a side must be") as caught:
        open_data(recipe, made("--size", "16", "--buckets", "--bucket-step", "2"))
    assert "`hdit prepare SRC --size 16x16 --buckets --bucket-step 4`" in caught.value.hint
    assert open_data(recipe, made("--size", "16x16", "--buckets", "--bucket-step", "4")).buckets


def test_the_seams_of_a_network_of_latents_are_looked_for_in_pixels(averaged, capsys):
    """Patches of 2 x 2 latents are 4 x 4 pixels of a codec with a factor of 2."""
    words = ("eval-fid", averaged, "-n", 4, "--steps", 1, "--metrics", "patch-grid", "--allow-small", "--json")
    details = json.loads(typed(capsys, *words).out)["scores"][0]["details"]
    assert (details["patch_height"], details["patch_width"]) == (4, 4)


def test_a_run_whose_header_lies_of_its_codec_does_not_go_on(place, averaged, tmp_path):  # noqa: F811
    """Even where hashes were made to fit: one sentence, and no traceback."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    whole = averaged / "checkpoints" / "step-00000004" / "model.safetensors"
    told = {**checkpoint.read_header(whole), "hdit.needs_codec": "5"}
    save_file(load_file(whole), folder / "model.safetensors", told)
    with pytest.raises(CheckpointError, match="its codec is no table"):
        check_same_codec(folder, load(averaged), run=averaged)


def test_a_whole_model_may_hold_whole_numbers_beside_its_codec(place, tmp_path, capsys):  # noqa: F811
    """As the text encoder of a Stable Diffusion file does: its positions."""
    parts = kl_vae_names.to_ldm(random_codec(0).state_dict())
    whole = {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in parts.items()}
    save_file({**whole, "cond_stage_model.position_ids": torch.arange(4)}, tmp_path / "sd.safetensors")
    (tmp_path / "config.json").write_text('{"norm_num_groups": 4, "scaling_factor": 0.5, "shift_factor": 0.1}')
    words = ("convert", tmp_path / "sd.safetensors", "--config", tmp_path / "config.json", "--out")
    typed(capsys, *words, tmp_path / "codec.safetensors")
    assert load_codec(tmp_path / "codec.safetensors").sha256 == load_codec(place / "vae.safetensors").sha256
