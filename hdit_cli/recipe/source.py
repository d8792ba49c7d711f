"""Where a recipe's values come from: files, `extends`, `--set`. Every value remembers its file and line."""

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hdit_cli.errors import StorageError, UsageError
from hdit_cli.recipe.lines import KeyPath, key_lines
from hdit_cli.recipe.section import nearest

_MAX_BYTES = 1 << 16  # the longest shipped recipe has 2 KB; what is refused must be refused at once
_MAX_DEPTH = 16
_OF_A_RUN = ("checkpoints", "ckpt.safetensors", "best.safetensors", "metrics.jsonl", "samples", ".lock", "ema")
# a key of 64 parts and more: the standard parser takes time quadratic in their number
_ENDLESS_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){64}""", re.ASCII)


@dataclass
class Source:
    """Raw values, and where each key stands: `file:line` or `--set ...`."""

    label: str
    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where a key stands; for one that stands nowhere, its nearest table."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.label


# Shipped recipes


def _shipped_folder() -> Path:
    package = Path(__file__).resolve().parent.parent
    inside = package / "_recipes"  # in a wheel; in a source tree they lie beside the package
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped() -> list[str]:
    """Names of the recipes that come with the package, `smoke/...` last."""
    folder = _shipped_folder()
    found = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml")]
    return sorted(found, key=lambda name: ("/" in name, name))


def recipe_text(name: str) -> str:
    """The text of a shipped recipe, comments and all.

    Raises:
        UsageError: no shipped recipe of that name.
    """
    if name not in shipped():
        raise _no_such_recipe(name)
    return read_text(_shipped_folder() / f"{name}.toml")


def _no_such_recipe(name: str) -> UsageError:
    stem = Path(name).stem if name.endswith(".toml") else name
    by_end = {known.rpartition("/")[2]: known for known in shipped()}
    best = nearest(stem, shipped()) or by_end.get(nearest(Path(stem).name, by_end) or "")
    if best and best == stem:
        hint = f"no such file, but a shipped recipe has that name: {best} (without .toml)"
    elif best:
        hint = f"did you mean {best!r}? `hdit recipe` lists the shipped ones; a file of your own ends in .toml"
    else:
        hint = "`hdit recipe` lists the shipped ones; a file of your own ends in .toml"
    return UsageError(f"no recipe {name[:200]!r}", hint=hint)


def stand_in(name_or_path: str) -> str:
    """The shipped recipe that `recipes/NAME.toml` means in a folder that holds no such file; "" for every other name."""
    path = Path(name_or_path)
    if path.suffix != ".toml" or path.parts[:1] != ("recipes",):
        return ""
    name = Path(*path.parts[1:]).with_suffix("").as_posix()
    return name if name in shipped() and not os.path.lexists(path) else ""


def locate(name_or_path: str) -> Path:
    """The file of a recipe: a shipped name first, unless it ends in `.toml`, then a path.

    Raises:
        UsageError: neither is there.
    """
    if not name_or_path.endswith(".toml") and name_or_path in shipped():
        return _shipped_folder() / f"{name_or_path}.toml"
    path = Path(name_or_path)
    try:
        there = bool(name_or_path) and path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        there = False
    if not there:
        raise _no_such_recipe(name_or_path)
    return path


def is_of_a_run(place: str) -> bool:
    """Whether a place, `file:line`, is in the recipe that a run wrote into its folder."""
    path = Path(os.path.realpath(place.rpartition(":")[0]))  # a link to it is no file of the user's own
    return path.name == "recipe.toml" and any((path.parent / name).exists() for name in _OF_A_RUN)


# Reading


def read_text(path: Path) -> str:
    """The text of a recipe file, with limits: a regular file of at most 64 KiB of UTF-8.

    Raises:
        UsageError: anything else.
        StorageError: the file may not be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(
                f"{path} is not a recipe file", hint="a recipe is a .toml file, or a name from `hdit recipe`"
            )
        with open(path, "rb") as handle:
            data = handle.read(_MAX_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror}", hint="check the path and its permissions"
        ) from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path} is larger than 64 KiB", hint="a recipe is a short TOML text; is this the right file?")
    return _decoded(data, path)


def _decoded(data: bytes, path: Path) -> str:
    save = "save the file as UTF-8 text, without a byte order mark"
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path}:1: starts with a byte order mark", hint=save)
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UsageError(f"{path}:{line}: holds a NUL byte, so it is not a text", hint=save)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: is not UTF-8 text", hint=save) from error


def parse(text: str, *, label: str) -> Source:
    """TOML text as a source whose places are `label:line`.

    Raises:
        UsageError: not TOML, or nested too deeply.
    """
    hint = "the format is TOML: https://toml.io"
    if endless := _ENDLESS_KEY.search(text):
        line = text.count("\n", 0, endless.start()) + 1
        raise UsageError(f"{label}:{line}: nested more than {_MAX_DEPTH} deep", hint=hint)
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise UsageError(f"{label}: nested too deeply", hint=hint) from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(_syntax_error(str(error), text, label), hint=hint) from error
    except ValueError as error:  # digits beyond Python's limit, dates that do not exist
        raise UsageError(f"{label}: a value in it is out of range ({str(error)[:80]})", hint=hint) from error
    if _too_deep(values):
        raise UsageError(f"{label}: nested more than {_MAX_DEPTH} deep", hint=hint)
    places = {path: f"{label}:{line}" for path, line in key_lines(text).items()}
    return Source(label=label, values=values, places=places)


def _syntax_error(message: str, text: str, label: str) -> str:
    """`tomllib`'s own message with the position moved to the front, where editors find it."""
    sentence, _, position = message.partition(" (at ")
    if position.startswith("line "):
        line = position.removeprefix("line ").partition(",")[0]
    else:
        line = str(text.count("\n") + 1)
    return f"{label}:{line}: not valid TOML: {sentence[:1].lower()}{sentence[1:200]}"


def _too_deep(values: Any) -> bool:
    layer: list[Any] = [values]
    for _ in range(_MAX_DEPTH):
        layer = [
            entry
            for container in layer
            for entry in (container.values() if isinstance(container, dict) else container)
            if isinstance(entry, (dict, list))
        ]
    return bool(layer)


def read(path: Path) -> Source:
    """A recipe file with the one it extends, if any, merged underneath.

    Raises:
        UsageError, StorageError: as `read_text` and `parse`, or `extends` is wrong.
    """
    source = parse(read_text(path), label=str(path))
    if "extends" not in source.values:
        return source
    base_name = source.values.pop("extends")
    place = source.places.pop(("extends",), source.label)
    if not isinstance(base_name, str):
        raise UsageError(f"{place}: extends: must be the name of a recipe in quotes", hint='for example "flowers256"')
    try:
        base_path = locate(base_name)
    except UsageError as error:
        raise UsageError(f"{place}: extends: {error.message}", hint=error.hint) from error
    base = parse(read_text(base_path), label=str(base_path))
    if "extends" in base.values:
        text = f"{place}: extends: {base_name} extends {base.values['extends']!r} itself; one level is the limit"
        raise UsageError(text, hint="extend the lowest one, or write the values out")
    base.values.pop("name", None)  # a name belongs to one file
    return merged(base, source)


# Merging


def merged(base: Source, top: Source) -> Source:
    """`top` over `base`: tables merge key by key, everything else is replaced, lists whole."""
    values = _merge(base.values, top.values)
    places = {path: place for path, place in base.places.items() if not _replaced(path, base.values, top.values)}
    return Source(label=top.label, values=values, places={**places, **top.places})


def _replaced(path: KeyPath, base: Any, top: Any) -> bool:
    """True if `path` stands in a value of `base` that `top` replaces whole."""
    for part in path:
        if not isinstance(base, dict) or not isinstance(top, dict):
            return True
        if part not in top:
            return False
        base, top = base.get(part), top[part]
    return False


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    if "type" in top and "type" in base and top["type"] != base["type"]:
        return top  # the options of one kind mean nothing to another
    out = dict(base)
    for key, value in top.items():
        below = out.get(key)
        out[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return out
