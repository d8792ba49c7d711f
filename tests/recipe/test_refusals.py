"""Recipes that must stop: at once, all problems together, each with file, line, key and the nearest valid value."""

import os
import random
import time

import pytest

from hdit_cli.errors import HditError, UsageError
from hdit_cli.recipe import Recipe, load_recipe, recipe_text, shipped


def refused(name_or_path, overrides=()):
    with pytest.raises(UsageError) as caught:
        load_recipe(str(name_or_path), overrides)
    assert caught.value.hint and caught.value.exit_code == 2
    return caught.value.message


def test_all_problems_at_once_with_lines(tmp_path):
    text = (
        recipe_text("smoke/tiny")
        .replace("batch_size = 16\npre", "batchsize = 16\npre")
        .replace("depth = 1", "depth = 0")
    )
    text += "\n[sampel]\nsteps = 3\n"
    path = tmp_path / "mine.toml"
    path.write_text(text)
    lines = text.splitlines()
    depths = [number for number, line in enumerate(lines, start=1) if line == "depth = 0"]
    message = refused(path, ["optimizer.lr=fast", "train.preicsion=bf16"])
    assert message.splitlines()[0] == f"6 problems in {path}:"
    assert f"{path}:{depths[0]}: model.levels.0.depth: must be at least 1, is 0" in message
    assert f"{path}:{depths[1]}: model.levels.1.depth: must be at least 1, is 0" in message
    assert (
        f"{path}:{lines.index('batchsize = 16') + 1}: train.batchsize: unknown key, did you mean 'batch_size'?"
        in message
    )
    assert f"{path}:{lines.index('[sampel]') + 1}: sampel: unknown key, did you mean 'sample'?" in message
    assert "--set optimizer.lr=fast: must be a number, is the text 'fast'" in message
    assert "--set train.preicsion=bf16: unknown key, did you mean 'precision'?" in message


def test_base_and_child_are_told_apart(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "flowers256"\n[model]\nsize = [256, 250]\n')
    assert refused(path).startswith(f"{path}:3: model.size.1: must be a multiple of 16")
    path.write_text('extends = "flowers256"\n[model]\nmapping_widht = 3\n')
    assert refused(path) == f"{path}:3: model.mapping_widht: unknown key, did you mean 'mapping_width'?"
    path.write_text('extends = "flowers256"\n[diffusion]\nsigma_min = 500.0\n')
    assert refused(path).startswith(f"{path}:3: diffusion.sigma_min: must be below sigma_max 160")


SEMANTIC = [
    ("model.size=[250, 256]", "the nearest is 256"),
    ("model.size=[8, 256]", "the nearest is 16"),
    ("model.size=[256]", "missing"),
    ("model.size=256", "must be a list"),
    ("model.patch=[4, 3]", "the nearest is 252"),
    ("model.patch=0", "at least 1"),
    ("model.levels.0.width=200", "the nearest is 192"),
    ("model.levels.0.head_dim=12", "the nearest is 16"),
    ("model.levels.0.kernel=65", "the largest is 64"),
    ("model.levels.0.dropout=1.0", "below 1.0"),
    ("model.levels.0.attention=neighbourhood", "did you mean 'neighborhood'?"),
    ("model.levels={}", "must be a list"),
    ("model.levels=[]", "at least 1"),
    ("model.levels.2={depth=4, width=512, attention='shifted-window', window=7}", "the nearest is 8"),
    ("model.mapping_width=255", "the nearest is 256"),
    ("model.classes=-1", "must be 0"),
    ("model.classes=dat", "must be 0"),
    ("model.classes=true", "must be 0"),
    ("model.type=unet", "one of: hdit"),
    ("diffusion.sigma_min=160", "below sigma_max"),
    ("diffusion.sigma_max=inf", "finite"),
    ("diffusion.density.sigma_min=1e4", "below sigma_max"),
    ("diffusion.density.type=cosinee", "did you mean 'cosine'?"),
    ("diffusion.density={type='lognormal', sigma_min=1}", "known: type, loc, scale"),
    ("diffusion.weighting=soft-snr", "soft-min-snr"),
    ("diffusion.class_dropout=1.5", "at most 1.0"),
    ("train.accumulate=5", "the nearest is 4"),
    ("train.save_every=0", "at least 1"),
    ("train.steps=1.5", "whole number"),
    ("train.steps=1000000000000000000000000000000", "at most"),
    ("train.deterministic=1", "true or false"),
    ("train.deterministic=False", "true or false, is the text 'False'"),
    ("train.stop_after=20 minutes", "must be a time"),
    ("train.precision=fp16", "one of: bf16, fp32, fp64"),
    ("optimizer.warmup=200000", "at most train.steps 100000"),
    ("optimizer.betas=[0.9, 1.0]", "below 1.0"),
    ("optimizer.lr=nan", "finite"),
    ("optimizer.lr=0", "above 0.0"),
    ("ema.max_decay=1.1", "at most 1.0"),
    ("sample.sampler=ddim", "one of: euler"),
    ("sample.sampler=dpmpp-2m-sd", "did you mean 'dpmpp-2m-sde'?"),
    ("eval.metrics=[]", "at least 1"),
    ("eval.metrics=[fid]", "must be a list"),
    ("eval.metrics=['fid', 'fid']", "twice"),
    ("eval.metrics=['fidd']", "did you mean 'fid'?"),
    ("eval.features='vgg'", "names no feature net"),
    ("eval.features=''", "names no feature net"),
    ("data.path=123", "text in quotes"),
    ("data.workers=-1", "at least 0"),
    ("lr=1e-4", "optimizer.lr is one"),
    ("model.batch_size=4", "train.batch_size is one"),
    ("train", "key=value"),
    ("=3", "key=value"),
    ("train..steps=3", "key=value"),
    ("train.steps.x=3", "is a value, not a table"),
    ("model.levels.3.depth=1", "(0..2)"),
    ("model.levels.x.depth=1", "(0..2)"),
    ("train.steps=" + "9" * 5000, "out of range"),
    ("train.steps=" + "[" * 5000, "out of range"),
]


@pytest.mark.parametrize(("override", "part"), SEMANTIC, ids=[entry[0][:40] for entry in SEMANTIC])
def test_impossible_values(override, part):
    message = refused("flowers256", [override])
    assert part in message and (override[:30].strip() in message or "model.size.1" in message) and len(message) < 600


def test_problems_of_one_section_are_told_together():
    overrides = ["model.levels.0.kernel=65", "model.levels.1.width=200", "model.mapping_width=255"]
    assert all(override in refused("flowers256", overrides) for override in overrides)


def test_from_dict_names_the_key():
    values = load_recipe("smoke/tiny").to_dict()
    values["train"]["steps"] = "many"
    with pytest.raises(UsageError, match=r"^train\.steps: must be a whole number"):
        Recipe.from_dict(values)


def test_missing_sections_and_keys(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 3\n")
    assert refused(path) == f"{path}: model: missing, and it has no default"
    path.write_text("\n[model]\nsize = [32, 32]\nlevels = [{ depth = 1 }]\n")
    assert refused(path) == f"{path}:4: model.levels.0.width: missing, and it has no default"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("flower256", "'flowers256'"),
        ("smoke/tinny", "'smoke/tiny'"),
        ("tiny", "tiny"),
        ("flowers256.toml", "without .toml"),
    ],
)
def test_unknown_name_suggests(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_recipe(name)
    assert hint in caught.value.hint


# Abuse: each is refused with exit code 2, quickly, and never by a traceback

ABUSE = {
    "empty": b"",
    "arrays": b"x = " + b"[" * 3000 + b"]" * 3000,
    "arrays-legal-depth": b"x = " + b"[" * 60 + b"]" * 60,
    "inline": b"x = " + b"{a=" * 3000 + b"1" + b"}" * 3000,
    "dotted": b".".join([b"a"] * 5000) + b" = 1",
    "dotted-inline": b"x = {" + b" . ".join([b"a-'"] * 15000) + b" = 1}",
    "header": b"[" + b".".join([b"a"] * 5000) + b"]",
    "digits": b"x = " + b"9" * 5000,
    "bom": b"\xef\xbb\xbf[model]\n",
    "utf16": "[model]\n".encode("utf-16"),
    "nul": b"[model]\n\0",
    "bad-utf8": b"[model]\nx = '\xff'\n",
    "surrogate": b'x = "\\ud800"',
    "large": b"# " + b"x" * (2 << 20),
    "many-keys": b"\n".join(b"k%d = 1" % number for number in range(5000)),
    "date": b"[train]\nsteps = 2024-01-01\n",
    "no-date": b"[train]\nsteps = 2024-99-01\n",
    "twice": b"[train]\nsteps = 1\nsteps = 2\n",
    "long-string": b'[data]\npath = "' + b"x" * 60_000 + b'"',
    "control": b'[data]\npath = "a\\u0000b"\n',
    "not-toml": b"steps: 3\n",
}


@pytest.mark.parametrize("case", ABUSE)
def test_abuse(case, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(ABUSE[case])
    start = time.monotonic()
    message = refused(path)
    assert time.monotonic() - start < 2
    assert str(path) in message and len(message) < 5000


def test_line_of_a_syntax_error(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[train]\nsteps = 3\nseed = \n")
    assert refused(path).startswith(f"{path}:3: not valid TOML: ")
    path.write_bytes(b"[model]\n\nx = '\xff'\n")
    assert refused(path) == f"{path}:3: is not UTF-8 text"


def test_folder_fifo_and_missing(tmp_path):
    assert "is not a recipe file" in refused(tmp_path)
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    assert "is not a recipe file" in refused(fifo)
    assert "no recipe" in refused(tmp_path / "absent.toml")
    assert "no recipe" in refused("a\0b")
    assert "no recipe" in refused("")
    assert "no recipe" in refused("x" * 5000)


def mutated(data, rng):
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out))
        action = rng.randrange(3)
        if action == 0:
            out[place] = rng.randrange(256)
        elif action == 1:
            del out[place]
        else:
            out.insert(place, rng.choice(b"[]{}=.,\"'#\n\\0e-"))
    return bytes(out)


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_recipes_load_or_are_refused(rounds, tmp_path):
    rng = random.Random(0)
    path = tmp_path / "mutated.toml"
    texts = [recipe_text(name).encode() for name in shipped()]
    refusals = 0
    for _ in range(rounds):
        path.write_bytes(mutated(rng.choice(texts), rng))
        try:
            recipe = load_recipe(str(path))
        except HditError as error:
            refusals += 1
            assert error.exit_code == 2 and str(path) in error.message
        else:
            assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert 0 < refusals < rounds  # both happened


def leaves(value, path=""):
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield from leaves(below, f"{path}.{key}".lstrip("."))
    if not isinstance(value, (dict, list)):
        yield path, value


ODD = [
    "true",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "9223372036854775808",
    "1" + "0" * 30,
    '""',
    '"x"',
    "[]",
    "[1]",
    "{}",
    "2024-01-01",
]


@pytest.mark.parametrize("name", ["smoke/tiny", pytest.param("smoke/shifted-window", marks=pytest.mark.slow)])
def test_every_field_refuses_what_its_type_does_not_allow(name):
    for key, value in leaves(load_recipe(name).to_dict()):
        if key in ("name", "data.path") or key == "train.stop_after":
            continue
        for odd in ODD:
            try:
                recipe = load_recipe(name, [f"{key}={odd}"])
            except HditError as error:
                assert error.exit_code == 2
                continue
            found = dict(leaves(recipe.to_dict())).get(key, odd)
            same_kind = isinstance(found, type(value)) or key in (
                "model.patch",
                "model.classes",
                "train.seed",
                "train.compile",
            )
            assert same_kind, f"{key} = {odd} was taken for {found!r}"
            assert odd not in ("nan", "inf") and "000000" not in odd, f"{key} has no bound"


DIT = {"model": {"type": "dit", "size": [32, 32], "width": 64, "heads": 2}, "task": {"type": "ddpm"}}


@pytest.mark.parametrize(
    "section, changes, said",
    [
        ("task", {"timesteps": 20}, "task.timesteps: must be at least 21"),  # its last beta would be 1
        ("task", {"cfg_channels": 4}, "task.cfg_channels: is 4, and an image has 3 channels"),
        ("sample", {"sampler": "ddim", "steps": 1001}, "sample.steps: must be at most task.timesteps 1000"),
        ("model", {"width": 66, "heads": 3}, "the nearest is 72"),  # of 4 and of the heads
        ("model", {"width": 64, "heads": 3}, "the nearest is 60"),
    ],
)
def test_a_recipe_of_timesteps_that_cannot_be(section, changes, said):
    values = {**DIT, section: {**DIT.get(section, {}), **changes}}
    with pytest.raises(UsageError) as refused:
        Recipe.from_dict(values)
    assert said in refused.value.message


def test_the_fewest_timesteps_and_the_most_steps_can_be():
    values = {**DIT, "task": {"type": "ddpm", "timesteps": 21}, "sample": {"sampler": "ddpm", "steps": 21}}
    assert Recipe.from_dict(values).to_dict()["task"]["timesteps"] == 21
    Recipe.from_dict({**values, "sample": {"sampler": "heun", "steps": 50}})  # goes over noise levels
