"""Recipes: what is accepted, what is filled in, and that a dump read back is the same recipe."""

import dataclasses
import json
import math

import pytest
from pydantic import ValidationError

from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe, diff, load_recipe, recipe_text, shipped

SMALL = """
[model]
size = [32, 48]
patch = 2
[[model.levels]]
depth = 1
width = 128
[[model.levels]]
depth = 2
width = 192
"""


def write(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_shipped_names():
    wanted = "cifar10 ffhq1024-85m flowers256 flowers256-class flowers64-cpu imagenet128 imagenet256-557m smoke/tiny"
    assert set(wanted.split()) <= set(shipped())
    assert shipped() == sorted(shipped(), key=lambda name: ("/" in name, name))


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipe(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name.rpartition("/")[2]
    assert load_recipe(write(tmp_path, recipe.to_toml())) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    header = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    for fact in ("data", "hardware", "time", "images", "score", "command"):
        assert any(line.startswith(f"# {fact} ") for line in header), f"the header of {name} does not tell the {fact}"


def test_defaults_are_filled_in(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL))
    assert recipe.name == "mine"
    assert recipe.model.patch == (2, 2) and recipe.to_dict()["model"]["patch"] == 2
    assert [level.d_ff for level in recipe.model.levels] == [384, 576]
    assert [level.attention for level in recipe.model.levels] == ["neighborhood", "global"]
    assert recipe.model.mapping_d_ff == 768
    assert [recipe.model.map_size(level) for level in (0, 1)] == [(16, 24), (8, 12)]
    assert recipe.optimizer.mapping_lr_scale == 1 / 3
    assert "null" not in json.dumps(recipe.to_dict())


def test_density_is_filled_in_from_the_rest(tmp_path):
    path = write(tmp_path, SMALL)
    interpolated = load_recipe(path).diffusion.density
    assert interpolated.type == "cosine-interpolated"
    assert interpolated.options() == {
        "image_size": 48, "noise_d_low": 32, "noise_d_high": 48, "sigma_data": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3,
    }  # fmt: skip
    wide = load_recipe(path, ["diffusion.sigma_min=1e-4", "diffusion.sigma_max=2000"]).diffusion.density.options()
    assert (wide["sigma_min"], wide["sigma_max"]) == (1e-4, 2000)
    for given, options in {
        "cosine": {"sigma_data": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3},
        "lognormal": {"loc": -1.2, "scale": 1.2},
        "loglogistic": {"loc": math.log(0.5), "scale": 0.5, "sigma_min": 1e-3, "sigma_max": 1e3},
        "loguniform": {"sigma_min": 1e-2, "sigma_max": 80.0},
    }.items():
        assert load_recipe(path, [f"diffusion.density.type={given}"]).diffusion.density.options() == options
    split = load_recipe(path, ["diffusion.density={type='split-lognormal', loc=0, scale_1=1, scale_2=2}"])
    assert split.diffusion.density.options() == {"loc": 0.0, "scale_1": 1.0, "scale_2": 2.0}


def test_frozen(tmp_path):
    recipe = load_recipe("smoke/tiny")
    with pytest.raises(ValidationError):
        recipe.train.steps = 3
    assert not dataclasses.is_dataclass(recipe) and isinstance(recipe.model.levels, tuple)


def test_extends_merges_tables_and_replaces_lists(tmp_path):
    child = load_recipe("flowers256-class")
    base = load_recipe("flowers256")
    assert diff(base.to_dict(), child.to_dict()) == [
        'name: "flowers256" -> "flowers256-class"',
        'model.classes: 0 -> "data"',
    ]
    text = 'extends = "flowers256"\nmodel.levels = [{ depth = 1, width = 64 }]\n'
    text += 'diffusion.density = { type = "lognormal" }\n'
    recipe = load_recipe(write(tmp_path, text))
    assert len(recipe.model.levels) == 1 and recipe.train.batch_size == 32
    assert recipe.diffusion.density.options() == {"loc": -1.2, "scale": 1.2}


def test_extends_one_level_only(tmp_path):
    with pytest.raises(UsageError, match=r":1: extends: .*one level"):
        load_recipe(write(tmp_path, 'extends = "flowers256-class"'))
    with pytest.raises(UsageError, match=r":1: extends: no recipe 'flower256'") as caught:
        load_recipe(write(tmp_path, 'extends = "flower256"'))
    assert "flowers256" in caught.value.hint


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.steps=7", lambda r: r.train.steps, 7),
        ("optimizer.lr=1e-4", lambda r: r.optimizer.lr, 1e-4),
        ("optimizer.betas=[0.8, 0.9]", lambda r: r.optimizer.betas, (0.8, 0.9)),
        ("train.precision=fp64", lambda r: r.train.precision, "fp64"),
        ("train.stop_after=20m", lambda r: r.train.stop_after_seconds, 1200.0),
        ("train.deterministic=true", lambda r: r.train.deterministic, True),
        ("data.path=data/a b", lambda r: r.data.path, "data/a b"),
        ("data.path=2024-01-01", lambda r: r.data.path, "2024-01-01"),
        ("data.path=", lambda r: r.data.path, ""),
        ("data.path=a=b", lambda r: r.data.path, "a=b"),
        ('data.path="123"', lambda r: r.data.path, "123"),
        ("model.levels.1.depth=3", lambda r: r.model.levels[1].depth, 3),
        ("model.classes=7", lambda r: r.model.classes, 7),
        ("model.patch=[4, 2]", lambda r: r.model.patch, (4, 2)),
        (" train.steps = 9 ", lambda r: r.train.steps, 9),
    ],
)
def test_set(override, read, value):
    assert read(load_recipe("smoke/tiny", [override])) == value


def test_set_in_order_and_type_first():
    recipe = load_recipe("smoke/tiny", ["train.steps=1", "train.steps=2"])
    assert recipe.train.steps == 2
    overrides = ["diffusion.density.loc=1", "diffusion.density.type=lognormal"]
    assert load_recipe("flowers256", overrides).diffusion.density.options() == {"loc": 1.0, "scale": 1.2}


def test_a_name_of_its_own(tmp_path):
    assert load_recipe(write(tmp_path, 'name = "first"\n' + SMALL)).name == "first"
    assert load_recipe(write(tmp_path, SMALL, "odd:name?.toml")).name == "odd-name-"
    with pytest.raises(UsageError, match="name"):
        load_recipe(write(tmp_path, 'name = "../up"\n' + SMALL))


def test_diff():
    old, new = load_recipe("smoke/tiny").to_dict(), load_recipe("smoke/tiny").to_dict()
    assert diff(old, new) == []
    new["train"]["batch_size"] = 64
    new["model"]["levels"][1]["depth"] = 3
    del new["ema"]["power"]
    assert diff(old, new) == ["model.levels.1.depth: 1 -> 3", "train.batch_size: 16 -> 64", "ema.power: 0.75 -> none"]


def test_a_recipe_of_timesteps_can_be_given_another_size():
    """What is filled in for one size does not count as chosen for another."""
    values = load_recipe("dit-b4-pixels").to_dict()
    values["model"]["size"] = [64, 64]
    assert Recipe.from_dict(values).model.size == (64, 64)
