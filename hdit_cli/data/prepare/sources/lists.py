"""A file that names pictures: one path a line (`.lst`, `.list`, `.txt`), or a table with `file_name` (`.jsonl`, `.csv`, `.tsv`).

Paths are relative to the folder of the list; a path that leads out of it is counted as a problem of the list.
"""

import heapq
import os
from collections.abc import Iterator
from pathlib import Path

from hdit_cli.data.prepare.facts.paths import file_name, is_side_name, stem, utf8
from hdit_cli.data.prepare.facts.tables import Scope, Table
from hdit_cli.data.prepare.sources.beside import Beside
from hdit_cli.data.prepare.sources.folders import file_entry, names_below
from hdit_cli.data.prepare.sources.listing import BAD_TABLE, Entry, FileSource
from hdit_cli.data.prepare.sources.passed_over import PASSED_OVER, is_tool_file, is_tool_folder, passed_over
from hdit_cli.data.prepare.sources.places import Place
from hdit_cli.errors import DataError

LIST_SUFFIXES = (".lst", ".list", ".txt", ".jsonl", ".csv", ".tsv")


class ListSource(FileSource):
    """The files that a list names. Labels: the list, a `.json` beside the picture, the first folder of its path."""

    kind = "list"

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._base = os.fsencode(path.parent)

    def entries(self) -> Iterator[Entry]:
        parent = self._path.parent
        table = Table(names_below(self._base, own=utf8(parent.resolve().name)), keep_missing=True)
        try:
            with open(self._path, "rb") as stream:
                problems = table.read(stream, self._path.name)
        except OSError as error:
            raise DataError(f"the source {self._path} cannot be read: {error.strerror}", hint="check it") from error
        if next(table.names(), None) is None:
            told = f": {problems}" if problems else ""
            raise DataError(f"the list {self._path} names no files{told}", hint="name the files in a column file_name")
        own = [Entry(utf8(self._path.name), None, code=BAD_TABLE, detail=problems)] if problems else []
        yield from heapq.merge(own, self._named(table), key=lambda entry: entry.path)

    def _named(self, table: Table) -> Iterator[Entry]:
        # A list of a whole folder names what lies in .thumbnails too. One with labels, or of such a folder alone, means it.
        is_whole = not table.has_labels and not all(map(passed_over, table.names()))
        for path in table.names():
            if passed_over(path) if is_whole else is_tool_file(file_name(path)):
                yield Entry(path, None, code=PASSED_OVER)
                continue
            entry, changed = file_entry(path, os.path.join(self._base, path.encode()))
            self.newest = max(self.newest, changed)
            entry.group = None if is_tool_folder(entry.group or "") else entry.group
            if entry.code == "broken-link":
                entry.code = "missing"
            elif not entry.code and is_side_name(path):
                entry.code = "side-file"
            elif not entry.code:
                beside = Beside([path, *self._sides(path)], self._place, Scope("", table, None))
                beside.give(entry)
                self.by_value = self.by_value or beside.labels_told
            yield entry

    def _sides(self, path: str) -> list[str]:
        names = (stem(path) + suffix for suffix in (".txt", ".json"))
        return [name for name in names if os.path.isfile(os.path.join(self._base, name.encode()))]

    def _place(self, path: str) -> Place | None:
        entry, _ = file_entry(path, os.path.join(self._base, path.encode()))
        return entry.place
