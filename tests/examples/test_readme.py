"""What README and docs/ say that can be counted or typed: recipes and their sizes, commands, options, exit codes, links, needs."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from hdit_cli import cli, errors
from hdit_cli.engine.model import build_network, count
from hdit_cli.models import dit
from hdit_cli.recipe import load_recipe, shipped

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
README, RECIPES, COMMANDS, INDEX, DIT = (
    path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", DOCS / "recipes.md", DOCS / "commands.md", DOCS / "README.md", DOCS / "dit.md")
)
ROWS = re.findall(r"^\| `(\S+)` \| (\d+)×(\d+) \| [^|]+ \| ([\d,]+) \| ([\d.]+) \|", RECIPES, flags=re.MULTILINE)


def test_every_recipe_is_listed():
    assert {row[0] for row in ROWS} >= {name for name in shipped() if not name.startswith("smoke/")}


@pytest.mark.parametrize(("name", "height", "width", "params", "gmacs"), ROWS, ids=[row[0] for row in ROWS])
def test_sizes(name, height, width, params, gmacs):
    recipe = load_recipe(name)
    counted = count(recipe)
    assert list(recipe.model.size) == [int(height), int(width)]
    assert f"{counted['params']:,}" == params and f"{counted['gmacs']:.3f}" == gmacs


COSTS = re.findall(r"^\| `(\S+)` \([^)]+\) \| ([\d.,| ]+) \|$", DIT, flags=re.MULTILINE)
BLOCKS = re.findall(r'^\| `"([\w-]+)"`[^|]* \| [^|]+ \| ([\d,]+) \| ([\d.]+) \|', DIT, flags=re.MULTILINE)


def test_what_a_network_costs_over_the_size():
    sizes = [int(side) for side in re.findall(r" (\d+)×\1 ", DIT.partition("| recipe |")[2].partition("\n")[0])]
    assert len(COSTS) == 3 and len(sizes) == 4
    for name, cells in COSTS:
        with torch.device("meta"):
            network = build_network(load_recipe(name), classes=0)
        assert [f"{network.macs(side, side) / 1e9:,.3f}" for side in sizes] == cells.split(" | "), name


def test_what_the_blocks_of_dit_cost():
    assert {block for block, *_ in BLOCKS} == set(dit.BLOCKS)
    for block, params, gmacs in BLOCKS:
        counted = count(load_recipe("dit-xl2-256", [f"model.block={block}"]))
        assert (f"{counted['params']:,}", f"{counted['gmacs']:.3f}") == (params, gmacs), block


def test_every_command_is_shown():
    assert set(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| `hdit", COMMANDS, flags=re.MULTILINE)) == set(cli.COMMANDS)


def test_exit_codes():
    known = {kind.exit_code for kind in (errors.HditError, *errors.HditError.__subclasses__())} | {0}
    table = COMMANDS.partition("| exit code |")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \| ", table, flags=re.MULTILINE)} == known


def test_ci_runs_the_command_of_the_readme():
    command = re.search(r"\.venv/bin/(pytest .*)$", README, flags=re.MULTILINE)[1]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f" {command}\n" in ci and "'.[test]'" in ci


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


# Links


def anchor(heading):
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(path):
    text = path.read_text(encoding="utf-8")
    return [link for link in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text) for link in link if link]


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_resolve(page):
    for link in links(page):
        if "://" in link:
            continue
        name, _, part = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert part in map(anchor, headings), link


def test_every_page_is_linked_both_ways():
    pages = [path.name for path in PAGES[1:] if path != DOCS / "README.md"]
    order = re.findall(r"^- \[[^\]]+\]\((\S+)\): ", INDEX, flags=re.MULTILINE)
    assert sorted(order) == pages
    linked = links(ROOT / "README.md")
    for number, name in enumerate(order):
        found = links(DOCS / name)
        assert f"docs/{name}" in linked, name
        assert {"../README.md", "README.md", *order[max(number - 1, 0) : number + 2]} - {name} <= set(found), name


# Commands


def typed():
    """(page, words) of each `hdit` that stands in a block of shell lines."""
    for page in PAGES:
        for block in re.findall(
            r"^```(?:bash)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"(?:\$ )?(?:.*-m -- hdit_cli|(?:\.venv/bin/)?hdit) (.*)", line)
                if found:
                    yield page.name, shlex.split(found[1], comments=True)


TYPED = list(typed())


def options_of(name):
    return {each for parameter in typer.main.get_command(cli.app).commands[name].params for each in parameter.opts} | {
        "--help"
    }


@pytest.mark.parametrize(("page", "words"), TYPED, ids=[f"{page} {' '.join(words)}" for page, words in TYPED])
def test_every_command_can_be_typed(page, words):
    name, *rest = words
    assert name in cli.COMMANDS or name == "--install-completion"
    given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-zA-Z]", word)]
    assert set(given) <= options_of(name)
    settings = [rest[number + 1] for number, word in enumerate(rest) if word == "--set"]
    if name == "train" and not rest[0].endswith(".toml"):
        load_recipe(rest[0], settings)
    elif name in ("recipe", "bench") and rest and not rest[0].startswith("-"):
        load_recipe(rest[0])


# What do I need?


@pytest.mark.slow
def test_needs_are_what_the_script_says(capsys):
    if importlib.util.find_spec("triton") is not None:
        pytest.skip("with triton the attention is FlexAttention's")
    spec = importlib.util.spec_from_file_location("needs", ROOT / "examples" / "needs.py")
    needs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(needs)
    needs.main()
    page = (DOCS / "what-do-i-need.md").read_text(encoding="utf-8")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2 and all(table in page for table in tables)
