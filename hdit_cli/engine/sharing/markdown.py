"""Anybody's text inside Markdown: names of classes, runs, files. It stays text, whatever it holds.

A model hub shows a card as a web page. HTML, links, pictures or the end of a table in a class name must not become such.
"""

import html
import json
import re

_JOINERS = "\u200c\u200d"  # of scripts and emojis that need them; every other unseen character is left out
_MARKS = re.compile(r"([\\`*_\[\]|~$#@])")
_PLAIN = re.compile(r"[^\s`<>&|\\](?:[^`<>&|\\\r\n]*[^\s`<>&|\\])?")


def _seen(text: str) -> str:
    return "".join(each if each.isprintable() or each in _JOINERS else " " for each in text)


def plain(text: str) -> str:
    """Text outside code: nothing in it is markup, and addresses are no links."""
    escaped = _MARKS.sub(r"\\\1", html.escape(_seen(text), quote=False))
    return re.sub(r"www\.", r"www\\.", escaped.replace("://", r":\/\/"), flags=re.IGNORECASE)


def code(text: str) -> str:
    """Text as code where that can hold it, else plain."""
    text = _seen(text)
    return f"`{text}`" if _PLAIN.fullmatch(text) else plain(text)


def scalar(text: str) -> str:
    """A value of the front matter: JSON, which is YAML too."""
    return "".join(_in_yaml(each) for each in json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False))


def _in_yaml(character: str) -> str:
    if character != "<" and (character.isprintable() or character in _JOINERS):
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def toml(text: str) -> str:
    """TOML as `Recipe.to_toml` writes it, for a block of code: every text in it is between double quotes."""
    return "".join(
        each if each in "\n\t" or (each.isprintable() and each not in "<`") else f"\\U{ord(each):08x}" for each in text
    )


def literal(text: str) -> str:
    """A text as Python writes it, for a block of code."""
    return repr(text).replace("<", "\\x3c").replace("`", "\\x60")


def file_name(name: str) -> str:
    """The name of a file in an example to be copied; one that a shell would misread is called FILE there."""
    return name if re.fullmatch(r"[\w.,+=@%-]+", name) and not name.startswith("-") else f"FILE{_suffix(name)}"


def _suffix(name: str) -> str:
    found = re.search(r"\.\w+$", name)
    return found[0] if found else ""
