"""The paths of files in a source: as text that can be written down, their parts, and which are of files beside pictures."""

import os

_SIDE_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".md")


def utf8(name: str | bytes) -> str:
    """A file name as text that can be written down; bytes that are not UTF-8 become backslash escapes."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return raw.decode("utf-8", "backslashreplace")


def is_side_name(path: str) -> bool:
    if not path.lower().endswith(_SIDE_SUFFIXES):
        return False
    name = file_name(path)
    return not name.startswith("._") and os.path.splitext(name)[1].lower() in _SIDE_SUFFIXES


def first_folder(path: str) -> str | None:
    head, slash, _ = path.partition("/")
    return head if slash else None


def file_name(path: str) -> str:
    return path.rpartition("/")[2]


def stem(path: str) -> str:
    """The path without its last suffix: what a picture and the files beside it have in common."""
    return os.path.splitext(path)[0]
