"""What the shell offers after TAB: names of components, keys of recipes, classes of a checkpoint. Loads no torch.

Nothing here may fail or print: a shell shows what it gets. What cannot be read offers nothing.
"""

import contextlib
import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_MOST = 32 << 20  # bytes of a checkpoint's header
_BASIS = "flowers256"  # its keys are offered where no recipe was typed that can be read


def names(kind: str) -> Callable[[str], list[str]]:
    """Components of a kind."""

    def complete(incomplete: str) -> list[str]:
        from hdit_cli import catalog

        return _beginning(catalog.names(kind), incomplete)

    return complete


def listed_names(kind: str) -> Callable[[str], list[str]]:
    """Components of a kind, several with commas: those that are not in the list yet."""

    def complete(incomplete: str) -> list[str]:
        from hdit_cli import catalog

        before, comma, last = incomplete.rpartition(",")
        left = [name for name in catalog.names(kind) if name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in _beginning(left, last)]

    return complete


def words(*choices: str) -> Callable[[str], list[str]]:
    """Fixed choices."""
    return lambda incomplete: _beginning(choices, incomplete)


def classes(ctx: Any, incomplete: str) -> list[str]:
    """Classes of the checkpoint that was typed before, and `all`; several with commas where no name holds one."""
    typed = _typed(ctx)
    found = _classes_of(Path(typed)) if typed else []
    if not found:
        return []
    whole = _beginning([*found, "all"], incomplete)
    before, comma, last = incomplete.rpartition(",")
    return whole if whole or not comma else [f"{before},{name}" for name in _beginning(found, last.lstrip())]


def settings(ctx: Any, incomplete: str) -> list[str]:
    """KEY= of `--set` for the recipe that was typed before; after the `=`, the values of a key that has few."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={choice}" for choice in _beginning(_choices(key), value)]
    return [f"{known}=" for known in _beginning(_keys(_typed(ctx)), key)]


def _typed(ctx: Any) -> str:
    """The first argument as far as the line goes; while an option lacks its value, typer leaves it among the rest."""
    named = (ctx.params.get(name) for name in ("checkpoint", "source", "recipe"))
    return str(next(filter(None, [*named, *ctx.args]), ""))


def _beginning(choices: Iterable[str], incomplete: str) -> list[str]:
    return [choice for choice in choices if choice.startswith(incomplete)]


def _keys(recipe: str) -> list[str]:
    """Dotted keys of a recipe, levels by number."""
    from hdit_cli.errors import HditError
    from hdit_cli.recipe import flat, load_recipe

    for name in (recipe, _BASIS):
        if name:
            with contextlib.suppress(HditError, OSError):
                return sorted(flat(load_recipe(name).to_dict()))
    return []


def _choices(key: str) -> list[str]:
    """Values of a key that takes one of a few."""
    from typing import Literal, get_args, get_origin

    from hdit_cli import catalog
    from hdit_cli.recipe.recipe import Recipe

    kinds = {"sample.sampler": "sampler", "sample.schedule": "schedule", "diffusion.weighting": "weighting"}
    kinds |= {"optimizer.schedule": "learning-rate", "diffusion.density.type": "density"}
    if key in kinds:
        return catalog.names(kinds[key])
    section, _, name = key.partition(".")
    kind = Recipe.model_fields[section].annotation if section in Recipe.model_fields else None
    field = getattr(kind, "model_fields", {}).get(name)
    if field is None:
        return []
    if field.annotation is bool:
        return ["true", "false"]
    return [str(value) for value in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []


def _classes_of(path: Path) -> list[str]:
    """Class names in the header of a checkpoint file, or of a run's newest; none where it cannot be read."""
    file = path / "ckpt.safetensors" if path.is_dir() else path
    try:
        if not file.is_file():  # a pipe would wait for ever
            return []
        with open(file, "rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size)) if size <= _MOST else {}
        found = json.loads(header["__metadata__"]["hdit.classes"])
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return []
    known = found if isinstance(found, list) else []
    return [name for name in known if isinstance(name, str) and name.isprintable()]
