"""`--set a.b=c`: values of the command line over those of the recipe."""

import copy
import datetime
import tomllib
from collections.abc import Sequence
from typing import Any

from hdit_cli.errors import UsageError
from hdit_cli.recipe.lines import KeyPath
from hdit_cli.recipe.source import Source

_HINT = "for example --set train.batch_size=16, or --set model.size=[64,64]"
_MAX_PARTS = 16


def overridden(source: Source, overrides: Sequence[str]) -> Source:
    """The source with each `key=value` applied in order; a changed `type` clears the options of the old one first.

    Raises:
        UsageError: not of the form `key=value`, or the key leads through something that is no table.
    """
    values, places = copy.deepcopy(source.values), dict(source.places)
    parsed = [(text, *_parsed(text)) for text in overrides]
    parsed.sort(key=lambda entry: entry[1][-1] != "type")  # stable: all others keep their order
    for text, path, value in parsed:
        parent = _parent(values, path, text)
        if isinstance(parent, list):
            parent[_index(parent, path[-1], text)] = value
        else:
            if path[-1] == "type" and parent.get("type", value) != value:
                parent.clear()
            parent[path[-1]] = value
        _replace_places(places, _as_found(path, values), f"--set {text[:200]}")
    return Source(label=source.label, values=values, places=places)


def _parsed(text: str) -> tuple[tuple[str, ...], Any]:
    key, separator, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not separator or not all(path) or len(path) > _MAX_PARTS:
        raise UsageError(f"--set {text[:200]!r} is not of the form key=value", hint=_HINT)
    return path, _value(value.strip(), text)


def _value(text: str, whole: str) -> Any:
    """A TOML value; what is not one, or is a date, is a string."""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError) as error:
        raise UsageError(f"--set {whole[:80]!r}: the value is out of range", hint=_HINT) from error
    value = table["value"]
    is_date = isinstance(value, (datetime.date, datetime.time))
    return text if is_date or len(table) > 1 else value


def _parent(values: dict[str, Any], path: tuple[str, ...], text: str) -> dict[str, Any] | list[Any]:
    """The table or list that the last part of `path` names an entry of; tables on the way are made."""
    here: Any = values
    for depth, part in enumerate(path[:-1], start=1):
        here = here[_index(here, part, text)] if isinstance(here, list) else here.setdefault(part, {})
        if not isinstance(here, (dict, list)):
            raise UsageError(f"--set {text[:200]}: {'.'.join(path[:depth])} is a value, not a table", hint=_HINT)
    return here


def _index(entries: list[Any], part: str, text: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(entries):
        legal = f"0..{len(entries) - 1}" if entries else "none"
        raise UsageError(f"--set {text[:200]}: {part!r} is not the number of an entry ({legal})", hint=_HINT)
    return int(part)


def _replace_places(places: dict[KeyPath, str], path: KeyPath, place: str) -> None:
    """The value at `path` stands at `place` now; what stood below it is gone, tables above it may be new."""
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    for length in range(1, len(path) + 1):
        places.setdefault(path[:length], place)


def _as_found(path: tuple[str, ...], values: Any) -> KeyPath:
    """The path with numbers where it leads through lists."""
    out: list[str | int] = []
    for part in path:
        step: Any = int(part) if isinstance(values, list) else part
        out.append(step)
        values = values[step]
    return tuple(out)
