"""A folder of pictures, walked so that its entries come in the order of the bytes of their whole paths.

Only the folders on the way down to the current one are held in memory, as names. Symbolic links are followed, but not in
circles. A tar directly in the folder is walked like a folder.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hdit_cli.data.prepare.facts.names import Names
from hdit_cli.data.prepare.facts.paths import file_name, first_folder, is_side_name, utf8
from hdit_cli.data.prepare.facts.tables import DATASET, METADATA, Scope
from hdit_cli.data.prepare.sources.beside import Beside, read_tables
from hdit_cli.data.prepare.sources.listing import Entry
from hdit_cli.data.prepare.sources.passed_over import PASSED_OVER, is_tool_file, is_tool_folder
from hdit_cli.data.prepare.sources.places import Place
from hdit_cli.data.prepare.sources.tars import tar_entries


class _Ancestors(NamedTuple):
    """The (device, inode) of a folder and of all above it."""

    identity: tuple[int, int]
    above: "_Ancestors | None"

    def hold(self, identity: tuple[int, int]) -> bool:
        link: _Ancestors | None = self
        while link is not None:
            if link.identity == identity:
                return True
            link = link.above
        return False


class _Name(NamedTuple):
    """One name in a folder; tuples of it sort as the paths below it do.

    `told` is the name as text, with a "/" behind it where more lies below; `raw` its bytes where the text is not enough.
    """

    told: str
    raw: bytes | None
    kind: str  # file, folder, tar (its damage), in-tar (its members), passed-over, or why it is refused
    detail: str = ""

    @property
    def bytes(self) -> bytes:
        return self.told.rstrip("/").encode() if self.raw is None else self.raw


class _Folder(NamedTuple):
    """Where the walk stands: `path` of a folder relative to the root, as it is on the disk, and as text with a "/"."""

    path: bytes
    told: str
    above: _Ancestors | None
    scope: Scope | None


class FolderSource:
    """Everything below a folder. The first-level sub-folder is the class."""

    def __init__(self, root: Path) -> None:
        self.name = utf8(root.resolve().name)
        self.newest = 0.0
        self.classes: list[str] | None = None
        self.listed: list[str] = []
        self._base = os.fsencode(root)
        self._tars: dict[str, list[Entry]] = {}  # that were opened, and whose members are still to be told
        self.kind = "tar" if self._holds_tars() else "folder"
        self.by_value = self.kind == "tar"

    def entries(self) -> Iterator[Entry]:
        stack = [self._below(_Folder(b"", "", None, None))]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, Entry):
                yield item
            else:
                stack.append(self._below(item))

    def _holds_tars(self) -> bool:
        try:
            with _listed(self._base) as found:
                names = [utf8(item.name) for item in found if is_tar_name(utf8(item.name)) and _is_file(item)]
                return not all(map(is_tool_file, names))
        except OSError:  # the walk says so
            return False

    def _below(self, folder: _Folder) -> "Iterator[Entry | _Folder]":
        try:
            status = os.stat(self._full(folder))
            ancestors = _Ancestors((status.st_dev, status.st_ino), folder.above)
            names = self._names(folder, ancestors)
        except OSError as error:
            yield Entry(folder.told.rstrip("/") or ".", None, code="unreadable", detail=error.strerror or "")
            return
        raws = {name.told: name.bytes for name in names if name.raw is not None}

        def place_of(path: str) -> Place | None:
            name = file_name(path)
            full = self._full(folder, raws.get(name) or name.encode())
            try:
                return Place(os.fsdecode(full), "file", 0, os.stat(full).st_size)
            except OSError:
                return None

        tables = self._tables(folder, names)
        scope = self._scope(folder, tables)
        files = (folder.told + name.told for name in names if name.kind == "file")
        beside = Beside(files, place_of, scope)
        for name in names:
            if name.kind == "folder":
                yield _Folder(os.path.join(folder.path, name.bytes), folder.told + name.told, ancestors, scope)
            elif name.kind == "tar":
                entries = tar_entries(
                    Path(os.fsdecode(self._full(folder, name.bytes))), prefix=f"{name.told}/", classes=None
                )
                self._tars[name.told] = [entry for entry in entries if entry.path != name.told]
                yield from (entry for entry in entries if entry.path == name.told)
            elif name.kind == "in-tar":
                yield from self._tars.pop(name.told.rstrip("/"))
            else:
                yield self._entry(folder, name, beside, tables)
        self.by_value = self.by_value or beside.labels_told

    # The names in one folder

    def _names(self, folder: _Folder, ancestors: _Ancestors) -> list[_Name]:
        names = []
        with _listed(self._full(folder)) as found:
            for item in found:
                names += self._named(folder, ancestors, item)
        return sorted(names, key=lambda name: (name.told, name.bytes))

    def _named(self, folder: _Folder, ancestors: _Ancestors, item: "os.DirEntry[bytes]") -> list[_Name]:
        told = utf8(item.name)
        raw = None if told.encode() == item.name else item.name
        is_folder = _is_folder(item)
        if (is_tool_folder if is_folder else is_tool_file)(told):
            return [_Name(told, raw, PASSED_OVER)]
        if not is_folder:
            if folder.told or not is_tar_name(told) or not _is_file(item):
                return [_Name(told, raw, "file")]
            return [_Name(told, raw, "tar"), _Name(f"{told}/", raw, "in-tar")]
        try:
            status = item.stat()
            if ancestors.hold((status.st_dev, status.st_ino)):
                return [_Name(told, raw, "symlink-loop", "leads back to a folder above it")]
            with _listed(item.path):
                return [_Name(f"{told}/", raw, "folder")]
        except OSError as error:
            return [_Name(told, raw, "unreadable", error.strerror or "")]

    def _full(self, folder: _Folder, name: bytes = b"") -> bytes:
        return os.path.join(self._base, folder.path, name)

    # Files

    def _tables(self, folder: _Folder, names: list[_Name]) -> dict[str, Entry]:
        wanted = METADATA if folder.told else (*METADATA, DATASET)
        entries = [self._seen(folder, name) for name in names if name.kind == "file" and name.told.lower() in wanted]
        return {entry.path: entry for entry in entries if not entry.code}

    def _scope(self, folder: _Folder, tables: dict[str, Entry]) -> Scope | None:
        if not tables:
            return folder.scope
        for entry in tables.values():
            entry.code = "side-file"

        own = folder.told.rstrip("/").rpartition("/")[2] or self.name
        names = names_below(self._full(folder), own=own)
        scope = read_tables(list(tables.values()), prefix=folder.told, outer=folder.scope, names=names)
        if scope is not None and not folder.told:
            self.listed = scope.table.class_names
        return scope

    def _entry(self, folder: _Folder, name: _Name, beside: Beside, tables: dict[str, Entry]) -> Entry:
        path = folder.told + name.told
        if name.kind != "file":
            return Entry(path, None, code=name.kind, detail=name.detail)
        entry = tables.get(path) or self._seen(folder, name)
        if not entry.code and is_side_name(path):
            entry.code = beside.code(path)
        elif not entry.code:
            beside.give(entry)
        return entry

    def _seen(self, folder: _Folder, name: _Name) -> Entry:
        """A name that is no folder, as a candidate or as refused."""
        path = folder.told + name.told
        full = self._full(folder, name.bytes)
        entry, changed = file_entry(path, full)
        self.newest = max(self.newest, changed)
        return entry


def file_entry(path: str, full: bytes) -> tuple[Entry, float]:
    """The file at `full` as a candidate, or as refused, and when it was changed."""
    try:
        status = os.stat(full)  # opens nothing, so a FIFO cannot block it
    except OSError as error:
        codes = {errno.ELOOP: "symlink-loop", errno.ENOENT: "broken-link"}
        code = codes.get(error.errno or 0, "unreadable")
        return Entry(path, None, code=code, detail=error.strerror or ""), 0.0
    if not stat.S_ISREG(status.st_mode):
        return Entry(path, None, code="not-a-file", detail="a pipe, socket or device"), 0.0
    place = Place(os.fsdecode(full), "file", 0, status.st_size)
    return Entry(path, place, group=first_folder(path)), status.st_mtime


def names_below(folder: bytes, *, own: str) -> Names:
    """The files below a folder that has a table, or a list.

    Args:
        folder: its path.
        own: its name.
    """

    def is_file(path: str) -> bool:
        return os.path.isfile(os.path.join(folder, path.encode()))

    def inside(path: str) -> list[str]:
        try:
            with _listed(os.path.join(folder, path.encode())) as found:
                return [told for item in found if (told := utf8(item.name)).encode() == item.name]
        except OSError:
            return []

    root = os.fsdecode(os.path.abspath(folder))
    return Names(is_file=is_file, inside=inside, own=own, root=root)


def is_tar_name(name: str) -> bool:
    return name.lower().endswith(".tar")


def _listed(path: bytes) -> "os._ScandirIterator[bytes]":
    return os.scandir(path or b".")


def _is_folder(item: "os.DirEntry[bytes]") -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _is_file(item: "os.DirEntry[bytes]") -> bool:
    try:
        return item.is_file()
    except OSError:
        return False
