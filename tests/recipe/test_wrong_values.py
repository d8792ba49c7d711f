"""Every key of a recipe with values that are wrong: what is said is ours, in TOML's words, whatever the key and the value."""

import datetime
import re
from typing import Any

import pytest
from pydantic import ValidationError

from hdit_cli.errors import UsageError
from hdit_cli.recipe import Recipe, load_recipe

WRONG = (
    None, True, -1, 1.5, 10**30, float("nan"), float("inf"), "", "no such thing", "a\nb", "\ud800", [], [None, 3], [[1]],
    ["x"], {}, {"a": True}, {"type": "x"}, {"type": 3}, datetime.date(2020, 1, 2), datetime.time(1, 2),
)  # fmt: skip
PYTHON = re.compile(r"\b(None|True|False|tuple|dict|datetime|NoneType|bytes|input|valid|instance)\b")
DENSITIES = ("cosine", "cosine-interpolated", "lognormal", "loglogistic", "loguniform", "split-lognormal")


def paths(value: Any, path: tuple = ()):
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths(entry, (*path, key))


def put(value: Any, path: tuple, wrong: Any) -> Any:
    if not path:
        return wrong
    changed = value.copy()
    changed[path[0]] = put(value[path[0]], path[1:], wrong)
    return changed


def check(values: Any) -> int:
    """1 where the values are refused, in our own words; 0 where they are a recipe."""
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        ours = ("sentence", "problems")  # kinds whose words are those of a section
        foreign = [found["msg"].lower() for found in error.errors(include_url=False) if found["type"] not in ours]
    else:
        return 0
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict(values)
    message = caught.value.message
    assert not [text for text in foreign if " " in text and text in message.lower()], message
    assert not PYTHON.search(message), message
    assert caught.value.hint
    return 1


def test_every_key_with_wrong_values():
    base = load_recipe("smoke/tiny").to_dict()
    places = [path for path in paths(base) if path[:2] != ("diffusion", "density")]
    assert sum(check(put(base, path, wrong)) for path in places for wrong in WRONG) > 10 * len(places)


@pytest.mark.parametrize("kind", DENSITIES)
def test_every_option_of_a_density(kind):
    base = load_recipe("smoke/tiny").to_dict()
    needed = {"loc": 0.0, "scale_1": 1.0, "scale_2": 1.0} if kind == "split-lognormal" else {}
    base = Recipe.from_dict(put(base, ("diffusion", "density"), {"type": kind, **needed})).to_dict()
    places = [("diffusion", "density", *path) for path in paths(base["diffusion"]["density"])]
    assert sum(check(put(base, path, wrong)) for path in places for wrong in WRONG) > 10 * len(places)


def test_a_key_left_out_or_unknown():
    base = load_recipe("smoke/tiny").to_dict()
    for path in paths(base):
        if path and isinstance(path[-1], str):
            check(put(base, path[:-1], {**at(base, path[:-1]), path[-1] + "_x": 1}))
            check(put(base, path[:-1], {key: value for key, value in at(base, path[:-1]).items() if key != path[-1]}))


def at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    ("key", "wrong", "told"),
    [
        (("name",), "", "name: must not be empty"),
        (("train", "steps"), datetime.date(2020, 1, 2), "must be a whole number, is the date 2020-01-02"),
        (("train", "steps"), [True, None, {"a": 1}], "must be a whole number, is the list [true, nothing, {a = 1}]"),
        (("train", "precision"), True, "true is not known here; one of: bf16, fp32, fp64"),
        (("data", "path"), "\ud800", "has a character that no text file can hold"),
    ],
)
def test_what_is_said(key, wrong, told):
    with pytest.raises(UsageError) as caught:
        Recipe.from_dict(put(load_recipe("smoke/tiny").to_dict(), key, wrong))
    assert told in caught.value.message
