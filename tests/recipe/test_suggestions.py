"""A mistyped key is answered with the key that was meant; a recipe drawn at random survives being written and read."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe, load_recipe
from hdit_cli.recipe.recipe import _key_tree


def typos(key):
    """One letter lost, two letters swapped, a letter doubled, capitals, no underscore."""
    middle = len(key) // 2
    yield key[:middle] + key[middle + 1 :]
    yield key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :]
    yield key[:middle] + key[middle] + key[middle:]
    yield key.upper()
    yield key.replace("_", "")


def mistyped():
    """(path of the right key, path of the wrong one), for every key of four letters and more."""
    for section, keys in _key_tree().sections.items():
        path = [str(part) for part in section]
        path = path[:1] + path[2:] if path[:1] in (["model"], ["task"]) else path
        path = path[:2] if path[:2] == ["diffusion", "density"] else path + ["0"] * (path[-1:] == ["levels"])
        for key in keys:
            if len(key) >= 4 and not (section and section[-1] in ("lognormal", "split-lognormal")):
                yield from ((path, section, key, typo) for typo in typos(key) if typo not in keys)


def test_suggestions():
    cases = list(mistyped())
    assert len(cases) > 250
    right = 0
    for path, section, key, typo in cases:
        overrides = [f"diffusion.density.type={section[-1]}"] if path[:2] == ["diffusion", "density"] else []
        if section[:1] in (("model",), ("task",)) and len(section) > 1:
            overrides = [f"{section[0]}.type={section[1]}"]
        with pytest.raises(UsageError) as caught:
            load_recipe("flowers256", [*overrides, f"{'.'.join([*path, typo])}=1"])
        right += f"did you mean '{key}'" in caught.value.message or f"{key} is one" in caught.value.message
    assert right / len(cases) >= 0.95


def test_a_key_in_the_wrong_table_is_told_its_own():
    for wrong, told in {
        "train.lr": "optimizer.lr is one",
        "model.path": "data.path is one",
        "optimizer.precision": "train.precision is one",
        "diffusion.kernel": "model.levels.kernel is one",
    }.items():
        with pytest.raises(UsageError, match=told):
            load_recipe("flowers256", [f"{wrong}=1"])


head_dims = st.sampled_from([8, 16, 64])


@st.composite
def recipes(draw):
    """Valid raw recipes: some keys given, the others left to their defaults."""
    levels = []
    for _ in range(draw(st.integers(1, 3))):
        head_dim = draw(head_dims)
        level = {"depth": draw(st.integers(1, 4)), "width": head_dim * draw(st.integers(1, 4)), "head_dim": head_dim}
        level["attention"] = draw(st.sampled_from(["neighborhood", "global", "shifted-window", "none"]))
        level |= draw(st.fixed_dictionaries({}, optional={"d_ff": st.integers(1, 999), "dropout": st.floats(0, 0.9)}))
        levels.append(level)
    patch = draw(st.sampled_from([1, 2, [4, 2]]))
    unit = 8 * 2 ** (len(levels) - 1)
    height, width = (p * unit * draw(st.integers(1, 3)) for p in (patch if isinstance(patch, list) else (patch, patch)))
    model = {"size": [height, width], "patch": patch, "levels": levels}
    model |= draw(
        st.fixed_dictionaries({}, optional={"classes": st.sampled_from([0, 7, "data"]), "mapping_width": st.just(32)})
    )
    accumulate = draw(st.integers(1, 4))
    low, high = draw(st.floats(1e-4, 1)), draw(st.floats(2, 1e4))
    density = draw(st.sampled_from(["cosine", "cosine-interpolated", "lognormal", "loglogistic", "loguniform"]))
    return {
        "model": model,
        "diffusion": {"sigma_min": low, "sigma_max": high, "density": {"type": density}},
        "train": {"batch_size": accumulate * draw(st.integers(1, 9)), "accumulate": accumulate},
        "optimizer": {"lr": draw(st.floats(1e-9, 1)), "betas": [draw(st.floats(0, 0.99)), 0.5]},
        "data": {"path": draw(st.text(st.characters(min_codepoint=32, exclude_categories=["Cc", "Cs"]), max_size=9))},
    }


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(raw=recipes())
def test_dump_and_load_is_the_identity(raw, tmp_path):
    recipe = Recipe.from_dict(raw)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).to_toml() == recipe.to_toml()
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
