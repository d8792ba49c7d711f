"""Which file the name in a table or a list means: the one that is called so, else the only one that nearly is.

Tables are written by programs on other systems: with "\\\\" between folders, with the way to their own folder before the
name, in another Unicode form or letter case than the disk has, without the suffix. A name that could be two files is none.
"""

import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from hdit_cli.data.prepare.facts.paths import file_name, is_side_name

NEAR_NAME = "near-name"  # a picture whose row, or whose caption's file, writes its name in another way

_MOST_HELD = 1 << 20  # names that are held of folders that were looked through
_EXACT = sys.platform.startswith("linux")  # elsewhere a file is also opened by a name that is nearly its own


class Found(NamedTuple):
    """A path relative to the folder; whether a file is there; whether it is written in another way than asked for."""

    path: str
    is_file: bool
    is_near: bool


class Names:
    """The files below a folder, by their names.

    Args:
        is_file: whether a path relative to the folder is that of a file.
        inside: gives the names in a folder below; it is told by its relative path with a "/" at its end, or by "".
        own: name of the folder itself, with which rows may begin.
        root: absolute path of it, with which rows may begin.
    """

    def __init__(
        self,
        *,
        is_file: Callable[[str], bool],
        inside: Callable[[str], Iterable[str]],
        own: str = "",
        root: str | None = None,
    ) -> None:
        self._is_file, self._inside = is_file, inside
        self._own, self._root = own, root
        self._folders: dict[str, _Inside] = {}
        self._held = 0

    def find(self, name: object) -> Found | None:
        """What is meant by a name; None where it leads out of the folder, or is no name."""
        if not isinstance(name, str) or "\0" in name:
            return None
        try:
            name.encode()
        except UnicodeEncodeError:
            return None
        plain = _inner(name, self._root)
        if plain is not None and self._is(plain):  # nearly always
            return Found(plain, True, False)
        ways = list(dict.fromkeys(self._ways(name)))
        for way in ways:
            if self._is(way):
                return Found(way, True, False)
        for way in ways:
            near = self._near(way)
            if near is not None:
                return Found(near, True, True)
        return Found(ways[0], False, False) if ways and _inside(name, self._root) else None

    def _ways(self, name: str) -> Iterator[str]:
        """The relative paths that a name can stand for, the plainest first."""
        told = name.replace("\\", "/")
        for text in dict.fromkeys((told, told.strip())):
            inner = _inner(text, self._root)
            if inner is not None:
                yield inner
        parts = [part for part in told.strip().split("/") if part not in ("", ".")]
        if self._own and ".." not in parts:
            own = _folded(self._own)
            for place, part in enumerate(parts[:-1]):
                if _folded(part) == own:
                    yield "/".join(parts[place + 1 :])

    def _is(self, path: str) -> bool:
        """Whether a file is there, and called exactly so."""
        if not self._is_file(path):
            return False
        name = file_name(path)
        return _EXACT or name in self._looked(path[: len(path) - len(name)]).names

    def _near(self, path: str) -> str | None:
        found = ""
        *folders, last = path.split("/")
        for folder in folders:
            name = self._looked(found).called(folder)
            if name is None:
                return None
            found += f"{name}/"
        name = self._looked(found).called(last) or self._looked(found).without_suffix(last)
        return found + name if name is not None and self._is_file(found + name) else None

    def _looked(self, folder: str) -> "_Inside":
        if folder not in self._folders:
            if self._held > _MOST_HELD:
                self._folders, self._held = {}, 0
            self._folders[folder] = _Inside(self._inside(folder))
            self._held += len(self._folders[folder].names)
        return self._folders[folder]


class _Inside:
    """The names in one folder."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._alike: defaultdict[str, list[str]] = defaultdict(list)
        self._stems: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            self._alike[_folded(name)].append(name)
            if not is_side_name(name):
                self._stems[_folded(os.path.splitext(name)[0])].append(name)

    def called(self, name: str) -> str | None:
        """The name itself, else the only one that agrees in NFC, else the only one but for letter case and blanks."""
        return name if name in self.names else _only(name, self._alike.get(_folded(name), []), lambda each: each)

    def without_suffix(self, stem: str) -> str | None:
        return _only(stem, self._stems.get(_folded(stem), []), lambda each: os.path.splitext(each)[0])


def _only(wanted: str, names: list[str], part: Callable[[str], str]) -> str | None:
    same = [name for name in names if part(name) == wanted]
    same = same or [name for name in names if _nfc(part(name)) == _nfc(wanted)] or names
    return same[0] if len(same) == 1 else None


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _nfc(_nfc(text).casefold().strip())


def _inner(name: str, root: str | None) -> str | None:
    """The path relative to the folder, without "." in it; None where it leads elsewhere."""
    if root is not None:
        name = name.removeprefix(root.rstrip("/") + "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if name.startswith("/") or ".." in parts or not parts else "/".join(parts)


def _inside(name: str, root: str | None) -> bool:
    return _inner(name.replace("\\", "/"), root) is not None


def pairs_in_nfc(names: set[str], others: set[str]) -> dict[str, str]:
    """Of two sets of names, those without a partner of the same name that agree in NFC with only one of the other set."""
    if all(name.isascii() for name in others):
        return {}
    by_form: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, lone in enumerate((names - others, others - names)):
        for name in lone:
            by_form[_nfc(name)][side].append(name)
    return {one[0]: other[0] for one, other in by_form.values() if len(one) == len(other) == 1}
