"""`hdit recipe NAME`: prints a shipped recipe, to be edited."""

from typing import Annotated

import typer

from hdit_cli.commands.say import say, say_json


def complete_name(incomplete: str) -> list[str]:
    """Shipped recipes that begin with what was typed, for the shell."""
    from hdit_cli.recipe import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Shipped recipes, recipe files and folders that begin with what was typed, for the shell."""
    from glob import escape, glob
    from pathlib import Path

    found = [Path(path) for path in sorted(glob(f"{escape(incomplete)}*"))]
    files = [f"{path}/" if path.is_dir() else str(path) for path in found if path.is_dir() or path.suffix == ".toml"]
    return [*complete_name(incomplete), *files]


def tell_stand_in(name: str) -> None:
    """Says on stderr where a shipped recipe stands in for a file that is not there."""
    from hdit_cli.launchers import is_child
    from hdit_cli.recipe import stand_in

    if (shipped := stand_in(name)) and not is_child():
        say(f"there is no {name} here: this is the recipe {shipped} that comes with hdit", err=True)


def recipe(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped recipe; left out, all of them are listed.", show_default=False, autocompletion=complete_name
        ),
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="The resolved recipe, or the list of names, as JSON.")] = False,
) -> None:
    """Print a shipped recipe, to be edited: hdit recipe flowers256 > mine.toml."""
    import json

    from hdit_cli.recipe import load_recipe, recipe_text, shipped

    if not name:
        say(json.dumps(shipped())) if json_ else say(*_listing(shipped()))
        return
    text = recipe_text(name)
    if json_:
        say_json(load_recipe(name).to_dict())
    else:
        say(*text.removesuffix("\n").split("\n"))


def _listing(names: list[str]) -> list[str]:
    """Each name with the first line of its header."""
    from hdit_cli.recipe import recipe_text

    width = max(map(len, names))
    return [f"{name:<{width}}  {recipe_text(name).partition(chr(10))[0].lstrip('# ')}" for name in names]
