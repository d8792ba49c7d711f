"""Paella on a codec of tokens through the whole engine: train, go on, validate, sample, score, export; and what is refused."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tokens_run import K, token_codec, token_recipe

import hdit_cli
from hdit_cli import cli
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.sampling.generate import to_uint8
from hdit_cli.engine.sampling.painting import Paint
from hdit_cli.engine.sharing.export import to_safetensors, to_torch_export
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import UsageError


def typed(capsys, *words, code=0):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    printed = capsys.readouterr()
    assert stop.value.code == code, printed.err
    return printed


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_data):
    """A codec, another one, and a run on the first."""
    folder = tmp_path_factory.mktemp("tokens")
    for name, seed in (("codec", 0), ("other", 1)):
        token_codec(folder / f"{name}.safetensors", seed)
    validated = {"every": 4, "images": 6, "levels": 3, "path": str(held_out(folder))}
    recipe = token_recipe(folder / "codec.safetensors", validation=validated)
    train(folder / "run", recipe, data=tiny_data, watch=lambda event: None)
    return folder


def held_out(folder):
    from hdit_cli.data.prepare import PrepareOptions, prepare

    generator = torch.Generator().manual_seed(1)
    for name in ("red", "blue"):
        (folder / "others" / name).mkdir(parents=True)
        for i in range(3):
            pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy()
            Image.fromarray(pixels).save(folder / "others" / name / f"{i}.png")
    prepare(folder / "others", out=folder / "held-out", options=PrepareOptions(size=(16, 16)), workers=1)
    return folder / "held-out"


def digests(folder):
    newest = checkpoint.step_name(checkpoint.list_steps(folder)[-1])
    files = [folder / "metrics.jsonl", *sorted((folder / "samples").iterdir())]
    files += sorted((folder / "checkpoints" / newest).glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def afresh():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("afresh")
def test_resumed_is_unbroken(place, tiny_data, tmp_path):
    recipe = token_recipe(place / "codec.safetensors", validation={"every": 0}, train__accumulate=2)

    class Cut(Exception):
        pass

    def stop(event):
        if isinstance(event, events.Stepped) and event.step == 6:
            raise Cut

    train(tmp_path / "whole", recipe, data=tiny_data, watch=lambda event: None)
    with pytest.raises(Cut):
        train(tmp_path / "cut", recipe, data=tiny_data, watch=stop)
    train(tmp_path / "cut", recipe, data=tiny_data, watch=lambda event: None)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_come_to_the_weights_of_one(place, tiny_data, tmp_path):
    from safetensors.torch import load_file

    recipe = token_recipe(place / "codec.safetensors", validation={"every": 0}, train__sample_every=0)
    (tmp_path / "law.toml").write_text(recipe.to_toml())
    train(tmp_path / "one", recipe, data=tiny_data, watch=lambda event: None)
    words = ["train", "law.toml", "--data", str(tiny_data), "--run", "two", "--processes", "2", "--oversubscribe"]
    found = subprocess.run(
        [sys.executable, "-m", "hdit_cli", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    one, two = (load_file(tmp_path / name / "ckpt.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)


def test_validation_tells_loss_and_accuracy_by_level(place):
    lines = [json.loads(line) for line in (place / "run" / "validation.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"held-out", "training"} and lines[-1]["step"] == 8
    for line in lines:
        assert len(line["loss"]) == len(line["accuracy"]) == len(line["sigmas"]) == 3
        assert all(0 <= share <= 1 for share in line["accuracy"])
        assert line["sigmas"] == pytest.approx([0.2, 1, 5])  # t / (1 - t) of 1/6, 1/2, 5/6
    assert lines[0]["loss"] == pytest.approx([torch.tensor(float(K)).log().item()] * 3)


def test_samples_and_the_same_again(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("sample", place / "run", "-n", 4, "--class", "all", "--cfg", "8,4", "--temperature", "1.0,0.5")
    record = json.loads(typed(capsys, *words, "--out", "a", "--json").out)
    told = record["sampling"]
    assert (told["sampler"], told["cfg"], told["temperature"], told["steps"]) == ("paella", [8, 4], [1, 0.5], 3)
    assert not {"eta", "schedule", "typical"} & set(told)
    typed(capsys, "sample", "--from", "a/samples.json", "--out", "b")
    typed(capsys, *words, "--batch-size", 1, "--out", "c")
    for i in range(4):
        one, again, alone = ((tmp_path / name / f"{i:05d}.png").read_bytes() for name in "abc")
        assert one == again == alone
    assert len({(tmp_path / "a" / f"{i:05d}.png").read_bytes() for i in range(4)}) == 4
    words = ("--sampler", "paella-v1", "--typical", 0.4, "--renoise", "rand", "--renoise-steps", 1)
    told = json.loads(typed(capsys, "sample", place / "run", "-n", 2, *words, "--out", "d", "--json").out)["sampling"]
    assert (told["typical"], told["renoise"], told["renoise_steps"], told["temperature"]) == (0.4, "rand", 1, [1, 1])
    typed(capsys, "sample", "--from", "d/samples.json", "--out", "e")
    assert (tmp_path / "d/00001.png").read_bytes() == (tmp_path / "e/00001.png").read_bytes()
    typed(capsys, "sample", place / "run", "-n", 1, "--size", "24x8", "--out", "f")
    assert Image.open(tmp_path / "f/00000.png").size == (8, 24)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--eta", "0.5"], "--eta is for models that make numbers of noise, and paella draws tokens"),
        (["--schedule", "karras"], "--schedule is for models"),
        (["--cfg-interval", "1:2"], "--cfg-interval is for models"),
        (["--sampler", "euler"], "euler makes numbers of noise, and this model makes tokens"),
        (["--typical", "0.1"], "--typical is of paella-v1, and this is paella"),
        (["--temperature", "0,1"], "--temperature '0' is out of range"),
        (["--cfg", "1,2,3"], "--cfg '1,2,3' is not a number"),
        (["--interpolate-seeds", "0:1"], "between two seeds of tokens lies nothing"),
        (["--size", "18"], "18 is no multiple of 4"),
        (["--size", "20"], "sides must be multiples of 2"),
    ],
)
def test_what_means_nothing_is_refused(place, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    printed = typed(capsys, "sample", place / "run", *words, code=2)
    assert said in printed.err and not any(tmp_path.iterdir())


def test_settings_of_tokens_are_refused_elsewhere():
    from tiny_run import tiny_recipe

    for change, said in (
        ({"sample__temperature": [1.0, 0.5]}, "sample.temperature: is read by paella or paella-v1 alone"),
        ({"sample__cfg": [4.0, 2.0]}, "sample.cfg: must be one number for dpmpp-3m-sde"),
        ({"sample__sampler": "paella"}, 'is for task.type = "tokens"'),
        ({"task__type": "tokens"}, 'for a network of tokens: model.type = "paella"'),
    ):
        with pytest.raises(UsageError) as error:
            tiny_recipe(**change)
        assert said in error.value.message.replace("which ", "")
    assert "temperature" not in tiny_recipe().to_dict()["sample"]


def test_a_codec_of_other_tokens_is_refused(place, tiny_data, tmp_path):
    with pytest.raises(UsageError, match="tokens below 32"):
        recipe = token_recipe(place / "codec.safetensors", model__vocabulary=32)
        train(tmp_path / "run", recipe, data=tiny_data, watch=lambda event: None)


def test_scores_and_facts(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("eval-fid", place / "run", "-n", 4, "--metrics", "swd", "--allow-small", "--json")
    told = json.loads(typed(capsys, *words).out)
    assert told["scores"][0]["value"] > 0 and told["sampling"]["sampler"] == "paella"
    facts = json.loads(typed(capsys, "info", place / "run", "--json").out)
    assert (facts["network"], facts["task"], facts["vocabulary"]) == ("paella", "tokens", K)


def test_python(place):
    model = hdit_cli.load(place / "run", device="cpu")
    images = hdit_cli.generate(model, n=3, seed=1, cfg=(4.0, 2.0))
    assert images.shape == (3, 16, 16, 3)
    assert torch.equal(images[1:2], hdit_cli.generate(model, n=2, seed=1, cfg=(4.0, 2.0), steps=12)[1:2])
    with pytest.raises(UsageError, match="eta is for models"):
        hdit_cli.generate(model, n=1, eta=0.3)


def test_a_run_starts_from_another(place, tiny_data, tmp_path, capsys):
    """The same weights of blocks; of other widths nothing is taken."""
    from safetensors.torch import load_file

    little = {"train__steps": 1, "train__sample_every": 0, "optimizer": {"lr": 1e-9}}
    recipe = token_recipe(place / "codec.safetensors", **little)
    (tmp_path / "next.toml").write_text(recipe.to_toml())
    words = ("train", tmp_path / "next.toml", "--data", tiny_data, "--run", tmp_path / "run", "--init", place / "run")
    more = ("--set", "validation.every=0")
    typed(capsys, *words, *more)
    old, new = (load_file(path / "ckpt.safetensors") for path in (place / "run", tmp_path / "run"))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    printed = typed(capsys, *words, *more, "--fresh", "--set", "model.blocks=[1,2]", code=2)
    assert "model.blocks is [1, 1] there, [1, 2] here" in printed.err


# Edits


@pytest.fixture(scope="module")
def pictures(place):
    """A picture of 64x64, a mask that is white in its upper left quarter, and masks that cannot be laid on it."""
    folder = place / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "picture.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 16, 16))
    mask.save(folder / "mask.png")
    Image.new("L", (64, 64)).save(folder / "black.png")
    Image.new("L", (32, 64), 255).save(folder / "small.png")
    (folder / "text.png").write_text("no picture")
    return folder


def reconstructed(place, picture):
    codec = hdit_cli.load_codec(place / "codec.safetensors")
    x = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None] / 127.5 - 1
    return to_uint8(codec.decode(codec.encode(x)))[0].numpy()


REACH = 4 * 5  # pixels: as far as a token changes what is decoded around it


def test_painting_inside_a_picture(place, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--init-image", pictures / "picture.png", "--mask", pictures / "mask.png", "--size", 64, "-n", 2]
    record = json.loads(typed(capsys, "sample", place / "run", *words, "--out", "a", "--json").out)
    assert record["sampling"]["strength"] == 1 and record["mask"]["path"].endswith("mask.png")
    kept, wanted = np.array(Image.open("a/00001.png")), reconstructed(place, pictures / "picture.png")
    assert (kept[16 + REACH :] == wanted[16 + REACH :]).all() and (
        kept[:, 16 + REACH :] == wanted[:, 16 + REACH :]
    ).all()
    assert (kept[:16, :16] != wanted[:16, :16]).any()
    typed(capsys, "sample", "--from", "a/samples.json", "--out", "b")
    assert (tmp_path / "a/00001.png").read_bytes() == (tmp_path / "b/00001.png").read_bytes()
    printed = typed(
        capsys, "sample", "--from", "a/samples.json", "--mask", pictures / "small.png", "--out", "c", code=2
    )
    assert "is 64x32, and the picture 64x64" in printed.err


def test_painting_around_a_picture(place, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--init-image", pictures / "picture.png", "--outpaint", "16,0,8,24", "--size", 64, "-n", 1]
    record = json.loads(typed(capsys, "sample", place / "run", *words, "--out", "a", "--json").out)
    assert (record["outpaint"], record["sampling"]["size"]) == ([16, 0, 8, 24], [88, 88])
    found, wanted = np.array(Image.open("a/00000.png")), reconstructed(place, pictures / "picture.png")
    inner = found[:64, 16 : 16 + 64]
    assert (inner[: 64 - REACH, REACH : 64 - REACH] == wanted[: 64 - REACH, REACH : 64 - REACH]).all()
    typed(capsys, "sample", "--from", "a/samples.json", "--out", "b")
    assert (tmp_path / "a/00000.png").read_bytes() == (tmp_path / "b/00000.png").read_bytes()
    model = hdit_cli.load(place / "run", device="cpu")
    how = {"init_image": pictures / "picture.png", "outpaint": (16, 0, 8, 24), "size": (64, 64), "cfg": 2.0, "steps": 3}
    assert np.array_equal(hdit_cli.generate(model, n=1, label=record["images"][0]["class"], **how)[0].numpy(), found)


def test_margins_begin_with_the_border_of_the_picture():
    tokens, place = Paint(margins=(8, 4, 4, 0)).on(torch.tensor([[[1, 2], [3, 4]]]), factor=4)
    assert tokens.tolist() == [[[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]]
    assert place.tolist() == [[[True] * 5, *[[True, True, False, False, True]] * 2]]


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--mask", "mask.png"], "--mask needs a picture to start from", 2),
        (["--outpaint", "8,8,8,8"], "--outpaint needs a picture to start from", 2),
        (["--init-image", "picture.png", "--mask", "black.png"], "is black: there is nothing to paint", 2),
        (["--init-image", "picture.png", "--mask", "small.png"], "is 64x32, and the picture 64x64", 2),
        (["--init-image", "picture.png", "--mask", "text.png"], "cannot be used: not-a-picture", 3),
        (["--init-image", "picture.png", "--mask", "none.png"], "none.png", 3),
        (["--init-image", "picture.png", "--outpaint", "8,8,8"], "is not L,T,R,B", 2),
        (["--init-image", "picture.png", "--outpaint", "0,0,0,0"], "adds nothing", 2),
        (["--init-image", "picture.png", "--outpaint", "0,12,0,0"], "12 pixels on the top are no multiple of 8", 2),
        (["--init-image", "picture.png", "--outpaint", "3,0,0,0"], "the nearest is 8", 2),
        (["--size", "27"], "the nearest is --size 24x24", 2),
        (["--size", "4x68"], "the nearest is --size 8x64", 2),
        (["--temperature", "1,2,3"], "is not a number, nor two", 2),
        (["--cfg", "8,"], "is not a number, nor two", 2),
    ],
)
def test_paint_that_cannot_be_laid_on(place, pictures, words, said, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    printed = typed(capsys, "sample", place / "run", *words, "--out", tmp_path / "out", code=code)
    assert said in printed.err and "hint:" in printed.err and not (tmp_path / "out").exists()


def test_models_of_numbers_are_not_painted_in(pictures):
    from tiny_run import tiny_recipe

    recipe = tiny_recipe(model__classes=2)
    model = Model(build_task(build_network(recipe, classes=2), recipe).eval(), recipe.to_dict(), ["a", "b"])
    for how in ({"mask": pictures / "mask.png"}, {"outpaint": (8, 0, 0, 0)}):
        with pytest.raises(UsageError, match="is for models of tokens"):
            hdit_cli.generate(model, n=1, init_image=pictures / "picture.png", **how)


def test_between_classes(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed(capsys, "sample", place / "run", "--interpolate-classes", "red:blue", "-n", 3, "--out", "a")
    for frame, name in ((0, "red"), (2, "blue")):
        typed(capsys, "sample", place / "run", "--class", name, "-n", 1, "--out", name)
        assert (tmp_path / f"a/{frame:05d}.png").read_bytes() == (tmp_path / name / "00000.png").read_bytes()
    typed(capsys, "sample", "--from", "a/samples.json", "--out", "b")
    assert (tmp_path / "a/00001.png").read_bytes() == (tmp_path / "b/00001.png").read_bytes()


def test_texts_in_python(place):
    recipe = token_recipe(place / "codec.safetensors", model__classes=0, model__text_width=6)
    torch.manual_seed(0)
    network = build_network(recipe, classes=0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = Model(
        build_task(network, recipe).eval(), recipe.to_dict(), latents=hdit_cli.load_codec(place / "codec.safetensors")
    )
    texts, how = torch.randn(3, 2, 6), {"n": 3, "steps": 3, "cfg": 4.0, "same_numbers": True}
    found = hdit_cli.generate(model, conditions={"byt5": texts}, **how)
    alone = [hdit_cli.generate(model, conditions={"byt5": texts[i : i + 1]}, **{**how, "n": 1})[0] for i in range(3)]
    assert torch.equal(found, torch.stack(alone)) and len({image.numpy().tobytes() for image in alone}) > 1
    other = hdit_cli.generate(model, conditions={"byt5": texts}, negative={"byt5": texts[:1]}, **how)
    assert not torch.equal(found, other)
    for wrong, said in (({"clip": texts[:, 0]}, "is not told 'clip'"), ({"byt5": texts[:2]}, "2 rows for 3 images")):
        with pytest.raises(UsageError, match=said):
            hdit_cli.generate(model, conditions=wrong, **how)


def test_exports(place, tmp_path):
    model = hdit_cli.load(place / "run", device="cpu")
    assert to_safetensors(model, tmp_path / "a.safetensors", dtype="fp32").error == 0


@pytest.mark.slow
def test_exported_program(place, tmp_path):
    model = hdit_cli.load(place / "run", device="cpu")
    assert to_torch_export(model, tmp_path / "a.pt2", dtype="fp32").error < 1e-4
    network = torch.export.load(tmp_path / "a.pt2").module()
    x, t, label = torch.randint(K, (5, 4, 4)), torch.rand(5), torch.zeros(5, dtype=torch.int64)
    assert torch.allclose(network(x, t, label), model.network(x, t, label), atol=1e-4)
