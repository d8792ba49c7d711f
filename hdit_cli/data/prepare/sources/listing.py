"""All files of one source or of several, in one order that depends on their names alone, each with its class and caption."""

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hdit_cli.data.prepare.facts.paths import file_name
from hdit_cli.data.prepare.facts.words import label_text
from hdit_cli.data.prepare.sources.layout import Layout
from hdit_cli.data.prepare.sources.passed_over import PASSED_OVER
from hdit_cli.data.prepare.sources.places import Place
from hdit_cli.errors import DataError

BAD_TABLE = "bad-table"  # something of a table, or of a list, could not be used
SIDE_CODES = ("side-file", "caption", "label", "table", BAD_TABLE, PASSED_OVER)


@dataclass(slots=True)
class Entry:
    """One file of the source.

    Args:
        path: relative, with "/", as UTF-8; bytes that are not UTF-8 are escaped.
        place: where its bytes lie; None where it was refused at sight.
        group: name of its class, None = no label.
        code: "" for a candidate, one of SIDE_CODES, or why it was refused at sight.
        detail: more about a refusal at sight, or about a table.
        caption: the text beside it.
        mark: what a container knows of its content (a CRC), for the digest.
        text: a caption that was found while listing; it goes before `caption`.
        notes: codes of what is to be told of its label or caption.
    """

    path: str
    place: Place | None
    group: str | None = None
    code: str = ""
    detail: str = ""
    caption: Place | None = None
    mark: int = 0
    text: str | None = None
    notes: tuple[str, ...] = ()

    def told(self, *, moved: Callable[[str], str]) -> list[Any]:
        """As a plan keeps it, in JSON, with the containers as `moved` names them; `of` takes it back."""
        places = [
            [moved(each.container), each.kind, each.position, each.size] if each else None
            for each in (self.place, self.caption)
        ]
        place, caption = places
        return [
            self.path,
            place,
            self.group,
            self.code,
            self.detail,
            caption,
            self.mark,
            self.text,
            list(self.notes),
        ]

    @classmethod
    def of(cls, told: list[Any], *, moved: Callable[[str], str]) -> "Entry":
        path, place, group, code, detail, caption, mark, text, notes = told
        place = Place(moved(place[0]), *place[1:]) if place else None
        caption = Place(moved(caption[0]), *caption[1:]) if caption else None
        return cls(path, place, group, code, detail, caption, mark, text, tuple(notes))


class Source(Protocol):
    """One thing that pictures come from. What is said of it holds once its entries have been told.

    `kind` is folder, zip, tar or list; `newest` the latest time of change of its files, in seconds since the epoch;
    `classes` the names of the classes in their order, where the source itself has one; `listed` those that a table of it
    lists in their order; `by_value` whether class names that
    are numbers are indices, so that 10 comes behind 9.
    """

    name: str
    kind: str
    newest: float
    classes: list[str] | None
    by_value: bool
    listed: list[str]

    def entries(self) -> Iterator[Entry]:
        """Yields all entries in the order of the bytes of their paths.

        Raises:
            DataError: the source as a whole cannot be read.
        """
        ...


class FileSource:
    """What sources that are one file have in common."""

    by_value = False

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self.listed: list[str] = []
        self.newest = os.stat(path).st_mtime
        self.classes: list[str] | None = None
        self._path = path


class Listing:
    """All entries of some sources, told one by one.

    With several sources each path begins with its source's name; a name that comes again gets "-2" behind it. Once
    `stream` has come to its end, `classes`, `newest` and `source()` hold. `newest` is 0 where it is in the future. `fixed`
    are the classes in their order where the sources themselves have a list of them, else None. `layout` tells what is odd
    about the folders.

    Raises:
        DataError: the first source cannot be read, or there is nothing in it.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        names = _apart([source.name for source in sources])
        self.name = names[0]
        self.classes: list[str] = []
        self.newest = 0.0
        self._sources = dict(zip(names, sources, strict=True))
        first = sources[0].classes
        self.fixed = first if all(source.classes == first for source in sources) else None
        self.layout = Layout()
        self._files = 0
        self._told = hashlib.sha256()
        begun = self._entries()
        self._begun: Iterator[Entry] | None = itertools.chain([next(begun)], begun)  # a tar is not read twice

    def stream(self) -> Iterator[Entry]:
        """Yields all entries in the order of the bytes of their paths; memory holds one folder, or one archive.

        Raises:
            DataError: another source cannot be read, or there is nothing in it.
        """
        entries, self._begun = self._begun or self._entries(), None
        self._files, self._told = 0, hashlib.sha256()
        self.layout = Layout()
        groups: set[str] = set()
        for entry in entries:
            self._files += 1
            if entry.group is not None and self.fixed is None:
                entry.group = label_text(entry.group) or entry.group  # a folder may be called " "
            size = entry.place.size if entry.place else None
            told = [entry.path, size, entry.group, entry.code, entry.mark]
            if entry.text is not None:
                told.append(entry.text)
            self._told.update(json.dumps(told).encode() + b"\n")
            if entry.group is not None and not entry.code and not file_name(entry.path).startswith("._"):
                groups.add(entry.group)
            if not entry.code:
                self.layout.see(entry.path, entry.group)
            yield entry
        self.fixed = self.fixed or self._listed(groups)
        self.classes = self._in_order(groups)
        newest = max(source.newest for source in self._sources.values())
        self.newest = 0.0 if newest > time.time() else newest  # a clock that was wrong once tells nothing

    def source(self) -> dict[str, object]:
        """The source as the manifest keeps it; "listing" is a SHA-256 over paths, sizes, classes, captions and verdicts."""
        each = [{"name": name, "kind": source.kind} for name, source in self._sources.items()]
        told = each[0] if len(each) == 1 else {"name": self.name, "kind": "several", "sources": each}
        return {**told, "files": self._files, "listing": self._told.hexdigest()}

    def _entries(self) -> Iterator[Entry]:
        for name, source in sorted(self._sources.items(), key=lambda item: f"{item[0]}/"):
            entry = None
            for entry in source.entries():
                if len(self._sources) > 1:
                    entry.path = f"{name}/{entry.path}"
                yield entry
            if entry is None:
                raise DataError(f"the source {name} is empty", hint="give a folder of pictures, a .zip, or a .tar")

    def _listed(self, groups: set[str]) -> list[str] | None:
        """The list of classes that a table of each source has, where it knows every class that was found."""
        first, *others = (source.listed for source in self._sources.values())
        is_one = bool(first) and len(set(first)) == len(first) and all(listed == first for listed in others)
        return first if is_one and groups <= set(first) else None

    def _in_order(self, groups: set[str]) -> list[str]:
        if self.fixed is not None:
            return list(self.fixed)
        by_value = any(source.by_value for source in self._sources.values())
        return sorted(groups, key=_by_value if by_value else str.encode)


def _apart(names: Iterable[str]) -> list[str]:
    """The names, each once."""
    taken: list[str] = []
    wanted = list(names)
    for name in wanted:
        free = (f"{name}-{number}" for number in itertools.count(2))
        taken.append(name if name not in taken else next(new for new in free if new not in taken and new not in wanted))
    return taken


def _by_value(name: str) -> tuple[int, int, bytes]:
    """Class indices, as tars and tables have them, by their value; then names by their bytes."""
    is_index = name.isascii() and name.isdigit() and len(name) < 20 and str(int(name)) == name
    return (0, int(name), b"") if is_index else (1, 0, name.encode())
