"""Folders that were taken for classes, and look as if they were none: the notes that a preparation ends with.

They change nothing: which folder is a class only its owner knows.
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hdit_cli.data.prepare.facts.words import label_text

_WORDS = "train(?:ing)?|val|valid|validation|dev|test(?:ing)?|eval|evaluation|hold[-_ ]?out|held[-_ ]?out"
_SPLIT = re.compile(rf"(?:{_WORDS})(?:[-_ ]?(?:set|split|data|images|imgs|\d{{1,4}}))?", re.IGNORECASE)
_TRAINING = re.compile("train", re.IGNORECASE)
_CHUNK = re.compile(r"(?:(?:part|chunk|batch|shard|split|folder|dir|vol|archive)[-_ ]?\d+|\d{4,})", re.IGNORECASE)
_SHOWN = 3  # names in a note
_KEPT = 8  # names of classes kept for a note
_MOST = 1000  # names of folders inside a class


class Layout:
    """Sees the candidates of a source one by one, and tells what is odd about where they lie."""

    def __init__(self) -> None:
        self._first: str | None = None  # a class that is a folder
        self._splits: set[str] = set()  # those called like parts of a data set, the first of them
        self._chunks: set[str] = set()  # those called like portions of a collection, the first of them
        self._others = {"first": False, "splits": False, "chunks": False}  # there are classes that are none of these
        self._inside: set[str] = set()  # the folders directly in a class
        self._is_loose = False  # a picture lies directly in a class, or in none
        self._last: tuple[str, str | None] | None = None  # folder and class of the picture before
        self._is_told = False  # a class came from elsewhere than a folder

    def see(self, path: str, group: str | None) -> None:
        """A picture and its class."""
        folder = path.rpartition("/")[0]
        if (folder, group) == self._last:
            return
        self._last = folder, group
        folders = folder.split("/") if folder else []
        names = [label_text(name) or name for name in folders]
        if group is None:
            self._is_loose = True
            return
        if group not in names:
            self._is_told = True
            return
        depth = names.index(group)
        self._count(group)
        if depth + 1 == len(folders):
            self._is_loose = True
        elif len(self._inside) < _MOST:
            self._inside.add(folders[depth + 1])

    def _count(self, name: str) -> None:
        self._first = self._first or name
        self._others["first"] |= name != self._first
        for kind, known, pattern in (("splits", self._splits, _SPLIT), ("chunks", self._chunks, _CHUNK)):
            if pattern.fullmatch(name) is None:
                self._others[kind] = True
            elif len(known) < _KEPT:
                known.add(name)

    def notes(self, sources: Sequence[Path]) -> list[str]:
        """Sentences for people; none where classes came from tables, labels or no folder at all.

        Args:
            sources: as the user named them.
        """
        if self._is_told or self._first is None:
            return []
        if not self._others["first"] and not self._is_loose and len(self._inside) > 1:
            inside = f"{len(self._inside)} folders ({_some(sorted(self._inside))})"
            return [
                f"every picture lies in the one folder {self._first}, so that is the only class; it holds {inside}: "
                f"if those are the classes, {self._command(sources, self._first)}"
            ]
        splits, chunks = sorted(self._splits), sorted(self._chunks)
        training = next((name for name in splits if _TRAINING.match(name)), None)
        if not self._others["splits"] or (training is not None and len(splits) > 1):
            return [
                f"the classes {_some(splits)} are called like the parts that data sets are split into; if they are: "
                f"{self._command(sources, training or splits[0])}, and each other part by itself "
                "(validation.path in the recipe takes one of them)"
            ]
        if not self._others["chunks"]:
            what = f"the classes {_some(chunks)} are" if len(chunks) > 1 else f"the class {chunks[0]} is"
            return [
                f"{what} called like numbered portions of one collection; if so, train without classes: "
                "hdit train RECIPE --set model.classes=0"
            ]
        return []

    def _command(self, sources: Sequence[Path], name: str) -> str:
        """What prepares one of the folders alone; in an archive it must be unpacked before."""
        for source in sources:
            below = os.path.join(source, name)
            if os.path.isdir(below):
                return f"hdit prepare {shlex.quote(below)}"
        return f"unpack it, and hdit prepare the folder {name} of it"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
