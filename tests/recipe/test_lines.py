"""The key scanner against `tomllib`: every key that the parser finds has a line, and that line holds the key."""

import tomllib

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from hdit_cli.recipe.lines import key_lines

TRICKY = '''# comment with = and [brackets]
top = "a = b # no comment"

[data]        # header
path = """
[not.a.table]
x = 1
"""           # the next key stands on line 9
flip = true
'quoted key' = 'lit # eral'
"with \\"quote" = 1

[a.b]
c.d = 3
inline = { x = 1, y = { z = [1, 2] } }
many = [
    { first = 1 },  # line 17
    { second = 2, third = [
        3,
    ] },
]

[[model.levels]]
depth = 1
[model.levels.extra]
deep = 1
[[model.levels]]
depth = 2
'''

EXPECTED = {
    ("top",): 2,
    ("data",): 4,
    ("data", "path"): 5,
    ("data", "flip"): 9,
    ("data", "quoted key"): 10,
    ("data", 'with "quote'): 11,
    ("a", "b", "c", "d"): 14,
    ("a", "b", "inline", "y", "z", 1): 15,
    ("a", "b", "many", 0, "first"): 17,
    ("a", "b", "many", 1, "second"): 18,
    ("a", "b", "many", 1, "third", 0): 19,
    ("model", "levels", 0): 23,
    ("model", "levels", 0, "depth"): 24,
    ("model", "levels", 0, "extra", "deep"): 26,
    ("model", "levels", 1): 27,
    ("model", "levels", 1, "depth"): 28,
}


def paths(value, path=()):
    """Every key path of a parsed TOML value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield (*path, key)
        yield from paths(below, (*path, key))


def test_lines_of_a_tricky_text():
    lines = key_lines(TRICKY)
    assert {path: lines[path] for path in EXPECTED} == EXPECTED
    assert set(lines) == set(paths(tomllib.loads(TRICKY)))


values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_every_key_has_a_line(table):
    text = tomli_w.dumps(table)
    parsed = tomllib.loads(text)
    assert set(key_lines(text)) == set(paths(parsed))
