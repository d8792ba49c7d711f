"""What the README says that can be counted: recipes, their sizes, commands, exit codes."""

import re
from pathlib import Path

import pytest

from hdit_cli import cli, errors
from hdit_cli.engine.model import count
from hdit_cli.recipe import load_recipe, shipped

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\S+)` \| (\d+)×(\d+) \| [^|]+ \| ([\d,]+) \| ([\d.]+) \|", README, flags=re.MULTILINE)


def test_every_recipe_is_listed():
    assert {row[0] for row in ROWS} >= {name for name in shipped() if not name.startswith("smoke/")}


@pytest.mark.parametrize(("name", "height", "width", "params", "gmacs"), ROWS, ids=[row[0] for row in ROWS])
def test_sizes(name, height, width, params, gmacs):
    recipe = load_recipe(name)
    counted = count(recipe)
    assert list(recipe.model.size) == [int(height), int(width)]
    assert f"{counted['params']:,}" == params and f"{counted['gmacs']:.3f}" == gmacs


def test_every_command_is_shown():
    assert set(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| `hdit", README, flags=re.MULTILINE)) == set(cli.COMMANDS)


def test_exit_codes():
    known = {kind.exit_code for kind in errors.HditError.__subclasses__()} | {0}
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \| ", table, flags=re.MULTILINE)} == known


def test_ci_runs_the_command_of_the_readme():
    command = re.search(r"\.venv/bin/(pytest .*)$", README, flags=re.MULTILINE)[1]
    ci = (Path(__file__).parents[2] / ".ci" / "run").read_text(encoding="utf-8")
    assert f" {command}\n" in ci and "'.[test]'" in ci
