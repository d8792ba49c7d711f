"""The commands as a newcomer types them: each finds what the one before it made, and names the next one."""

import json
import os
import shutil
import tomllib

import pytest

from hdit_cli import cli
from hdit_cli.commands import following
from hdit_cli.recipe import load_recipe, recipe_text, shipped


def typed(capsys, *words):
    """Exit code, stdout and stderr of one command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def next_of(text):
    """The words of the `next:` line, which is the last one and the only one."""
    (line,) = [line for line in text.splitlines() if line.startswith("next: hdit ")]
    return line.removeprefix("next: hdit ")


@pytest.mark.parametrize("name", ["recipes/flowers256.toml", "./recipes/flowers256.toml", "recipes/smoke/tiny.toml"])
def test_a_shipped_recipe_stands_in_for_a_file_that_is_not_there(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped_name = name.removeprefix("./").removeprefix("recipes/").removesuffix(".toml")
    assert load_recipe(name) == load_recipe(shipped_name)
    code, _, err = typed(capsys, "info", name)
    assert (code, err.count(f"this is the recipe {shipped_name} that comes with hdit")) == (0, 1)
    code, _, err = typed(capsys, "train", name)
    assert code == 3  # the data is what is missing
    assert f"this is the recipe {shipped_name} that comes with hdit" in err


def test_a_recipe_of_ones_own_is_never_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in (
        "mine/flowers256.toml",
        "flowers256.toml",
        "recipes/flowers257.toml",
        f"{tmp_path}/recipes/flowers256.toml",
    ):
        code, _, err = typed(capsys, "train", name)
        assert (code, "error: no recipe" in err) == (2, True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "flowers256.toml").write_text(recipe_text("flowers256").replace("5e-4", "1e-4"))
    assert load_recipe("recipes/flowers256.toml").optimizer.lr == 1e-4


def test_what_prepare_makes_is_what_the_recipe_looks_for():
    for name, (path, classes) in following.SHIPPED.items():
        recipe = load_recipe(name)
        assert (recipe.data.path, recipe.model.classes) == (path, classes)
    assert {name for pair in following.RECIPES.values() for name in pair} == set(following.SHIPPED)
    for side, pair in following.RECIPES.items():
        assert {load_recipe(name).model.size for name in pair} == {(side, side)}
    for name in shipped():  # the line that the header gives makes the folder that the recipe names
        told = tomllib.loads(recipe_text(name))
        path = told.get("data", {}).get("path", "")
        assert not path or "codec" in told or path.endswith(str(load_recipe(name).model.size[0]))


def test_each_command_names_one_that_succeeds(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "flowers")
    code, out, err = typed(capsys, "prepare", "./flowers", "--size", "64", "--workers", "1")
    assert code == 0
    assert next_of(err) == "train flowers64-cpu"
    assert "next:" not in out
    small = ["steps=1", "save_every=1", "sample_every=0", "batch_size=2"]
    small = [word for pair in small for word in ("--set", f"train.{pair}")] + ["--set", "optimizer.warmup=0"]
    code, out, err = typed(capsys, *next_of(err).split(), *small)
    assert code == 0
    assert next_of(err) == "sample runs/flowers64-cpu"
    code, out, err = typed(capsys, *next_of(err).split(), "-n", "2", "--steps", "1", "--json")
    assert code == 0
    json.loads(out)
    assert next_of(err) == "eval-fid runs/flowers64-cpu"
    code, out, err = typed(capsys, *next_of(err).split(), "-n", "2", "--steps", "1", "--metrics", "swd")
    assert (code, out.startswith("SWD")) == (0, True)


def test_other_sizes_and_places_are_named(tmp_path):
    words = following.after_prepare(tmp_path / "my set", size=(192, 256), classes=0)
    assert words == ["train", "flowers256", "--data", str(tmp_path / "my set"), "--set", "model.size=[192,256]"]
    assert load_recipe(words[1], [words[5]]).model.size == (192, 256)
    words = following.after_prepare(tmp_path / "x", size=(32, 32), classes=3)
    assert words[-1] == "model.classes=data"
    words = following.after_prepare(tmp_path / "x", size=(64, 64), classes=0)
    assert words[-1] == "model.classes=0"


@pytest.fixture
def two_runs(made, tmp_path, monkeypatch):
    """A working folder with `runs/older` and `runs/newer`, and one that was set aside."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("newer", "older", "newer.old-1")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        file = shutil.copy(made / "run" / "ckpt.safetensors", tmp_path / "runs" / name)
        os.utime(file, (1e9 - age, 1e9 - age))
    return tmp_path


def test_a_bare_checkpoint_is_the_only_one_under_runs(two_runs, made, capsys):
    score = ("-n", "2", "--steps", "1", "--metrics", "swd", "--reference", made / "data")
    code, _, err = typed(capsys, "eval-fid", "ckpt.safetensors", *score)
    assert code == 4
    assert "runs/newer/ckpt.safetensors, runs/older/ckpt.safetensors, the newest first" in err
    assert "old-1" not in err
    shutil.rmtree(two_runs / "runs" / "older")
    code, _, err = typed(capsys, "eval-fid", "ckpt.safetensors", *score)
    assert code == 0
    assert "this is runs/newer/ckpt.safetensors, the only one under runs/" in err
    for words in (["info"], ["sample", "-n", "1", "--steps", "1"], ["export"]):
        code, _, err = typed(capsys, *words[:1], "ckpt.safetensors", *words[1:])
        assert (code, err.count("the only one under runs/")) == (0, 1)


def test_a_checkpoint_that_is_not_there_leads_on(two_runs, capsys):
    for name in ("runs/newest/ckpt.safetensors", "elsewhere/ckpt.safetensors", "nothing"):
        code, _, err = typed(capsys, "sample", name)
        assert (code, "runs/newer/ckpt.safetensors" in err) == (4, True)
    code, _, err = typed(capsys, "sample", "older")
    assert (code, "did you mean runs/older?" in err) == (4, True)
    shutil.rmtree(two_runs / "runs")
    code, _, err = typed(capsys, "sample", "ckpt.safetensors")
    assert (code, "`hdit train RECIPE` makes one" in err) == (4, True)


def test_missing_data_names_what_makes_it_or_what_there_is(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, tmp_path / "flowers")
    code, _, err = typed(capsys, "train", "flowers64-cpu")
    assert (code, "`hdit prepare flowers --size 64 --out data/flowers64` makes it" in err) == (3, True)
    code, _, err = typed(capsys, "train", "smoke/tiny")
    assert (code, "`hdit prepare YOUR_PICTURES --size 32` makes it, and name it with --data" in err) == (3, True)
    code, _, err = typed(capsys, "prepare", "flowers", "--size", "64", "--out", "data/mine", "--workers", "1")
    assert code == 0
    code, _, err = typed(capsys, "train", "flowers64-cpu")
    assert (code, "--data data/mine has pictures of the size" in err) == (3, True)
    assert not (tmp_path / "runs").exists()
