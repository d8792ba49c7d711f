"""A zip of pictures, read like the folder it was made of, and never extracted."""

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hdit_cli.data.prepare.facts.names import Names
from hdit_cli.data.prepare.facts.paths import file_name, first_folder, is_side_name, utf8
from hdit_cli.data.prepare.facts.tables import DATASET, METADATA, Scope
from hdit_cli.data.prepare.sources.beside import Beside, read_tables
from hdit_cli.data.prepare.sources.listing import Entry, FileSource
from hdit_cli.data.prepare.sources.passed_over import PASSED_OVER, passed_over
from hdit_cli.data.prepare.sources.places import Place
from hdit_cli.errors import DataError


class ZipSource(FileSource):
    """All members of a zip. A folder around everything that is called like the zip is no class."""

    kind = "zip"

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self._scopes: dict[str, Scope | None] = {}  # of the folders that were looked at
        self._files: set[str] = set()
        self._names: defaultdict[str, set[str]] = defaultdict(set)  # folder => names in it, once they are asked for
        self._wrapper = ""

    def entries(self) -> Iterator[Entry]:
        entries = self._members()
        folders: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if not entry.code:
                folders[_folder(entry.path)].append(entry)
        self._files = {entry.path for entry in entries}
        self._scopes = {"": None}
        for folder in sorted(folders):
            self._pair(folder, folders[folder])
        yield from sorted(entries, key=lambda entry: entry.path)

    def _members(self) -> list[Entry]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            hint = "pack it again, or give a folder of pictures"
            raise DataError(f"the source {self._path} is not a zip that can be read: {error}", hint=hint) from error
        names = [utf8(member.filename.replace("\\", "/")) for member in members]
        over = [passed_over(name) for name in names]
        self._wrapper = wrapper([name for name, part in zip(names, over, strict=True) if not part], self.name)
        return [
            *(Entry(part, None, code=PASSED_OVER) for part in sorted(set(over) - {""})),
            *(
                self._entry(number, member, name)
                for number, (member, name) in enumerate(zip(members, names, strict=True))
                if not member.is_dir() and not over[number]
            ),
        ]

    def _entry(self, number: int, member: zipfile.ZipInfo, name: str) -> Entry:
        if ".." in name.split("/") or name.startswith("/"):
            return Entry(name, None, code="bad-path", detail="leads out of the archive")
        place = Place(os.fspath(self._path), "zip", number, member.file_size)
        return Entry(name, place, group=first_folder(name.removeprefix(self._wrapper)), mark=member.CRC)

    def _pair(self, folder: str, entries: list[Entry]) -> None:
        """Gives the pictures of one folder their classes and captions."""
        places = {entry.path: entry.place for entry in entries}
        beside = Beside((entry.path for entry in entries), places.get, self._scope(folder, entries))
        for entry in entries:
            if is_side_name(entry.path):
                entry.code = entry.code or beside.code(entry.path)
            else:
                beside.give(entry)
        self.by_value = self.by_value or beside.labels_told

    def _scope(self, folder: str, entries: list[Entry]) -> Scope | None:
        """The tables that hold for a folder: its own, and those of the nearest folder above that holds files."""
        above = folder
        while above not in self._scopes:
            above = _folder(above.rstrip("/"))
        outer = self._scopes[above]
        wanted = (*METADATA, DATASET) if folder in ("", self._wrapper) else METADATA
        tables = [entry for entry in entries if file_name(entry.path).lower() in wanted]
        for table in tables:
            table.code = "side-file"
        if tables:
            own = folder.rstrip("/").rpartition("/")[2] or self.name
            names = Names(
                is_file=lambda path: folder + path in self._files,
                inside=lambda path: self._inside(folder + path),
                own=own,
            )
            outer = read_tables(tables, prefix=folder, outer=outer, names=names)
            if outer is not None and DATASET in wanted:
                self.listed = self.listed or outer.table.class_names
        self._scopes[folder] = outer
        return outer

    def _inside(self, folder: str) -> set[str]:
        """The names in one folder of the archive."""
        if not self._names:
            for path in self._files:
                parts = path.split("/")
                for depth, part in enumerate(parts):
                    self._names["".join(f"{each}/" for each in parts[:depth])].add(part)
        return self._names.get(folder, set())


def wrapper(names: list[str], name: str) -> str:
    """The one folder around everything, called like the archive, that packing a folder makes; it is no class."""
    tops = {path.partition("/")[0] for path in names if "/" in path}
    loose = any("/" not in path for path in names)
    return f"{name}/" if tops == {name} and not loose else ""


def _folder(path: str) -> str:
    """The folder of a path with a "/" at its end, or nothing."""
    head, slash, _ = path.rpartition("/")
    return head + slash
