"""Pydantic's findings as sentences: place, key, what is wrong, what would be right."""

import datetime
import itertools
import reprlib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hdit_cli.errors import UsageError
from hdit_cli.recipe.lines import KeyPath
from hdit_cli.recipe.section import nearest
from hdit_cli.recipe.source import Source

_SHOWN = 20  # problems told at once
_DENSITY = ("diffusion", "density")
_TAGGED = (("model",), ("task",), _DENSITY)  # pydantic puts the type into the path below these keys

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_ENTRIES = 6  # of a list or table that are shown

_WANTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text in quotes",
    "tuple": "a list",
    "list": "a list",
    "model": "a table",
    "dict": "a table",
    "union": "a table",
}
_LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def refusal(error: ValidationError, source: Source, keys: "KeyTree") -> UsageError:
    """All problems of a recipe as one error, each `place: key: sentence`."""
    findings = [found for found in error.errors(include_url=False) if not _follows(found)]
    lines = [line for found in findings[:_SHOWN] for line in _lines(found, source, keys)]
    total = len(lines) + len(findings[_SHOWN:])
    hint = "`hdit recipe NAME` prints a shipped recipe to compare with"
    if total == 1:
        return UsageError(lines[0], hint=hint)
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    if total > len(shown):
        shown.append(f"  and {total - len(shown)} more")
    return UsageError("\n".join([f"{total} problems in {source.label or 'the recipe'}:", *shown]), hint=hint)


def _follows(found: ErrorDetails) -> bool:
    """True for a finding that only follows from another one, about an entry of the same list or table."""
    if found["type"] == "too_short":
        return len(found["input"]) >= found.get("ctx", {})["min_length"]
    return found["type"] == "default_factory_not_called"


def _lines(found: ErrorDetails, source: Source, keys: "KeyTree") -> Iterator[str]:
    path = _untagged(found["loc"])
    if found["type"] == "union_tag_invalid":
        path = (*path, "type")
    if found["type"] == "problems":
        for below, sentence in found.get("ctx", {})["problems"]:
            yield _line((*path, *below), sentence, source)
    else:
        yield _line(path, _sentence(found, path, keys), source)


def _line(path: KeyPath, sentence: str, source: Source) -> str:
    place, key = source.place(path), ".".join(str(part) for part in path)
    if place.startswith("--set ") and place.removeprefix("--set ").partition("=")[0].strip() == key:
        return f"{place}: {sentence}"  # the key stands there already
    return f"{place}: {key}: {sentence}" if place else f"{key}: {sentence}"


def _untagged(path: KeyPath) -> KeyPath:
    for tagged in _TAGGED:
        tag = len(tagged)
        if path[:tag] == tagged and len(path) > tag:
            return path[:tag] + path[tag + 1 :]
    return path


def _sentence(found: ErrorDetails, path: KeyPath, keys: "KeyTree") -> str:
    kind, context = found["type"], found.get("ctx", {})
    value = found["input"]
    if kind == "extra_forbidden":
        return keys.unknown(found["loc"])
    if kind == "missing":
        return "missing: an entry is needed here" if isinstance(path[-1], int) else "missing, and it has no default"
    if kind == "sentence":
        return str(context["text"])
    if kind in ("choice", "literal_error", "union_tag_invalid"):
        return _choice_sentence(value, context)
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"must be {words} {context[key]}, is {_shown(value)}"
    if kind in ("too_long", "too_short"):
        words, key = ("at most", "max_length") if kind == "too_long" else ("at least", "min_length")
        return f"must have {words} {context[key]} entries, has {len(value)}"
    if kind == "string_too_long":
        return f"must be at most {context['max_length']} characters long, has {len(value)}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_unicode":
        return f"has a character that no text file can hold: {_shown(value)}"
    wanted = _WANTED.get(kind.partition("_")[0])
    return f"must be {wanted}, is {_described(value)}" if wanted else f"cannot be {_described(value)}"


def _choice_sentence(value: Any, context: dict[str, Any]) -> str:
    if "tag" in context and isinstance(value, dict):
        value = value.get("type", context["tag"])
    listed = context.get("choices") or context.get("expected") or context.get("expected_tags") or ""
    if isinstance(listed, str):
        listed = [part.strip(" '") for part in listed.replace(" or ", ", ").split(",")]
    best = nearest(value, listed) if isinstance(value, str) else None
    guess = f"did you mean {best!r}? " if best else ""
    return f"{_shown(value)} is not known here; {guess}one of: {', '.join(listed)}"


def _described(value: Any) -> str:
    kinds = {
        bool: "",
        int: "the number ",
        float: "the number ",
        str: "the text ",
        list: "the list ",
        tuple: "the list ",
        dict: "the table ",
        datetime.date: "the date ",
        datetime.datetime: "the date ",
        datetime.time: "the time ",
    }
    return f"{kinds.get(type(value), '')}{_shown(value)}"


def _shown(value: Any, *, depth: int = 2) -> str:
    """A value about as TOML writes it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return (
            f"[{_entries([_shown(entry, depth=depth - 1) for entry in value[: _ENTRIES + 1]] if depth else ['...'])}]"
        )
    if isinstance(value, dict):
        first = itertools.islice(value.items(), _ENTRIES + 1)
        words = (
            [f"{_SHORT.repr(key)[1:-1]} = {_shown(entry, depth=depth - 1)}" for key, entry in first]
            if depth
            else ["..."]
        )
        return f"{{{_entries(words)}}}"
    return _SHORT.repr(value)


def _entries(words: list[str]) -> str:
    return ", ".join([*words[:_ENTRIES], *(["..."] if len(words) > _ENTRIES else [])])


class KeyTree:
    """The keys that each section knows, for suggestions; where there are several by type, it is in the path of each."""

    def __init__(self, sections: dict[KeyPath, tuple[str, ...]]) -> None:
        self.sections = sections

    def unknown(self, path: KeyPath) -> str:
        """What to say about a key that its section does not know."""
        key = str(path[-1])
        inside = tuple(part for part in path[:-1] if isinstance(part, str))
        here = self.sections.get(inside, ())
        best = nearest(key, here)
        if inside[: len(_DENSITY)] == _DENSITY:
            return f"unknown key for {inside[-1]}{_guess(best)}; known: {', '.join(here)}"
        siblings = [s for s in self.sections if s != inside and _untagged(s) == _untagged(inside)]
        if owner := next((section for section in siblings if key in self.sections[section]), None):
            tag = next(i for i, (ours, theirs) in enumerate(zip(inside, owner, strict=True)) if ours != theirs)
            return f"unknown key for type {inside[tag]!r}, and one of type {owner[tag]!r}"
        open_sections = {
            section: names
            for section, names in self.sections.items()
            if section[: len(_DENSITY)] != _DENSITY and section not in siblings
        }
        exact = [section for section, names in open_sections.items() if key in names]
        if exact:
            return f"unknown key here; {'.'.join(map(str, (*_untagged(exact[0]), key)))} is one"
        if best:
            return f"unknown key{_guess(best)}"
        owners = {name: section for section, names in open_sections.items() for name in names}
        elsewhere = nearest(key, owners)
        if elsewhere:
            return f"unknown key, did you mean {'.'.join(map(str, (*_untagged(owners[elsewhere]), elsewhere)))}?"
        return f"unknown key; known here: {', '.join(here)}"


def _guess(best: str | None) -> str:
    return f", did you mean {best!r}?" if best else ""
