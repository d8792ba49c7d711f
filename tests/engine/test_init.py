"""`--init`: every way of going on with a trained model starts below a new one, and says what it took over."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_recipe

import hdit_cli
from hdit_cli.data.prepare import PrepareOptions, prepare
from hdit_cli.engine.model import Model, build_network, build_task
from hdit_cli.engine.run import checkpoint, events
from hdit_cli.engine.training.beginning import read_record
from hdit_cli.engine.training.init import Source, apply, match, read_source
from hdit_cli.engine.training.loop import train
from hdit_cli.errors import CheckpointError, UsageError
from hdit_cli.models.grow import averaging, grow, lower_noise

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220), "green": (40, 200, 60), "white": (230, 230, 230)}
OUTSIDE = {"depth": 1, "width": 16, "head_dim": 8, "attention": "neighborhood", "kernel": 3}


def pictures(root, classes, *, size=16, count=12):
    """A data set of noisy coloured squares on grey, prepared."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / "source" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((16, 16, 3), 90.0)
            top, left = generator.integers(0, 8, 2)
            pixels[top : top + 8, left : left + 8] = COLOURS[name]
            pixels = np.clip(pixels + generator.integers(-10, 10, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(
                root / "source" / name / f"{i}.png"
            )
    options = PrepareOptions(size=(size, size), format="png")
    prepare(root / "source", out=root / "data", options=options, workers=1)
    return root / "data"


def recipe_for(steps=4, **changes):
    fixed = {"train__steps": steps, "train__save_every": 1000, "train__sample_every": 0, "train__log_every": 1}
    return tiny_recipe(**{**fixed, "train__batch_size": 16, "optimizer__warmup": 0, **changes})


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder, recipe, data, init=None):
    seen = []
    train(folder, recipe, data=data, watch=seen.append, init=init)
    return seen


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("two"), ["red", "blue"])


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(folder, recipe_for(80), data)
    return folder


@pytest.fixture(scope="module")
def unconditional(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unconditional") / "run"
    run(folder, recipe_for(80, model__classes=0), data)
    return folder


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run of two steps, for tests of what is taken over and not of how good it is."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(folder, recipe_for(2), data)
    return folder


LEVELS = tiny_recipe().to_dict()["model"]["levels"]
LARGER = {"model__size": [32, 32]}
CASES = {
    "same": ("trained", ["red", "blue"], 16, {}),
    "other classes": ("trained", ["green", "white"], 16, {}),
    "more classes": ("trained", ["red", "green", "blue", "white"], 16, {}),
    "conditional": ("unconditional", ["red", "blue"], 16, {}),
    "unconditional": ("trained", ["red", "blue"], 16, {"model__classes": 0}),
    "one more level": ("trained", ["red", "blue"], 32, {**LARGER, "model__levels": [OUTSIDE, *LEVELS]}),
    "same levels, larger": ("trained", ["red", "blue"], 32, LARGER),
    "larger patches": ("trained", ["red", "blue"], 32, {**LARGER, "model__patch": 4}),
    "deeper": ("trained", ["red", "blue"], 16, {"model__levels": [{**LEVELS[0], "depth": 2}, LEVELS[1]]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_starts_below_a_new_run(case, request, tmp_path):
    source, classes, size, changes = CASES[case]
    source = request.getfixturevalue(source)
    data = pictures(tmp_path, classes, size=size)
    recipe = recipe_for(**changes)
    seen = run(tmp_path / "init", recipe, data, init=source)
    run(tmp_path / "new", recipe, data)
    first, new = losses(tmp_path / "init"), losses(tmp_path / "new")
    assert first[0] < 0.8 * new[0]
    assert sum(first) < 0.8 * sum(new)
    begun = [event for event in seen if isinstance(event, events.Begun)]
    assert len(begun) == 1
    assert f"starts from {source}: ema weights, step 80" in begun[0].lines[0]


# What comes over, exactly


def model_of(recipe, classes, seed=0):
    """A model with random weights everywhere."""
    torch.manual_seed(seed)
    network = build_network(recipe, classes=len(classes) if recipe.model.classes == "data" else 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Model(build_task(network, recipe).eval().requires_grad_(False), recipe.to_dict(), list(classes))


def begin_from(old, recipe, classes):
    torch.manual_seed(9)
    network = build_network(recipe, classes=len(classes) if recipe.model.classes == "data" else 0)
    new = Model(build_task(network, recipe).eval().requires_grad_(False), recipe.to_dict(), list(classes))
    source = Source(old, "old.safetensors", "0" * 64)
    found = match(source, recipe, classes=classes)
    apply(new, source, found)
    return new, found


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
SIGMA = torch.tensor([0.05, 0.4, 3.0, 40.0])


def test_classes_are_matched_by_name():
    old = model_of(tiny_recipe(), ["a", "b", "c"])
    new, found = begin_from(old, tiny_recipe(), ["c", "x", "a"])
    table, before = new.network.class_emb.weight, old.network.class_emb.weight
    assert torch.equal(table, before[[2, 3, 0, 3]])  # an unknown class starts as "no class"
    for theirs, ours in ((2, 0), (0, 2), (3, 1), (3, 3)):
        label = torch.full((4,), ours)
        expected = old.network(X, SIGMA, label=torch.full((4,), theirs))
        assert torch.equal(new.network(X, SIGMA, label=label), expected)
    assert found.rows == (2, None, 0)
    text = "\n".join(found.lines())
    assert "classes kept: c, a" in text
    assert 'classes new, starting as "no class": x' in text
    assert "classes left: b" in text
    assert found.table["classes"] == {"loaded": (3, 48), "fitted": (1, 16), "left": (1, 16)}


def test_where_no_label_was_ever_dropped_the_mean_stands_for_no_class():
    recipe = tiny_recipe().to_dict()
    recipe["diffusion"]["class_dropout"] = 0.0
    old = dataclasses.replace(model_of(tiny_recipe(), ["a", "b"]), recipe=recipe)
    new, _ = begin_from(old, tiny_recipe(), ["a", "x"])
    mean = old.network.class_emb.weight[:2].mean(0)
    assert torch.equal(new.network.class_emb.weight, torch.stack([old.network.class_emb.weight[0], mean, mean]))


def test_with_and_without_classes_the_function_is_the_same():
    plain = tiny_recipe(model__classes=0)
    old = model_of(tiny_recipe(), ["a", "b"])
    new, found = begin_from(old, plain, [])
    torch.testing.assert_close(new.network(X, SIGMA), old.network(X, SIGMA), rtol=1e-4, atol=1e-5)
    assert 'old "no class"' in found.lines()[-1]
    back, found = begin_from(new, tiny_recipe(), ["a", "b"])
    for label in range(3):
        assert torch.equal(back.network(X, SIGMA, label=torch.full((4,), label)), new.network(X, SIGMA))
    assert "start at zero" in found.lines()[-1]


def test_deeper_levels_compute_the_same():
    old = model_of(tiny_recipe(), ["a"])
    deeper = tiny_recipe(model__levels=[{**LEVELS[0], "depth": 3}, {**LEVELS[1], "depth": 2}])
    new, found = begin_from(old, deeper, ["a"])
    assert torch.equal(new.network(X, SIGMA), old.network(X, SIGMA))
    assert set(found.table["level 0"]) == {"loaded", "new"}


def test_counts_add_up():
    """Every tensor of the new network is loaded, fitted or new; every one of the old one loaded, used or left."""
    old = model_of(tiny_recipe(), ["a", "b"])
    for levels in ([OUTSIDE, *LEVELS], LEVELS, LEVELS[1:], [LEVELS[0], {**LEVELS[1], "depth": 3}]):
        patch = 4 if len(levels) == 1 else 2
        recipe = tiny_recipe(model__size=[32, 32], model__levels=levels, model__patch=patch)
        new, found = begin_from(old, recipe, ["a", "c", "d"])
        total = sum(
            cells.get(kind, (0, 0))[1] for cells in found.table.values() for kind in ("loaded", "fitted", "new")
        )
        assert total == sum(t.numel() for t in new.network.state_dict().values())
        assert new.network(torch.randn(1, 3, 32, 32), SIGMA[:1]).isfinite().all()


# Levels outside


def test_a_level_outside_works_on_the_averaged_picture():
    """With wide new levels and no skip it is the old network on the smaller picture, up to the length in the last norm."""
    old = model_of(tiny_recipe(model__classes=0), [])
    wide = {**OUTSIDE, "width": 64}
    for levels, size in (([wide, *LEVELS], 32), ([wide, wide, *LEVELS], 64)):
        recipe = tiny_recipe(model__classes=0, model__size=[size, size], model__levels=levels)
        new, found = begin_from(old, recipe, [])
        for split in new.network.splits[: len(levels) - 2]:
            split.fac.fill_(1.0)
        times = size // 16
        x = torch.nn.functional.interpolate(X, scale_factor=times)
        expected = old.network(X * times**0.5, SIGMA) / times**0.5
        out = new.network(x, SIGMA * times)
        small = torch.nn.functional.avg_pool2d(out, times)
        agree = float((small * expected).sum() / (small.norm() * expected.norm()))
        assert agree > 0.97
        assert float(small.norm() / expected.norm()) == pytest.approx(1, abs=0.25)
        assert found.table["level 0"].keys() == {"fitted", "new"}


def test_the_noise_level_is_shifted_exactly():
    old = model_of(tiny_recipe(model__classes=0), [])
    new = model_of(tiny_recipe(model__classes=0), [])
    with torch.no_grad():
        lower_noise(new.network, 2.0)
    torch.testing.assert_close(new.network(X, SIGMA * 2), old.network(X, SIGMA), rtol=1e-4, atol=1e-4)


def test_larger_patches_are_the_old_network_on_the_averaged_picture():
    old = model_of(tiny_recipe(model__classes=0), [])
    new, _ = begin_from(old, tiny_recipe(model__classes=0, model__size=[32, 32], model__patch=4), [])
    x = torch.randn(4, 3, 32, 32)
    small = torch.nn.functional.avg_pool2d(x, 2)
    expected = torch.nn.functional.interpolate(old.network(small * 2**0.5, SIGMA), scale_factor=2) / 2**0.5
    torch.testing.assert_close(new.network(x, SIGMA * 2), expected, rtol=1e-3, atol=1e-4)


def test_averaging():
    mean = averaging((2, 1), (2, 3), channels=3)
    x = torch.randn(4 * 3 * 3, dtype=torch.float64)
    expected = x.reshape(2, 2, 1, 3, 3).mean(dim=(1, 3)).flatten()
    torch.testing.assert_close(mean @ x, expected)


def test_patches_that_do_not_lie_over_each_other_are_new():
    old = model_of(tiny_recipe(model__classes=0, model__patch=2), [])
    odd = tiny_recipe(model__classes=0, model__size=[12, 12], model__patch=3)
    new, found = begin_from(old, odd, [])
    assert found.table["patches"].keys() == {"new", "left"}
    assert torch.equal(new.network(torch.randn(1, 3, 12, 12), SIGMA[:1]), torch.zeros(1, 3, 12, 12))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__mapping_width": 32}, "model.mapping_width is 16 there, 32 here"),
        ({"model__mapping_d_ff": 32}, "model.mapping_d_ff is 48 there, 32 here"),
        ({"model__mapping_depth": 0}, "model.mapping_depth is 1 there, 0 here"),
        ({"model__levels": [LEVELS[0], {**LEVELS[1], "width": 64, "d_ff": 192}]}, "width 32 there, 64 here"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    old = model_of(tiny_recipe(), ["a"])
    with pytest.raises(UsageError, match=words):
        match(Source(old, "old.safetensors", ""), tiny_recipe(**changes), classes=["a"])


# The run


def short(steps=4, **changes):
    return recipe_for(steps, train__save_every=2, **changes)


def raw_of(folder):
    return folder / "checkpoints" / "step-00000002" / "model.safetensors"


def test_a_run_goes_on_without_its_source(begun, data, tmp_path):
    source = tmp_path / "source.safetensors"
    shutil.copy(begun / "ckpt.safetensors", source)
    run(tmp_path / "whole", short(), data, init=source)
    run(tmp_path / "cut", short(2), data, init=source)
    source.unlink()
    seen = run(tmp_path / "cut", short(), data, init=source)
    assert not [event for event in seen if isinstance(event, events.Begun)]
    for name in ("metrics.jsonl", "ckpt.safetensors", "init.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    run(tmp_path / "cut", short(6), data)  # and without the option
    model = hdit_cli.load(tmp_path / "cut", device="cpu")
    assert model.data["init"] == read_record(tmp_path / "cut")["source"]
    assert model.data["init"]["step"] == 2


def test_another_source_is_refused_once_the_run_has_started(begun, data, tmp_path):
    run(tmp_path / "run", short(2), data, init=begun)
    run(tmp_path / "run", short(), data, init=begun / "ckpt.safetensors")  # the same by its content
    with pytest.raises(UsageError, match="goes on from its own checkpoint"):
        run(tmp_path / "run", short(6), data, init=raw_of(begun))
    run(tmp_path / "new", short(2), data)
    with pytest.raises(UsageError, match="was started without --init"):
        run(tmp_path / "new", short(), data, init=begun)
    with pytest.raises(UsageError, match="lies in the run"):
        run(tmp_path / "run", short(6), data, init=tmp_path / "run" / "ckpt.safetensors")


def test_a_run_that_never_saved_starts_from_the_same_again(begun, data, tmp_path):
    source = tmp_path / "source.safetensors"
    shutil.copy(begun / "ckpt.safetensors", source)
    run(tmp_path / "whole", short(), data, init=source)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole" / "init.json", tmp_path / "run")
    run(tmp_path / "run", short(), data)
    for name in ("metrics.jsonl", "ckpt.safetensors", "init.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copy(tmp_path / "whole" / "ckpt.safetensors", source)
    with pytest.raises(UsageError, match="has changed since"):
        run(tmp_path / "run", short(), data)


def test_the_average_starts_from_the_loaded_weights_and_raw_files_are_taken_as_they_are(begun, data, tmp_path):
    raw = raw_of(begun)
    assert read_source(raw).model.weights == "raw"
    assert read_source(begun).model.weights == "ema"
    still = {"optimizer__lr": 1e-9, "optimizer__weight_decay": 0.0}
    run(tmp_path / "run", recipe_for(1, **still), data, init=raw)
    before, _ = checkpoint.read_tensors(raw)
    after, _ = checkpoint.read_tensors(tmp_path / "run" / "ckpt.safetensors")
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


def test_what_is_no_checkpoint_leaves_no_run(data, tmp_path):
    (tmp_path / "x.safetensors").write_text("hello")
    for name in ("x.safetensors", "none"):
        with pytest.raises(CheckpointError):
            run(tmp_path / "run", short(), data, init=tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_growing_twice_is_deterministic():
    old = model_of(tiny_recipe(model__classes=0), []).network
    recipe = tiny_recipe(model__classes=0, model__size=[32, 32], model__levels=[OUTSIDE, *LEVELS])
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        network = build_network(recipe, classes=0)
        grow(network, old, levels=1)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
