"""All files of a source, in one order that depends on their names alone, each with its class and its caption."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

from hdit_cli.data.prepare.places import Place

SIDE_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".md")
SIDE_CODES = ("side-file", "caption", "label")


@dataclass(slots=True)
class Entry:
    """One file of the source.

    Args:
        path: relative, with "/", as UTF-8; bytes that are not UTF-8 are escaped.
        place: where its bytes lie; None where it was refused at sight.
        group: name of its class, None = no label.
        code: "" for a candidate, one of SIDE_CODES, or why it was refused at sight.
        detail: more about a refusal at sight.
        caption: the text beside it.
        mark: what a container knows of its content (a CRC), for the digest.
    """

    path: str
    place: Place | None
    group: str | None = None
    code: str = ""
    detail: str = ""
    caption: Place | None = None
    mark: int = 0

    def told(self) -> list[Any]:
        """As a plan keeps it, in JSON; `of` takes it back."""
        place, caption = (astuple(each) if each else None for each in (self.place, self.caption))
        return [self.path, place, self.group, self.code, self.detail, caption, self.mark]

    @classmethod
    def of(cls, told: list[Any]) -> "Entry":
        path, place, group, code, detail, caption, mark = told
        places = (Place(*each) if each else None for each in (place, caption))
        return cls(path, next(places), group, code, detail, next(places), mark)


@dataclass
class Listing:
    """All entries of a source; sorted, and with its classes, once `finish` has run.

    `newest` is the latest time of change of the files, in seconds since the epoch; 0 where it is in the future.
    """

    kind: str
    name: str
    entries: list[Entry] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    newest: float = 0.0

    def refuse(self, path: str, code: str, detail: str = "") -> None:
        self.entries.append(Entry(path, None, code=code, detail=detail))

    def source(self) -> dict[str, object]:
        """The source as the manifest keeps it; "listing" is a SHA-256 over paths, sizes, classes and verdicts."""
        told = hashlib.sha256()
        for entry in self.entries:
            size = entry.place.size if entry.place else None
            told.update(json.dumps([entry.path, size, entry.group, entry.code, entry.mark]).encode() + b"\n")
        return {"name": self.name, "kind": self.kind, "files": len(self.entries), "listing": told.hexdigest()}

    def stream(self) -> Iterator[Entry]:
        """All entries, in order; what else there is to know of the source is known when it has ended."""
        yield from self.entries

    def finish(self) -> "Listing":
        """Sorts the entries by the bytes of their paths, finds captions, and names the classes."""
        self.entries.sort(key=lambda entry: entry.path.encode())
        _give_captions(self.entries)
        candidates = (entry for entry in self.entries if not entry.code and not _file_name(entry.path).startswith("._"))
        groups = {entry.group for entry in candidates if entry.group is not None}
        self.classes = sorted(groups, key=_by_value if self.kind == "tar" else str.encode)
        if self.newest > time.time():  # a clock that was wrong once tells nothing
            self.newest = 0.0
        return self


def utf8(name: str | bytes) -> str:
    """A file name as text that can be written down; bytes that are not UTF-8 become backslash escapes."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    return raw.decode("utf-8", "backslashreplace")


def is_side_name(path: str) -> bool:
    name = _file_name(path)
    return not name.startswith("._") and os.path.splitext(name)[1].lower() in SIDE_SUFFIXES


def first_folder(path: str) -> str | None:
    head, slash, _ = path.partition("/")
    return head if slash else None


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _give_captions(entries: list[Entry]) -> None:
    texts = {
        os.path.splitext(entry.path)[0]: entry
        for entry in entries
        if entry.code == "side-file" and entry.path.lower().endswith(".txt")
    }
    for entry in entries:
        text = None if entry.code or entry.caption else texts.get(os.path.splitext(entry.path)[0])
        if text is not None:
            entry.caption, text.code = text.place, "caption"


def _by_value(name: str) -> tuple[int, int, bytes]:
    """Class indices, as tars have them, by their value; then names by their bytes."""
    is_index = name.isascii() and name.isdigit() and str(int(name)) == name
    return (0, int(name), b"") if is_index else (1, 0, name.encode())
