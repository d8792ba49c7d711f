"""Sampling from a picture, between samples, and again from a record."""

import itertools
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_generate import make

from hdit_cli import runtime
from hdit_cli.engine.run import checkpoint
from hdit_cli.engine.sampling.blend import Blend, Point, slerp, way
from hdit_cli.engine.sampling.collect import Order, collect, load_for, prepare
from hdit_cli.engine.sampling.generate import generate
from hdit_cli.engine.sampling.picture import read_picture_for
from hdit_cli.engine.sampling.recorded import read_order
from hdit_cli.errors import DataError, UsageError
from hdit_cli.recipe.sections import OF_TOKENS
from hdit_cli.tasks.sampling import Sampling


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    checkpoint.save_inference(path, model)
    return path


@pytest.fixture
def picture(tmp_path):
    """40 x 24, left half red, right half blue."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 200
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


# From a picture


def test_a_picture_is_read_by_the_rules_of_data_sets(tmp_path, picture):
    x0 = read_picture_for(picture, size=(16, 16), channels=3).x0
    assert x0.shape == (1, 3, 16, 16)
    assert x0[0, 0, 8, 0] == pytest.approx(200 / 127.5 - 1)  # red on the left
    assert x0[0, 2, 8, 15] == pytest.approx(200 / 127.5 - 1)  # blue on the right
    turned = Image.open(picture)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise: the left side comes to the top
    turned.save(tmp_path / "turned.png", exif=exif)
    x0 = read_picture_for(tmp_path / "turned.png", size=(16, 16), channels=3).x0
    assert x0[0, 0, 0, 8] == pytest.approx(200 / 127.5 - 1)
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture_for(tmp_path / "clear.png", size=(8, 8), channels=3).x0.min() == 1  # white
    assert read_picture_for(picture, size=(8, 12), channels=1).x0.shape == (1, 1, 8, 12)


def test_what_is_no_picture_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_picture_for(tmp_path / "none.png", size=(8, 8), channels=3)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="not-a-picture"):
        read_picture_for(tmp_path / "text.png", size=(8, 8), channels=3)


@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "heun"])
def test_the_stronger_the_further_from_the_picture(model, picture, sampler):
    x0 = read_picture_for(picture, size=(16, 16), channels=3).x0
    distances = []
    for strength in (0.05, 0.2, 0.35, 0.5):
        images = generate(model, n=4, steps=20, sampler=sampler, label="a", init_image=picture, strength=strength)
        pictures = images.permute(0, 3, 1, 2) / 127.5 - 1
        distances.append(float((pictures - x0).square().mean().sqrt()))
    assert distances == sorted(distances)
    assert distances[0] < 0.02
    assert distances[-1] > 0.2


def test_full_strength_is_nearly_generation(model, picture):
    plain = generate(model, n=4, steps=8, label="a").float()
    pictured = generate(model, n=4, steps=8, label="a", init_image=picture, strength=1.0).float()
    assert 0 < float((plain - pictured).abs().mean()) < 8


def test_steps_that_are_run(model):
    for steps, strength, run in ((50, 1.0, 50), (50, 0.6, 30), (5, 0.01, 1), (7, 0.5, 4)):
        sigmas = model.task.sigmas(Sampling(steps=steps, strength=strength))
        assert len(sigmas) == run + 1
        assert sigmas[-1] == 0
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="strength"):
            generate(model, n=1, steps=2, strength=wrong, init_image="x.png")
    with pytest.raises(UsageError, match="needs a picture"):
        generate(model, n=1, steps=2, strength=0.5)


# Between samples


def test_slerp_keeps_the_length_and_the_ends():
    a, b = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    for t in (0.1, 0.5, 0.8):
        assert float(slerp(a, b, t).std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(slerp(a, a, 0.5), a)


def test_places_are_even_and_pass_through_every_end():
    blend = Blend(tuple(Point(seed, None) for seed in (3, 5, 9)), 9)
    places = [blend.place(i) for i in range(9)]
    assert [a.seed + (b.seed - a.seed) * t for a, b, t in places] == [3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]
    assert (places[0][2], places[-1][2]) == (0.0, 1.0)


@pytest.mark.parametrize("sampler", ["dpmpp-3m-sde", "dpmpp-2m"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_ends_are_the_plain_samples(model, tmp_path, sampler, cfg):
    """To the pixel at the same batch size, with stochastic samplers too."""
    options = {"steps": 4, "sampler": sampler, "cfg": cfg, "batch_size": 1}
    order = Order("x", Sampling(**options), n=5, seeds=(2, 7), classes=("c", "a"))
    collect(model, order, out=tmp_path, sha256="")
    frames = [np.asarray(Image.open(tmp_path / f"{i:05d}.png")) for i in range(5)]
    for frame, seed, label in ((0, 2, "c"), (4, 7, "a")):
        assert np.array_equal(frames[frame], generate(model, n=1, seed=seed, label=label, **options)[0].numpy())
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)]
    assert max(steps) < np.abs(frames[0].astype(int) - frames[4]).mean()  # no jump


def test_seeds_alone_keep_the_classes_that_each_would_have(model, tmp_path):
    options = {"steps": 3, "batch_size": 1}
    seeds = (0, 1, 4, 11)
    collect(model, Order("x", Sampling(**options), n=4, seeds=seeds), out=tmp_path, sha256="")
    for i, seed in enumerate(seeds):
        frame = np.asarray(Image.open(tmp_path / f"{i:05d}.png"))
        assert np.array_equal(frame, generate(model, n=1, seed=seed, **options)[0].numpy())


def test_classes_alone_keep_the_noise(model):
    content = prepare(model, Order("x", Sampling(seed=4, steps=2), n=3, classes=("a", "2")))
    assert content.labels.tolist() == [[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 1, 0]]
    assert content.names == ["a", "50%", "c"]
    noise = content.draw("sample/start", [0, 1, 2], (2,), like=torch.empty(0))
    plain = runtime.normal(4, "sample/start", [0], (2,), like=torch.empty(0))
    assert torch.equal(noise, plain.expand(3, 2))


def test_unconditional_models_blend_seeds(tmp_path):
    plain = make((), model__classes=0)
    record = collect(plain, Order("x", Sampling(steps=2), n=3, seeds=(0, 1)), out=tmp_path, sha256="")
    assert record["images"][1]["between"] == [{"seed": 0}, {"seed": 1}]
    assert Image.open(tmp_path / "strip.png").width > 2 * Image.open(tmp_path / "strip.png").height
    with pytest.raises(UsageError, match="no classes"):
        prepare(plain, Order("x", Sampling(), n=3, classes=("a", "b")))


def test_what_does_not_go_together(model):
    def refused(match, **changes):
        options = {"seeds": (), "classes": (), "label": None, "sampling": Sampling(), "frames": 5, **changes}
        with pytest.raises(UsageError, match=match):
            way(model, **options)

    refused("at least two", seeds=(1,))
    refused("pair up", seeds=(1, 2, 3), classes=("a", "b"))
    refused("fewer than the 3 ends", seeds=(1, 2, 3), frames=2)
    refused("one --class", seeds=(1, 2), label="all")
    refused("one --class", classes=("a", "b"), label="a")
    refused("unknown class 'x'", classes=("a", "x"))


# Again from a record


def test_every_kind_of_record_makes_the_same_images_again(saved, picture, tmp_path, monkeypatch):
    """Every field of `Sampling` and of `Order` differs from its default in one of them."""
    monkeypatch.setattr(torch, "compile", lambda plain, **_: plain)  # a record is the same whatever a compiler makes
    plain = Sampling(
        seed=4,
        steps=4,
        sampler="euler-ancestral",
        schedule="exponential",
        eta=0.5,
        cfg=2.0,
        cfg_interval=(0.1, 9.0),
        cfg_channels=2,
    )
    kinds = {
        "plain": Order(str(saved), replace(plain, size=(20, 16), batch_size=2), 3, "b"),
        "picture": Order(str(saved), Sampling(steps=6, rho=5.0, strength=0.5), 2, "all", init_image=str(picture)),
        "seeds": Order(str(saved), Sampling(steps=2, compile=True), 3, "c", seeds=(1, 2)),
        "classes": Order(str(saved), Sampling(steps=2, precision="bf16"), 4, classes=("a", "b", "c")),
        "both": Order(str(saved), plain, 3, seeds=(1, 2), classes=("a", "b"), init_image=str(picture)),
    }
    default = Sampling()
    same = {f.name for f in fields(Sampling)} - {
        f.name
        for o in kinds.values()
        for f in fields(Sampling)
        if getattr(o.sampling, f.name) != getattr(default, f.name)
    }
    assert same == {*OF_TOKENS}  # which are in records of models of tokens alone: test_token_runs
    for name, order in kinds.items():
        model, sha256 = load_for(order)
        collect(model, order, out=tmp_path / name, sha256=sha256)
        recorded = read_order(tmp_path / name / "samples.json")
        assert recorded.order == order
        model, _ = load_for(recorded.order, sha256=recorded.sha256)
        content = prepare(model, recorded.order, init_sha256=recorded.init_sha256)
        collect(model, recorded.order, out=tmp_path / "again" / name, sha256=sha256, content=content)
        for file in (tmp_path / name).iterdir():
            assert file.read_bytes() == (tmp_path / "again" / name / file.name).read_bytes()


def test_records_without_the_newer_facts_are_read(saved, tmp_path):
    order = Order(str(saved), Sampling(steps=2), 1, "b")
    model, sha256 = load_for(order)
    record = collect(model, order, out=tmp_path, sha256=sha256)
    for name in ("init_image", "interpolate", "overview"):
        del record[name]
    del record["sampling"]["strength"]
    (tmp_path / "old.json").write_text(json.dumps(record))
    assert read_order(tmp_path / "old.json").order == order


def test_a_picture_that_changed_is_told(saved, picture, tmp_path):
    order = Order(str(saved), Sampling(steps=2, strength=0.5), 1, "b", init_image=str(picture))
    model, sha256 = load_for(order)
    collect(model, order, out=tmp_path / "s", sha256=sha256)
    recorded = read_order(tmp_path / "s" / "samples.json")
    Image.new("RGB", (20, 20), "green").save(picture)
    with pytest.raises(DataError, match="has changed"):
        prepare(model, recorded.order, init_sha256=recorded.init_sha256)


def test_a_record_names_classes(saved, tmp_path):
    model, _ = load_for(Order(str(saved), Sampling()))
    record = collect(model, Order(str(saved), Sampling(steps=1), 1, "2"), out=tmp_path, sha256="")
    assert record["label"] == "c"
    record = collect(model, Order(str(saved), Sampling(steps=1), 2, classes=("0", "1")), out=tmp_path, sha256="")
    assert record["interpolate"]["classes"] == ["a", "b"]
    assert record["images"][1] == {
        "file": "00001.png", "index": 1, "between": [{"seed": 0, "class": "a"}, {"seed": 0, "class": "b"}], "place": 1.0
    }  # fmt: skip
